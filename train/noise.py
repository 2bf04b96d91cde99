"""Noise of training rows: NEFTune's on embeddings, and dropout.

The noise of a row comes from the run's seed, the step and which row of the global batch it is, as the plan has them, so
that it is the same on any mesh, in any microbatch and on any hosts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

PURPOSE = 0x6E656674
"""Folded into the seed's key, which parameters are drawn from too."""


NEFTUNE, EMBEDDINGS = 0, 1
"""Places in the model that draw; two of each layer follow."""


class NoiseRows(NamedTuple):
    """Whose noise it is: the step's key, and which row of the global batch each is."""

    key: Key[Array, ""]
    rows_B1: Int[Array, "B 1"]


def noise_rows(seed: int, step: Int[Array, ""], *, like: Int[Array, "B T"], order: tuple[int, ...] = ()) -> NoiseRows:
    """The noise of a global batch whose rows are partitioned as those of `like`, in this `order` (`train.hosts`)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PURPOSE), step)
    spec = jax.P(jax.typeof(like).sharding.spec[0], None)
    if order:
        return NoiseRows(key, jax.sharding.reshard(jnp.asarray(order, jnp.int32)[:, None], spec))
    return NoiseRows(key, jax.lax.broadcasted_iota(jnp.int32, (like.shape[0], 1), 0, out_sharding=spec))


def add_noise(
    x_BTD: Float[Array, "B T D"], alpha: float, noise: NoiseRows, segments_BT: Int[Array, "B T"], *, scale: float = 1.0
) -> Float[Array, "B T D"]:
    """Embeddings with uniform(-1, 1) x alpha / sqrt(L x D) x scale added; nothing at padding. arXiv:2310.05914.

    L is the tokens of the position's own example, not of its row, so that a packed example is disturbed as much as one
    alone: the norm of an example's noise is alpha / sqrt(3) whatever its length. `scale`: what embeddings were
    multiplied by.
    """
    is_same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    length_BT = jnp.sum(is_same_BTT, axis=-1).astype(jnp.float32)
    factor_BT = jnp.where(segments_BT > 0, alpha * scale / jnp.sqrt(length_BT * x_BTD.shape[-1]), 0.0)
    drawn_BTD = (2 * _draw(noise, NEFTUNE, x_BTD.shape[1:]) - 1) * factor_BT[..., None]
    return x_BTD + _place_like(x_BTD, drawn_BTD).astype(x_BTD.dtype)


def drop_entries(
    x_BTD: Float[Array, "B T D"], rate: float, noise: NoiseRows, place: int | Int[Array, ""]
) -> Float[Array, "B T D"]:
    """Zero where chance has it, at this rate, and x / (1 - rate) elsewhere. Every place in the model draws anew."""
    is_kept_BTD = _place_like(x_BTD, _draw(noise, place, x_BTD.shape[1:])) >= rate
    return jnp.where(is_kept_BTD, x_BTD / (1 - rate), jnp.zeros_like(x_BTD))


def _place_like(x_BTD: Array, drawn_BTD: Array) -> Array:
    """Each device's part of what was drawn for whole rows, where a row's positions are on several."""
    return jax.sharding.reshard(drawn_BTD, jax.typeof(x_BTD).sharding.spec)


def _draw(noise: NoiseRows, place: int | Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "B T D"]:
    """Uniform in [0, 1) for each row."""
    key = jax.random.fold_in(noise.key, place)
    return jax.vmap(lambda row_1: jax.random.uniform(jax.random.fold_in(key, row_1[0]), shape))(noise.rows_B1)
