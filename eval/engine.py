"""Answers requests with a model: few static shapes, sorted and packed rows, answers in the order asked.

Scores are packed several to a row, as segments that cannot see each other; generations are padded on the
right. Rows are grouped into lengths that are powers of two, so a task compiles a handful of programs at most.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from data.packing import pack_best_fit
from eval.config import EvalError
from eval.request import Generate, Generated, Score, Scored
from model.config import ComputeConfig, ModelConfig
from model.decode import generate
from model.parallel import AxisRules, ways
from model.transformer import Params, apply

SHORTEST_SCORE_ROW = 256
"""Scores shorter than this share a row."""
SHORTEST_PROMPT_ROW = 32


class Model(NamedTuple):
    """A model ready to answer, in the mesh that is in use."""

    cfg: ModelConfig
    axes: AxisRules
    params: Params
    compute: ComputeConfig


class Limits(NamedTuple):
    """Bounds on what is computed at once."""

    batch_tokens: int
    max_length: int


class _Rows(NamedTuple):
    """B rows of packed scores. Slot k of a row scores `targets` as what follows position `at`."""

    tokens_BT: np.ndarray
    segments_BT: np.ndarray
    positions_BT: np.ndarray
    at_BK: np.ndarray
    targets_BK: np.ndarray
    owner_BK: np.ndarray
    """Index of the request a slot belongs to, -1 for none."""


def answer_scores(model: Model, requests: Sequence[Score], limits: Limits) -> list[Scored]:
    """The answers to `requests`, in their order; no answer depends on which others were asked.

    A request longer than `limits.max_length` keeps its first id, loses what follows it, and is marked. Raises
    EvalError where that would cut off an id that was asked for.
    """
    check_scores(requests, limits.max_length)
    check_ids([request.ids for request in requests], model.cfg)
    cut = [_cut_score(request, limits.max_length) for request in requests]
    totals = np.zeros(len(cut), np.float64)
    greedy = np.ones(len(cut), bool)
    for rows in _score_batches(cut, limits.batch_tokens, _batch_ways(model.axes)):
        nll_BK, greedy_BK = score_rows(
            model.cfg, model.axes, model.params, *_place(model.axes, rows[:5]), compute=model.compute
        )
        is_owned = rows.owner_BK >= 0
        owners = rows.owner_BK[is_owned]
        np.add.at(totals, owners, -np.asarray(nll_BK, np.float64)[is_owned])
        np.logical_and.at(greedy, owners, np.asarray(greedy_BK)[is_owned])
    return [
        Scored(float(total), int(short.weights.sum()), bool(is_greedy), len(short.ids) < len(request.ids))
        for request, short, total, is_greedy in zip(requests, cut, totals, greedy, strict=True)
    ]


def check_scores(requests: Sequence[Score], max_length: int) -> None:
    """Raises EvalError if an id that is asked for lies further than `max_length` from its request's end."""
    long = (request for request in requests if len(request.ids) > max_length + 1)
    needed = max((len(ids) - int(np.flatnonzero(weights)[0]) for ids, weights in long), default=0)
    if needed > max_length:
        raise EvalError(
            f"a document needs {needed} tokens from its first scored one to its end, more than "
            f"max_length={max_length}; set max_length to {needed + 1} or more"
        )


def check_ids(rows: Sequence[np.ndarray], cfg: ModelConfig) -> None:
    """Raises EvalError for an id that the model has no embedding for: looking it up would give another one's."""
    largest = max((int(np.max(ids)) for ids in rows), default=0)
    if largest >= cfg.vocab_size:
        raise EvalError(
            f"a request has token id {largest}, the model embeds {cfg.vocab_size}: its chat template writes a token "
            "the model does not have. Choose another with --template"
        )


def answer_generations(model: Model, requests: Sequence[Generate], limits: Limits) -> list[Generated]:
    """The greedy answers to `requests`, in their order; no answer depends on which others were asked.

    A prompt longer than `limits.max_length` keeps its first id and its last ones, and is marked. Raises
    EvalError unless all requests share `max_new_tokens` and `stop_ids`.
    """
    if len({request[1:] for request in requests}) > 1:
        raise EvalError("requests answered together differ in max_new_tokens or stop_ids; answer them apart")
    check_ids([request.prompt for request in requests], model.cfg)
    prompts = [_cut_left(request.prompt, limits.max_length) for request in requests]
    answers: list[Generated | None] = [None] * len(requests)
    for length, members in _group_by_length([len(prompt) for prompt in prompts], SHORTEST_PROMPT_ROW):
        new = requests[members[0]].max_new_tokens
        batch = _batch_size(len(members), length + new, limits.batch_tokens, _batch_ways(model.axes))
        for start in range(0, len(members), batch):
            chosen = members[start : start + batch]
            rows = [prompts[i] for i in chosen]
            for i, ids in zip(chosen, _generate_rows(model, rows, requests[chosen[0]], (batch, length)), strict=True):
                answers[i] = Generated(ids, len(ids) < new, len(prompts[i]) < len(requests[i].prompt))
    return [answer for answer in answers if answer is not None]


@functools.partial(jax.jit, static_argnames=("cfg", "axes", "compute"))
def score_rows(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    at_BK: Int[Array, "B K"],
    targets_BK: Int[Array, "B K"],
    *,
    compute: ComputeConfig,
) -> tuple[Float[Array, "B K"], Bool[Array, "B K"]]:
    """-log p of each target as the token after its position (nats, float32), and whether it is the likeliest.

    The target's logit is picked by a masked sum, which works on a sharded vocabulary where a gather does not.
    """
    logits_BKV = apply(cfg, axes, params, tokens_BT, segments_BT, positions_BT, at_BK=at_BK, compute=compute)
    is_target_BKV = jnp.arange(cfg.padded_vocab)[None, None, :] == targets_BK[:, :, None]
    picked_BK = jnp.sum(jnp.where(is_target_BKV, logits_BKV, 0.0), axis=-1)
    nll_BK = jax.nn.logsumexp(logits_BKV, axis=-1) - picked_BK
    return nll_BK, picked_BK >= jnp.max(logits_BKV, axis=-1)


def _generate_rows(
    model: Model, prompts: Sequence[np.ndarray], request: Generate, shape: tuple[int, int]
) -> list[list[int]]:
    """The continuations of these prompts in one batch of `shape`; rows that fill it up are left out again."""
    prompts_BT = np.zeros(shape, np.int32)
    lengths_B = np.ones(shape[0], np.int32)
    for row, prompt in enumerate(prompts):
        prompts_BT[row, : len(prompt)] = prompt
        lengths_B[row] = len(prompt)
    # A filler row repeats the first prompt: it stops when that one does and never keeps the batch going.
    prompts_BT[len(prompts) :] = prompts_BT[0]
    lengths_B[len(prompts) :] = lengths_B[0]
    tokens_BN, counts_B = generate(
        model.cfg,
        model.axes,
        model.params,
        *_place(model.axes, (prompts_BT, lengths_B)),
        max_new_tokens=request.max_new_tokens,
        stop_ids=request.stop_ids,
        compute=model.compute,
    )
    rows, counts = np.asarray(tokens_BN), np.asarray(counts_B)
    return [rows[i, : counts[i]].tolist() for i in range(len(prompts))]


def _score_batches(requests: Sequence[Score], batch_tokens: int, ways: int) -> Iterator[_Rows]:
    """Batches of packed rows that together hold every request once."""
    lengths = [len(request.ids) - 1 for request in requests]
    counts = [int(request.weights.sum()) for request in requests]
    for length, members in _group_by_length(lengths, SHORTEST_SCORE_ROW):
        bins = [[members[i] for i in row] for row in pack_best_fit([lengths[i] for i in members], length)]
        slots = _round_up(max(sum(counts[i] for i in row) for row in bins), 16)
        batch = _batch_size(len(bins), length, batch_tokens, ways)
        for start in range(0, len(bins), batch):
            yield _fill_rows(requests, bins[start : start + batch], (batch, length, slots))


def _fill_rows(requests: Sequence[Score], bins: Sequence[Sequence[int]], shape: tuple[int, int, int]) -> _Rows:
    """The arrays of some bins.

    Ids (1 5 6 7) asking for 6 and 7, then (1 8) asking for 8, in a row of T = 5 with K = 4 slots:

        tokens 1 5 6 1 0   segments 1 1 1 2 0   positions 0 1 2 0 0
        at     1 2 3 0     targets  6 7 8 0     owner     0 0 1 -1
    """
    batch, length, slots = shape
    rows = _Rows(
        tokens_BT=np.zeros((batch, length), np.int32),
        segments_BT=np.zeros((batch, length), np.int32),
        positions_BT=np.zeros((batch, length), np.int32),
        at_BK=np.zeros((batch, slots), np.int32),
        targets_BK=np.zeros((batch, slots), np.int32),
        owner_BK=np.full((batch, slots), -1, np.int32),
    )
    for b, members in enumerate(bins):
        start = slot = 0
        for segment, owner in enumerate(members, 1):
            ids, weights = requests[owner]
            end = start + len(ids) - 1
            rows.tokens_BT[b, start:end] = ids[:-1]
            rows.segments_BT[b, start:end] = segment
            rows.positions_BT[b, start:end] = np.arange(end - start)
            asked = np.flatnonzero(weights[1:])
            slice_ = slice(slot, slot + len(asked))
            rows.at_BK[b, slice_] = start + asked
            rows.targets_BK[b, slice_] = ids[1:][asked]
            rows.owner_BK[b, slice_] = owner
            start, slot = end, slot + len(asked)
    return rows


def _cut_score(request: Score, max_length: int) -> Score:
    ids, weights = request
    if len(ids) <= max_length + 1:
        return request
    return Score(_cut_left(ids, max_length + 1), _cut_left(weights, max_length + 1))


def _cut_left(ids: np.ndarray, max_length: int) -> np.ndarray:
    """`ids` with those after the first (the beginning-of-text id) left out until `max_length` remain."""
    return ids if len(ids) <= max_length else np.concatenate([ids[:1], ids[len(ids) - max_length + 1 :]])


def _group_by_length(lengths: Sequence[int], shortest: int) -> list[tuple[int, list[int]]]:
    """(row length, indices that fit it and no shorter one, longest first) for row lengths shortest * 2**n."""
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        groups.setdefault(max(shortest, _power_of_two(lengths[i])), []).append(i)
    return list(groups.items())


def _batch_size(rows: int, length: int, batch_tokens: int, ways: int) -> int:
    """Rows of a batch: a power of two times `ways`, within the token budget, no larger than the rows need."""
    budget = max(1, batch_tokens // (length * ways))
    largest = 1 << (budget.bit_length() - 1)
    return ways * min(largest, _power_of_two(-(-rows // ways)))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _batch_ways(axes: AxisRules) -> int:
    """How many ways the mesh in use splits a batch."""
    return ways(axes.batch, jax.sharding.get_mesh())


def _place(axes: AxisRules, arrays: Sequence[np.ndarray]) -> list[Any]:
    """The arrays on the devices of the mesh in use, split over rows."""
    mesh = jax.sharding.get_mesh()
    specs = (axes.spec("batch", *(None,) * (array.ndim - 1)) for array in arrays)
    return [
        jax.device_put(array, jax.sharding.NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)
    ]
