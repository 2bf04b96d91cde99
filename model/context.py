"""What all layers of one forward pass share: rotations, masks or places, by the kernel of attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from model.attention import Places, cached_mask, distances, visible
from model.attention_choice import Kernel
from model.block import Context
from model.config import ModelConfig, RopeConfig
from model.parallel import AxisRules
from model.rope import Rotation, depends_on_length, make_rotation

DENSE = Kernel(name="dense", block=0)
"""Of passes with a cache, and of drawing parameters."""


def packed_context(
    cfg: ModelConfig, axes: AxisRules, kernel: Kernel, segments_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"]
) -> Context:
    """What layers share in a pass over packed rows.

    Where the mesh shards a row's positions, queries, rotations and what counts tokens are sharded, and keys whole.
    """

    def mask(window: int) -> Bool[Array, "B T S"]:
        index_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
        query = Places(share(segments_BT), shared_BT, jax.sharding.reshard(index_T, axes.spec("length")))
        return visible(query, Places(segments_BT, positions_BT), window)

    def lengths() -> Int[Array, "B T"]:
        is_same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
        return share(1 + jnp.max(jnp.where(is_same_BTT, positions_BT[:, None, :], 0), axis=-1))

    def share(x_BT):
        return jax.sharding.reshard(x_BT, axes.spec("batch", "length"))

    shared_BT = share(positions_BT)
    rotations, is_dense = _make_rotations(cfg, shared_BT, lengths), kernel.name == "dense"
    return Context(
        rotations=rotations,
        kernel=kernel,
        places=None if is_dense else Places(segments_BT, positions_BT),
        masks=_by_window(cfg, mask) if is_dense else {},
        distance_BTS=distances(shared_BT, positions_BT) if cfg.alibi and is_dense else None,
        slots_BT=None,
        is_real_BT=share(segments_BT > 0),
    )


def cached_context(
    cfg: ModelConfig, positions_BT: Int[Array, "B T"], slots: int, text_lengths_B: Int[Array, "B"] | None
) -> Context:
    """What layers share in a pass over new tokens with a cache of so many slots."""

    def mask(window: int) -> Bool[Array, "B T S"]:
        return cached_mask(positions_BT, slots, window)

    def lengths() -> Int[Array, "B T"]:
        wanted_B = jnp.full_like(positions_BT[:, 0], slots) if text_lengths_B is None else text_lengths_B
        return jnp.broadcast_to(wanted_B[:, None], positions_BT.shape)

    return Context(
        rotations=_make_rotations(cfg, positions_BT, lengths),
        kernel=DENSE,
        places=None,
        masks=_by_window(cfg, mask),
        distance_BTS=distances(positions_BT, jnp.arange(slots)[None]) if cfg.alibi else None,
        slots_BT=positions_BT,
        is_real_BT=jnp.ones_like(positions_BT, dtype=bool),
    )


def _make_rotations(cfg: ModelConfig, positions_BT, lengths) -> dict[RopeConfig, Rotation]:
    ropes: set[RopeConfig] = {kind.rope for kind in cfg.kinds if kind.rope is not None}
    lengths_BT = lengths() if any(map(depends_on_length, ropes)) else positions_BT
    return {rope: make_rotation(rope, positions_BT, lengths_BT, head_dim=cfg.head_dim) for rope in ropes}


def _by_window(cfg: ModelConfig, mask) -> dict[int, Bool[Array, "B T S"]]:
    return {window: mask(window) for window in {kind.window for kind in cfg.kinds}}
