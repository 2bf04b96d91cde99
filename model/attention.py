"""Grouped-query attention over packed rows: masks, distances and the weighted sum."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from model.contraction import contract
from model.layers import soft_cap
from model.remat import ATTENTION


class Places(NamedTuple):
    """Where queries, or keys, stand in the packed rows they are of."""

    segments_BT: Int[Array, "B T"]
    positions_BT: Int[Array, "B T"]
    """Within the segment, rising by one."""
    index_T: Int[Array, "T"] | None = None
    """Within the row, the same in every row; None: they are whole rows, 0 to T - 1."""

    def indices(self) -> Int[Array, "T"]:
        """`index_T`, given or not."""
        return jnp.arange(self.segments_BT.shape[1], dtype=jnp.int32) if self.index_T is None else self.index_T


def visible(query: Places, key: Places, window: int = 0) -> Bool[Array, "B T S"]:
    """True where a query may look: at its own segment, at or before itself, less than `window` before if that is not 0.

    Segments (1 1 2 0) give, query by query: 1000, 1100, 0010, 0001. Padding sees only padding, so no row of the mask
    is empty and the softmax stays finite.
    """
    causal_TS = key.indices()[None, :] <= query.indices()[:, None]
    mask_BTS = (query.segments_BT[:, :, None] == key.segments_BT[:, None, :]) & causal_TS[None]
    return mask_BTS & (distances(query.positions_BT, key.positions_BT) < window) if window else mask_BTS


def cached_mask(positions_BT: Int[Array, "B T"], slots: int, window: int = 0) -> Bool[Array, "B T S"]:
    """True where a query may look in a key-value cache whose slot s holds position s.

    Slots past a query's position hold stale or padding keys and are never seen.
    """
    behind_BTS = distances(positions_BT, jnp.arange(slots)[None])
    return (behind_BTS >= 0) & (behind_BTS < window) if window else behind_BTS >= 0


def distances(query_BT: Int[Array, "B T"], key_BS: Int[Array, "#B S"]) -> Int[Array, "B T S"]:
    """How far before each query's position each key's lies; negative for keys that come later."""
    return query_BT[:, :, None] - key_BS[:, None, :]


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head: 2^(-8 i / n) for n heads, n the largest power of two that there are heads for.

    Heads beyond n take every other slope of 2 n. Source: arXiv:2108.12409 and its reference implementation.
    """
    whole = 1 << int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / whole) for i in range(1, whole + 1)]
    return slopes + [2.0 ** (-4.0 * i / whole) for i in range(1, 2 * (num_heads - whole), 2)]


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k: Float[Array, "B K _ _"],
    v: Float[Array, "B K _ _"],
    mask_BTS: Bool[Array, "B T S"],
    *,
    layout: Literal["BKHS", "BKSH"],
    scale: float,
    out_spec: PartitionSpec,
    softcap: float = 0.0,
    alibi_BTS: Int[Array, "B T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax(scale q k) v with each group of N / K query heads sharing a key head; softmax in float32.

    Keys and values are laid out with positions last, whose gradients then need no transposing, or with the heads'
    dimensions last, into which a cache can be written in place. Scores pass through the soft-cap before the mask.
    `alibi_BTS`, the distance from query to key, is weighed by each head's slope and taken from them.
    """
    batch, length, heads, width = q_BTNH.shape
    kv_heads = k.shape[1]
    rows, length_axis, head_axis, _ = out_spec
    group_spec = PartitionSpec(rows, length_axis, head_axis, None, None)
    heads_spec = PartitionSpec(rows, head_axis, None, length_axis, None)
    # Heads before positions: both products are plain batched ones, and the T by S scores are never transposed.
    q_BTKGH = (q_BTNH * scale).reshape(batch, length, kv_heads, heads // kv_heads, width, out_sharding=group_spec)
    q_BKGTH = q_BTKGH.transpose(0, 2, 3, 1, 4)
    scores_BKGTS = contract(f"BKGTH,{layout}->BKGTS", q_BKGTH, k, out_spec=heads_spec, dtype=jnp.float32)
    scores_BKGTS = soft_cap(checkpoint_name(scores_BKGTS, ATTENTION), softcap)
    if alibi_BTS is not None:
        slopes_KG = jnp.asarray(alibi_slopes(heads), jnp.float32).reshape(kv_heads, heads // kv_heads)
        falls_BKGTS = slopes_KG[None, :, :, None, None] * alibi_BTS.astype(jnp.float32)[:, None, None]
        scores_BKGTS = scores_BKGTS - jax.sharding.reshard(falls_BKGTS, heads_spec)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v.dtype)
    out_BKGTH = contract(f"BKGTS,{layout}->BKGTH", weights_BKGTS, v, out_spec=heads_spec)
    out_BTNH = out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width, out_sharding=out_spec)
    return checkpoint_name(out_BTNH, ATTENTION)
