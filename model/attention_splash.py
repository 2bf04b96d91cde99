"""Attention on a TPU: the splash kernel that comes with JAX, which skips blocks of the future and beyond the window.

Its window counts places in the row, ours positions in the segment. They are the same: within a segment positions rise
by one, and nothing sees another segment (`data.batch.Batch`).
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SplashAttentionKernel
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from model.attention import Places
from model.parallel import MeshAxes
from model.remat import ATTENTION

LANES = 128
"""Rows are filled up to, and blocks are, multiples of this."""
_FILLER = -1
"""Segment of what fills up a row: it sees itself only."""


def make_splash(
    queries: int,
    keys: int,
    *,
    block: int,
    window: int = 0,
    softcap: float = 0.0,
    shards: int = 1,
    is_interpreted: bool = False,
) -> SplashAttentionKernel:
    """The kernel for rows of so many keys of which `queries` are asked for, by `shards` devices.

    It holds arrays that say which blocks to visit, different ones on each shard. `is_interpreted` runs it without a
    TPU, for tests. Raises ValueError where the queries of a shard would have to be filled up.
    """
    check_shards(queries, shards)
    queries, keys = _round_up(queries), _round_up(keys)
    of_queries, of_keys = _block_size(queries // shards, block), _block_size(keys, block)
    mask = splash.LocalMask((queries, keys), (window - 1, 0), 0) if window else splash.CausalMask((queries, keys))
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask]),  # the same for every head
        block_sizes=splash.BlockSizes(
            block_q=of_queries, block_kv=of_keys, block_q_dkv=of_queries, block_kv_dkv=of_keys, block_q_dq=of_queries,
            block_kv_dq=of_keys,
        ),
        head_shards=1,
        q_seq_shards=shards,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name=ATTENTION,
        interpret=is_interpreted,
    )  # fmt: skip


def check_shards(queries: int, shards: int) -> None:
    """Raises ValueError where the kernel cannot serve rows of so many positions on so many devices each."""
    if shards > 1 and queries % (shards * LANES):
        multiple = shards * LANES
        low = queries // multiple * multiple
        raise ValueError(
            f"rows of {queries} positions on {shards} devices each: splash attention needs a multiple of {LANES} on "
            f"every device; use rows of {f'{low} or ' if low else ''}{low + multiple}, or compute.attention=blockwise"
        )


def splash_spec(kernel: SplashAttentionKernel, query_axes: MeshAxes):
    """How the kernel's arrays lie on the mesh in use, whose `query_axes` split the queries."""
    mesh = jax.sharding.get_abstract_mesh()
    return kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, query_axes)))


def attend_splash(
    kernel: SplashAttentionKernel,
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Places,
    key: Places,
) -> Float[Array, "B T N H"]:
    """What `model.attention.attend` gives for scaled queries on one device, for its shard of the kernel."""
    length = q_BTNH.shape[1]
    q_BNTH, k_BKSH, v_BKSH = (_fill(x, 0).transpose(0, 2, 1, 3) for x in (q_BTNH, k_BSKH, v_BSKH))
    segments = splash.SegmentIds(_fill(query.segments_BT, _FILLER), _fill(key.segments_BT, _FILLER))
    out_BNTH = cast(Array, jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segments))
    return out_BNTH.transpose(0, 2, 1, 3)[:, :length].astype(v_BSKH.dtype)


def _block_size(length: int, most: int) -> int:
    """The largest multiple of LANES that divides a length which is one, up to `most`."""
    return max(size for size in range(LANES, length + 1, LANES) if length % size == 0 and size <= max(most, LANES))


def _round_up(length: int) -> int:
    return -(-length // LANES) * LANES


def _fill(x_BT: Array, filler: int) -> Array:
    missing = _round_up(x_BT.shape[1]) - x_BT.shape[1]
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (x_BT.ndim - 2)
    return jnp.pad(x_BT, widths, constant_values=np.asarray(filler, x_BT.dtype)) if missing else x_BT
