"""Grouped-query attention over packed rows: the mask and the weighted sum."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from model.contraction import contract


def packed_mask(segments_BT: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where a query may look: at its own segment, at or before itself.

    Segments (1 1 2 0) give, query by query: 1000, 1100, 0010, 0001. Padding sees only padding, so no row of the
    mask is empty and the softmax stays finite.
    """
    length = segments_BT.shape[1]
    causal_TS = jnp.tril(jnp.ones((length, length), dtype=bool))
    return (segments_BT[:, :, None] == segments_BT[:, None, :]) & causal_TS[None]


def cached_mask(positions_BT: Int[Array, "B T"], slots: int) -> Bool[Array, "B T S"]:
    """True where a query may look in a key-value cache whose slot s holds position s.

    Slots past a query's position hold stale or padding keys and are never seen.
    """
    return jnp.arange(slots)[None, None, :] <= positions_BT[:, :, None]


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
    *,
    out_spec: PartitionSpec,
) -> Float[Array, "B T N H"]:
    """Softmax(q k / sqrt(H)) v with each group of N / K query heads sharing a key head; softmax in float32."""
    batch, length, heads, width = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    rows, head_axis = out_spec[0], out_spec[2]
    group_spec = PartitionSpec(rows, None, head_axis, None, None)
    heads_spec = PartitionSpec(rows, head_axis, None, None, None)
    # Heads before positions: both products are plain batched ones, and only q, k, v and the output are transposed,
    # never the T by S scores. Positions last in k and v: then neither are their gradients.
    q_BTKGH = (q_BTNH * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width, out_sharding=group_spec)
    q_BKGTH = q_BTKGH.transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKHS = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 3, 1)
    scores_BKGTS = contract("BKGTH,BKHS->BKGTS", q_BKGTH, k_BKHS, out_spec=heads_spec, dtype=jnp.float32)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BKGTH = contract("BKGTS,BKHS->BKGTH", weights_BKGTS, v_BKHS, out_spec=heads_spec)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width, out_sharding=out_spec)
