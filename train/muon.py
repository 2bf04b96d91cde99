"""Muon: momentum, orthogonalised matrix by matrix. Source: kellerjordan.github.io/posts/muon, arXiv:2502.16982.

optax has it for arrays that one device holds; here a matrix may be split over the mesh, and layers are stacked.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from train.matrices import Layout, layout_of
from train.paths import map_with_path

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz polynomial a x + b x^3 + c x^5: singular values end between about 0.7 and 1.2."""
UPDATE_RMS = 0.2
"""Of an update's entries, about AdamW's, so that its learning rates and decay serve: arXiv:2502.16982, section 2.2."""


class MuonState(NamedTuple):
    """How many updates were made, and the average of gradients, partitioned like the parameters."""

    updates: Int[Array, ""]
    mu: Any


def scale_by_muon(*, momentum: float, ns_steps: int, mu_dtype: str) -> optax.GradientTransformation:
    """The update whose matrices are orthogonal, before learning rate and decay; Nesterov's momentum, as in optax."""

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params, dtype=jnp.dtype(mu_dtype)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MuonState]:
        mu = optax.tree.update_moment(updates, state.mu, momentum, 1)
        count = jnp.asarray(optax.safe_increment(state.updates))
        ahead = optax.tree.bias_correction(mu, momentum, optax.safe_increment(count))
        fresh = optax.tree.bias_correction(updates, momentum, count)
        wanted = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, ahead, fresh)
        wanted = map_with_path(lambda path, x: orthogonalize(x, layout_of(path, x.ndim), ns_steps), wanted)
        return wanted, MuonState(count, optax.tree.cast(mu, jnp.dtype(mu_dtype)))

    return optax.GradientTransformation(init, update)


def orthogonalize(x: Float[Array, "..."], layout: Layout, ns_steps: int) -> Float[Array, "..."]:
    """About U V^T for every matrix U S V^T in x, times 0.2 sqrt(max(rows, columns)); partitioned as x is.

    Devices that share a stack of split matrices trade parts, so that each has some of the matrices whole, works on them
    alone, and trades back: no device ever holds more than its share of the stack, or one matrix.
    """
    sharding = jax.typeof(x).sharding
    trades = [] if sharding.mesh.empty else _list_trades(sharding.spec, layout, sharding.mesh.shape)

    def work(x: jax.Array) -> jax.Array:
        lead = x.shape[: layout.separate]
        x = x.reshape(-1, *x.shape[layout.separate :])
        count, ways = x.shape[0], 1
        for _, _, size in trades:
            ways *= size
        x = jnp.pad(x, ((0, -count % ways), *((0, 0) for _ in x.shape[1:])))
        for axis, dimension, _ in trades:
            x = jax.lax.all_to_all(x, axis, split_axis=0, concat_axis=dimension, tiled=True)
        x = _orthogonalize_whole(x.reshape(Layout(1, *layout[1:]).sizes(x.shape)), ns_steps).reshape(x.shape)
        for axis, dimension, _ in reversed(trades):
            x = jax.lax.all_to_all(x, axis, split_axis=dimension, concat_axis=0, tiled=True)
        return x[:count].reshape(*lead, *x.shape[1:])

    return work(x) if sharding.mesh.empty else jax.shard_map(work, in_specs=sharding.spec, out_specs=sharding.spec)(x)


def _list_trades(spec: PartitionSpec, layout: Layout, sizes: Any) -> list[tuple[str, int, int]]:
    """Mesh axes of more than one device that split the matrices, the dimension each splits (counted after one of all
    separate matrices), and its size. Of several over one dimension the minor ones come first."""
    trades = []
    for dimension, axes in enumerate(spec[layout.separate :], start=1):
        names = (axes,) if isinstance(axes, str) else axes or ()
        trades += [(name, dimension, sizes[name]) for name in reversed(names) if sizes[name] > 1]
    return trades


def _orthogonalize_whole(x_NRC: Float[Array, "N R C"], ns_steps: int) -> Float[Array, "N R C"]:
    rows, columns = x_NRC.shape[1:]
    wide_NRC = x_NRC.mT if rows > columns else x_NRC
    norm_N = jnp.sqrt(jnp.sum(jnp.square(wide_NRC), axis=(1, 2), keepdims=True))
    a, b, c = COEFFICIENTS

    def iterate(_, x_NRC):
        gram_NRR = x_NRC @ x_NRC.mT
        return a * x_NRC + (b * gram_NRR + c * gram_NRR @ gram_NRR) @ x_NRC

    wide_NRC = jax.lax.fori_loop(0, ns_steps, iterate, wide_NRC / (norm_N + 1e-8))
    return UPDATE_RMS * max(rows, columns) ** 0.5 * (wide_NRC.mT if rows > columns else wide_NRC)
