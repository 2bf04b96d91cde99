"""Attention a block of queries and a block of keys at a time, in plain JAX: exact, on any device, for every model.

The softmax goes over the blocks of keys with a running maximum and sum (arXiv:2112.05682, arXiv:2205.14135), and
the gradient computes each block's scores again from what they were normalised with: never are there more scores than
one block's. Pairs of blocks that lie in the future, beyond the window, or (known when it runs) in other segments in
every row are not computed. Letters beside the project's: X blocks of queries, Y blocks of keys, whose T and S are
then the positions of one block.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from model.attention import Places, distances, visible
from model.layers import soft_cap
from model.remat import ATTENTION

LOWEST = float(np.finfo(np.float32).min)
_NO_QUERY, _NO_KEY = -1, -2
"""Segments of what fills up the last block."""


class Scoring(NamedTuple):
    """What is static of how blocks are scored."""

    block: int
    window: int
    softcap: float
    varying: tuple[str, ...]
    """Mesh axes along which devices have different rows or heads, inside of `jax.shard_map`."""


class Blocks(NamedTuple):
    """Everything in blocks."""

    q_XBKGTH: Float[Array, "X B K G T H"]
    k_YBKSH: Float[Array, "Y B K S H"]
    v_YBKSH: Float[Array, "Y B K S H"]
    query: Places
    """With a leading dimension X."""
    key: Places
    """With a leading dimension Y."""


class Pairs(NamedTuple):
    """Pairs of a block of queries and one of keys, query block by query block."""

    query: Int[Array, "P"]
    key: Int[Array, "P"]
    is_needed: Bool[Array, "P"]
    """Some query of some row sees some key."""


def attend_blockwise(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Places,
    key: Places,
    slopes_N: Float[Array, "N"] | None,
    *,
    block: int,
    window: int = 0,
    softcap: float = 0.0,
    varying: tuple[str, ...] = (),
) -> Float[Array, "B T N H"]:
    """What `model.attention.attend` gives for scaled queries on one device, softmax and sums in float32.

    Queries may be a part of the rows that the keys are of. Where both are whole rows, what lies in the future is left
    out of the program, else of its run. Windows rely on positions that rise by one within a segment; with one, queries
    of padding (segment 0) see less padding than those of `attend`. `slopes_N` is each head's for ALiBi. Inside of
    `jax.shard_map` every array differs between devices along the mesh axes `varying`, and along no others.
    """
    scoring = Scoring(block, window, softcap, varying)
    return _attend(scoring, q_BTNH, k_BSKH, v_BSKH, query, key, slopes_N)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scoring: Scoring, q_BTNH, k_BSKH, v_BSKH, query, key, slopes_N):
    return _forward(scoring, q_BTNH, k_BSKH, v_BSKH, query, key, slopes_N)[0]


def _forward(scoring: Scoring, q_BTNH, k_BSKH, v_BSKH, query, key, slopes_N):
    given = (q_BTNH, k_BSKH, v_BSKH, query, key, slopes_N)
    blocks, slopes_KG = _split(scoring, *given), _group(slopes_N, k_BSKH.shape[2])

    def visit(pair: tuple[Array, Array], sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weighted_BKGTH, maximum_BKGT, total_BKGT = sums
        part = _pick(blocks, *pair)
        scores_BKGTS, _ = _score(scoring, part, slopes_KG)
        new_BKGT = jnp.maximum(maximum_BKGT, jnp.max(scores_BKGTS, axis=-1))
        weights_BKGTS = jnp.exp(scores_BKGTS - new_BKGT[..., None])
        shrink_BKGT = jnp.exp(maximum_BKGT - new_BKGT)
        added_BKGTH = _product("BKGTS,BKSH->BKGTH", weights_BKGTS.astype(part.v_YBKSH.dtype), part.v_YBKSH)
        return (
            weighted_BKGTH * shrink_BKGT[..., None] + added_BKGTH, new_BKGT,
            total_BKGT * shrink_BKGT + jnp.sum(weights_BKGTS, axis=-1),
        )  # fmt: skip

    shape = blocks.q_XBKGTH.shape
    start = (
        _filled(scoring, shape, 0.0), _filled(scoring, shape[:-1], LOWEST), _filled(scoring, shape[:-1], 0.0)
    )  # fmt: skip

    def step(sums, pair: Pairs):
        old = _at(sums, pair.query)
        new = jax.lax.cond(pair.is_needed, lambda: visit((pair.query, pair.key), old), lambda: old)
        return _put(sums, new, pair.query), None

    pairs = list_pairs(scoring, blocks)
    (weighted_XBKGTH, maximum_XBKGT, total_XBKGT), _ = jax.lax.scan(step, start, pairs)
    out_XBKGTH = (weighted_XBKGTH / total_XBKGT[..., None]).astype(v_BSKH.dtype)
    out_BTNH = checkpoint_name(_join_queries(out_XBKGTH, q_BTNH.shape[1]), ATTENTION)
    logsumexp_XBKGT = checkpoint_name(maximum_XBKGT + jnp.log(total_XBKGT), ATTENTION)
    return out_BTNH, (given, out_BTNH, logsumexp_XBKGT)


def _backward(scoring: Scoring, saved: Any, g_BTNH):
    given, out_BTNH, logsumexp_XBKGT = saved
    q_BTNH, k_BSKH, *_, slopes_N = given
    blocks, slopes_KG = _split(scoring, *given), _group(slopes_N, k_BSKH.shape[2])
    kv_heads, count = k_BSKH.shape[2], blocks.q_XBKGTH.shape[0]
    dot_BTN1 = jnp.sum(g_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), axis=-1, keepdims=True)
    g_XBKGTH, dot_XBKGT1 = (_split_queries(x, kv_heads, count) for x in (g_BTNH, dot_BTN1))

    def visit(pair: tuple[Array, Array], sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        part = _pick(blocks, *pair)
        g_BKGTH, dot_BKGT1, logsumexp_BKGT = _at((g_XBKGTH, dot_XBKGT1, logsumexp_XBKGT), pair[0])
        scores_BKGTS, slope_BKGTS = _score(scoring, part, slopes_KG)
        weights_BKGTS = jnp.exp(scores_BKGTS - logsumexp_BKGT[..., None])
        of_weights_BKGTS = _product("BKGTH,BKSH->BKGTS", g_BKGTH, part.v_YBKSH)
        of_scores_BKGTS = weights_BKGTS * (of_weights_BKGTS - dot_BKGT1)
        of_scores_BKGTS = of_scores_BKGTS if slope_BKGTS is None else of_scores_BKGTS * slope_BKGTS
        of_scores_BKGTS = of_scores_BKGTS.astype(part.q_XBKGTH.dtype)
        added = (
            _product("BKGTS,BKSH->BKGTH", of_scores_BKGTS, part.k_YBKSH),
            _product("BKGTS,BKGTH->BKSH", of_scores_BKGTS, part.q_XBKGTH),
            _product("BKGTS,BKGTH->BKSH", weights_BKGTS.astype(g_BKGTH.dtype), g_BKGTH),
        )
        return jax.tree.map(jnp.add, sums, added)

    start = tuple(
        _filled(scoring, x.shape, 0.0) for x in (blocks.q_XBKGTH, blocks.k_YBKSH, blocks.v_YBKSH)
    )  # fmt: skip

    def step(sums, pair: Pairs):
        of_q, of_k, of_v = sums
        old = (*_at((of_q,), pair.query), *_at((of_k, of_v), pair.key))
        new = jax.lax.cond(pair.is_needed, lambda: visit((pair.query, pair.key), old), lambda: old)
        return (*_put((of_q,), new[:1], pair.query), *_put((of_k, of_v), new[1:], pair.key)), None

    (of_q, of_k, of_v), _ = jax.lax.scan(step, start, list_pairs(scoring, blocks))
    grad_q = _join_queries(of_q, q_BTNH.shape[1]).astype(q_BTNH.dtype)
    grad_k, grad_v = (_join_keys(x, k_BSKH.shape[1]).astype(k_BSKH.dtype) for x in (of_k, of_v))
    return grad_q, grad_k, grad_v, None, None, None


_attend.defvjp(_forward, _backward)


def list_pairs(scoring: Scoring, blocks: Blocks) -> Pairs:
    """The pairs of blocks to walk over: of whole rows only those that positions alone do not rule out."""
    queries, keys = blocks.query.segments_BT.shape[0], blocks.key.segments_BT.shape[0]
    pairs = [(i, j) for i in range(queries) for j in range(keys)]
    size = blocks.query.segments_BT.shape[-1]
    if blocks.query.index_T is None and blocks.key.index_T is None:
        assert queries == keys, "where both are whole rows, they are of the same length"
        # The nearest query and key of blocks i > j are (i - j - 1) * size + 1 positions apart.
        pairs = [
            (i, j) for i, j in pairs if j <= i and not (scoring.window and (i - j - 1) * size + 1 >= scoring.window)
        ]
    query_P, key_P = (jnp.asarray(each, jnp.int32) for each in zip(*pairs, strict=True))
    needed_XY = _overlap(blocks.query.segments_BT, blocks.key.segments_BT)
    if blocks.query.index_T is not None or blocks.key.index_T is not None:
        of_query, of_key = _indices(blocks.query), _indices(blocks.key)
        needed_XY &= jnp.min(of_key, axis=1)[None, :] <= jnp.max(of_query, axis=1)[:, None]
        if scoring.window:
            needed_XY &= jnp.min(of_query, axis=1)[:, None] - jnp.max(of_key, axis=1)[None, :] < scoring.window
    return Pairs(query_P, key_P, needed_XY[query_P, key_P])


def _overlap(query_XBT: Int[Array, "X B T"], key_YBS: Int[Array, "Y B S"]) -> Bool[Array, "X Y"]:
    """False where no row has a segment that is in both blocks, told from their first and last ones."""
    last = jnp.iinfo(jnp.int32).max

    def bounds(segments: Array) -> tuple[Array, Array]:
        ordered = jnp.where(segments == 0, last - 1, jnp.where(segments < 0, last, segments))  # padding comes last
        return jnp.min(ordered, axis=2), jnp.max(jnp.where(segments < 0, 0, ordered), axis=2)

    (first_XB, last_XB), (first_YB, last_YB) = bounds(query_XBT), bounds(key_YBS)
    overlaps_XYB = (first_XB[:, None] <= last_YB[None]) & (first_YB[None] <= last_XB[:, None])
    return jnp.any(overlaps_XYB, axis=2)


def _score(
    scoring: Scoring, part: Blocks, slopes_KG: Array | None
) -> tuple[Float[Array, "B K G T S"], Float[Array, "B K G T S"] | None]:
    """One pair's masked scores, and the soft-cap's slope at them."""
    raw_BKGTS = _product("BKGTH,BKSH->BKGTS", part.q_XBKGTH, part.k_YBKSH)
    scores_BKGTS = soft_cap(raw_BKGTS, scoring.softcap)
    slope_BKGTS = 1.0 - jnp.square(scores_BKGTS / scoring.softcap) if scoring.softcap else None
    if slopes_KG is not None:
        behind_BTS = distances(part.query.positions_BT, part.key.positions_BT).astype(jnp.float32)
        scores_BKGTS -= slopes_KG[None, :, :, None, None] * behind_BTS[:, None, None]
    mask_BTS = visible(part.query, part.key, scoring.window)
    return jnp.where(mask_BTS[:, None, None], scores_BKGTS, LOWEST), slope_BKGTS


def _product(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _split(scoring: Scoring, q_BTNH, k_BSKH, v_BSKH, query: Places, key: Places, _slopes_N) -> Blocks:
    kv_heads = k_BSKH.shape[2]
    queries, keys = (-(-x.shape[1] // scoring.block) for x in (q_BTNH, k_BSKH))
    return Blocks(
        q_XBKGTH=_split_queries(q_BTNH, kv_heads, queries),
        k_YBKSH=_cut(k_BSKH, keys).transpose(0, 1, 3, 2, 4),
        v_YBKSH=_cut(v_BSKH, keys).transpose(0, 1, 3, 2, 4),
        query=_split_places(query, queries, _NO_QUERY),
        key=_split_places(key, keys, _NO_KEY),
    )


def _split_queries(x_BTNH: Array, kv_heads: int, count: int) -> Array:
    x_XBTNH = _cut(x_BTNH, count)
    blocks, batch, length, heads, width = x_XBTNH.shape
    x_XBTKGH = x_XBTNH.reshape(blocks, batch, length, kv_heads, heads // kv_heads, width)
    return x_XBTKGH.transpose(0, 1, 3, 4, 2, 5)


def _join_queries(x_XBKGTH: Array, length: int) -> Array:
    blocks, batch, kv_heads, group, size, width = x_XBKGTH.shape
    x_BXTKGH = x_XBKGTH.transpose(1, 0, 4, 2, 3, 5)
    return x_BXTKGH.reshape(batch, blocks * size, kv_heads * group, width)[:, :length]


def _join_keys(x_YBKSH: Array, length: int) -> Array:
    blocks, batch, kv_heads, size, width = x_YBKSH.shape
    return x_YBKSH.transpose(1, 0, 3, 2, 4).reshape(batch, blocks * size, kv_heads, width)[:, :length]


def _split_places(places: Places, count: int, filler: int) -> Places:
    """Segments and positions (X, B, T); the index (X, T)."""
    index_T = places.index_T
    return Places(
        _cut(places.segments_BT, count, filler),
        _cut(places.positions_BT, count),
        None if index_T is None else _cut(index_T[None], count, jnp.iinfo(jnp.int32).max)[:, 0],
    )


def _indices(places: Places) -> Int[Array, "X T"]:
    blocks, _, size = places.segments_BT.shape
    if places.index_T is not None:
        return places.index_T
    return jnp.arange(blocks * size, dtype=jnp.int32).reshape(blocks, size)


def _cut(x_BT: Array, count: int, filler: int = 0) -> Array:
    """(B, T, ...) as (count, B, ceil(T / count), ...), the last block filled up."""
    batch, length, *rest = x_BT.shape
    size = -(-length // count)
    widths = [(0, 0), (0, count * size - length)] + [(0, 0)] * len(rest)
    padded = jnp.pad(x_BT, widths, constant_values=filler) if count * size > length else x_BT
    return jnp.moveaxis(padded.reshape(batch, count, size, *rest), 1, 0)


def _pick(blocks: Blocks, query: Array, key: Array) -> Blocks:
    """The two blocks of a pair, their leading dimensions gone; their indices are always given."""
    of_query, of_key = (places._replace(index_T=_indices(places)) for places in (blocks.query, blocks.key))
    q_BKGTH, of_query = _at((blocks.q_XBKGTH, of_query), query)
    k_BKSH, v_BKSH, of_key = _at((blocks.k_YBKSH, blocks.v_YBKSH, of_key), key)
    return Blocks(q_BKGTH, k_BKSH, v_BKSH, of_query, of_key)


def _at(tree: Any, block: Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, block, keepdims=False), tree)


def _put(tree: Any, new: Any, block: Array) -> Any:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, block, 0), tree, new)


def _filled(scoring: Scoring, shape: Sequence[int], value: float) -> Array:
    return jax.lax.pcast(jnp.full(shape, value, jnp.float32), scoring.varying, to="varying")


def _group(slopes_N: Array | None, kv_heads: int) -> Array | None:
    return None if slopes_N is None else slopes_N.reshape(kv_heads, -1)
