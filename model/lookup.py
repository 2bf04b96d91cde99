"""Rows of a table by id, table and ids sharded over the same devices: what is exchanged is rows, not tables."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from model.parallel import axis_names


def look_up(
    table_VD: Float[Array, "V D"], tokens_BT: Int[Array, "B T"], *, out_spec: PartitionSpec, dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """The table's rows of these ids in `dtype`, partitioned by `out_spec`, whose width is whole.

    Devices that share rows of the batch's group and parts of the table's width tell each other their ids, take their
    part of the width for all of them, and exchange the parts. Left to itself, XLA copies the whole table, or all rows,
    to every device on meshes of several axes. The gradient goes the same way back. Parts of the vocabulary add zeros.
    """
    vocab, embed = (axis_names(axes) for axes in jax.typeof(table_VD).sharding.spec)
    rows, _, _ = (axis_names(axes) for axes in out_spec)
    shared = tuple(name for name in embed if name in rows)
    if not (vocab or shared):  # a table that is whole where its rows are wanted
        table_VD = jax.sharding.reshard(table_VD, PartitionSpec(None, None)) if embed else table_VD
        return table_VD.at[tokens_BT].get(out_sharding=out_spec).astype(dtype)
    specs = (PartitionSpec(vocab or None, shared or None), PartitionSpec(*out_spec[:2]))
    take = functools.partial(_take, vocab=vocab, shared=shared, dtype=dtype)
    return jax.shard_map(take, in_specs=specs, out_specs=out_spec)(*jax.sharding.reshard((table_VD, tokens_BT), specs))


def _take(table_VD, tokens_BT, *, vocab: tuple[str, ...], shared: tuple[str, ...], dtype: DTypeLike):
    if shared:
        tokens_BT = jax.lax.all_gather(tokens_BT, shared, axis=0, tiled=True)
    at_BT = tokens_BT - (jax.lax.axis_index(vocab) * table_VD.shape[0] if vocab else 0)
    is_here_BT = (at_BT >= 0) & (at_BT < table_VD.shape[0])
    rows_BTD = jnp.where(is_here_BT[..., None], table_VD.at[jnp.where(is_here_BT, at_BT, 0)].get(), 0.0).astype(dtype)
    if vocab:
        rows_BTD = jax.lax.psum(rows_BTD, vocab)
    if shared:
        rows_BTD = jax.lax.all_to_all(rows_BTD, shared, split_axis=0, concat_axis=2, tiled=True)
    return rows_BTD
