"""NEFTune: noise on the embeddings of training rows. Source: arXiv:2310.05914.

The noise of a row comes from the run's seed, the step and the row's place in the global batch, so that it is the same
on any mesh, in any microbatch and on any number of hosts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

PURPOSE = 0x6E656674
"""Folded into the seed's key, which parameters are drawn from too."""


class NoiseRows(NamedTuple):
    """Whose noise it is: the step's key, and each row's place in the global batch."""

    key: Key[Array, ""]
    rows_B1: Int[Array, "B 1"]


def noise_rows(seed: int, step: Int[Array, ""], *, like: Int[Array, "B T"]) -> NoiseRows:
    """The noise of a global batch whose rows are partitioned as those of `like`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PURPOSE), step)
    spec = jax.P(jax.typeof(like).sharding.spec[0], None)
    return NoiseRows(key, jax.lax.broadcasted_iota(jnp.int32, (like.shape[0], 1), 0, out_sharding=spec))


def embedding_noise(
    alpha: float, noise: NoiseRows, segments_BT: Int[Array, "B T"], *, scale: float = 1.0
) -> Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]]:
    """A function that adds uniform(-1, 1) x alpha / sqrt(L x D) x scale to embeddings; none at padding.

    L is the tokens of the position's own example, not of its row, so that a packed example is disturbed as much as one
    alone: the norm of an example's noise is alpha / sqrt(3) whatever its length. `scale`: what embeddings were
    multiplied by.
    """

    def add(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        def draw(row_1: Int[Array, "1"]) -> Float[Array, "T D"]:
            return jax.random.uniform(jax.random.fold_in(noise.key, row_1[0]), x_BTD.shape[1:], minval=-1.0)

        is_same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
        length_BT = jnp.sum(is_same_BTT, axis=-1).astype(jnp.float32)
        factor_BT = jnp.where(segments_BT > 0, alpha * scale / jnp.sqrt(length_BT * x_BTD.shape[-1]), 0.0)
        return x_BTD + (jax.vmap(draw)(noise.rows_B1) * factor_BT[..., None]).astype(x_BTD.dtype)

    return add
