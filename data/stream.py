"""The stream of rows a mixture defines: quotas, visits, packing and shuffling, block by block, stage by stage."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.config import PackingConfig
from data.packing import assign_best_fit, assign_one_each
from data.pinch import NO_PINCH, Pinch
from data.quotas import NO_LIMIT, draw_block, start_quotas
from data.schema import DataError
from data.stages import Stage
from data.visits import Visits, key_for, shuffled


class Block(NamedTuple):
    """Rows, end to end: row r of them holds the next `counts[r]` of `examples`."""

    examples: np.ndarray
    counts: np.ndarray


class Supply(NamedTuple):
    """What there is to draw from: C cells of a dataset of N examples."""

    lengths_N: np.ndarray
    cell_N: np.ndarray
    names: Sequence[tuple[str, str]]
    """Source and language of each cell: they make its order its own, whatever other cells there are."""
    limit_C: np.ndarray | None = None
    """How many examples each cell gives at most, int64; None: any number."""


class _Drawn(NamedTuple):
    """Examples of one block. `entry` is the place in the pinch, or -1 less the number of blocks that have passed it."""

    examples: np.ndarray
    entry: np.ndarray


FRESH = -1
MIN_BLOCK_EXAMPLES, MIN_BLOCK_ROWS = 1024, 32
# How often an example may be in the emptiest row of its block, which is taken apart.
MOST_WAITS = 4


class _Rows(NamedTuple):
    """A packed block: its rows in order, each with its examples, and what the next block begins with."""

    drawn: _Drawn
    counts: np.ndarray
    carried: _Drawn


NOTHING = _Drawn(np.empty(0, np.int64), np.empty(0, np.int64))


def stream_rows(
    supply: Supply,
    stages: Sequence[Stage],
    packing: PackingConfig,
    *,
    seed: int,
    leave: bool = True,
    pinch: Pinch = NO_PINCH,
) -> Iterator[Block]:
    """Blocks of rows, the same for equal arguments; without end unless the last stage or the supply has one.

    Every block draws `block_size` examples, so quotas are met exactly in what is drawn through its end and
    only roughly inside it. The emptiest row of a block is taken apart and its examples come in the next one. A
    stage begins with a new block at its very row: what was drawn and not used by then is given back. Where cells are
    used up the others go on if `leave`, else the stream ends; it ends too when nobody is left, and then nothing that
    was drawn is missing. A pinch's examples come in or near the row that they are due in, and all of them before the
    end of the last stage.
    """
    order = np.argsort(supply.cell_N, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(supply.cell_N, minlength=len(supply.names)))[:-1])
    visits = [Visits(own, key_for(seed, "visits", *name)) for own, name in zip(members, supply.names, strict=True)]
    left_C = np.full(len(visits), NO_LIMIT) if supply.limit_C is None else supply.limit_C.astype(np.int64)
    size = block_size(supply.lengths_N, packing)
    row = block = 0
    for stage in stages:
        quotas = start_quotas(stage.parts_of(left_C > 0), left_C)
        carried = NOTHING
        while stage.end_row is None or row < stage.end_row:
            quotas, counts_C = draw_block(quotas, size, stage.parts_of, leave=leave)
            fresh = [visits[index].take(int(counts_C[index])) for index in np.flatnonzero(counts_C).tolist()]
            drawn = _Drawn(
                np.concatenate([carried.examples, *fresh]),
                np.concatenate([carried.entry, np.full(int(counts_C.sum()), FRESH)]),
            )
            ended = int(counts_C.sum()) < size
            room = None if stage.end_row is None else stage.end_row - row
            rows = _pack_block(
                supply.lengths_N, drawn, packing, pinch=pinch, row=row, room=room, ended=ended,
                last=stage is stages[-1], keys=(key_for(seed, "examples", block), key_for(seed, "rows", block)),
            )  # fmt: skip
            served, unserved = _cut(rows, room)
            yield Block(served.drawn.examples, served.counts)
            pinch = _leave_pinch(pinch, served.drawn.entry)
            row, block, carried = row + len(served.counts), block + 1, rows.carried
            if stage.end_row is not None and row >= stage.end_row:
                # Nothing is carried into the next stage: what was drawn for this one and not used goes back.
                back = unserved.drawn.examples[unserved.drawn.entry < 0]
                left_C = _give_back(np.concatenate((carried.examples, back)), visits, supply.cell_N, quotas.left_C)
            elif ended:
                return


def block_size(lengths_N: np.ndarray, packing: PackingConfig) -> int:
    """Examples of a block: as the recipe says, else enough for rows that are full and few enough to follow the mixture.

    On real data in 235 languages 1,024 fill rows of 512 to 99.6% and of 2,048 to 99.7%; 4,096 add 0.1%.
    """
    if packing.block_examples is not None:
        return packing.block_examples
    if not packing.packed:
        return MIN_BLOCK_EXAMPLES
    return max(MIN_BLOCK_EXAMPLES, math.ceil(MIN_BLOCK_ROWS * packing.row_length / float(lengths_N.mean())))


def _pack_block(
    lengths_N: np.ndarray,
    drawn: _Drawn,
    packing: PackingConfig,
    *,
    pinch: Pinch,
    row: int,
    room: int | None,
    ended: bool,
    last: bool,
    keys: tuple[int, int],
) -> _Rows:
    """The drawn examples, and of the pinch those that are due, in shuffled rows."""
    due = _count_due(lengths_N, drawn, packing, pinch, row)
    rows = _pack_rows(lengths_N, _add_pinch(drawn, pinch, due), packing, keys=keys, carry=not ended)
    final = last and len(pinch.due) > 0 and room is not None and (ended or len(rows.counts) >= room)
    if final and due < len(pinch.due):
        # No later block can take them.
        due = len(pinch.due)
        rows = _pack_rows(lengths_N, _add_pinch(drawn, pinch, due), packing, keys=keys, carry=not ended)
    return _place_pinch(rows, pinch, row=row, room=room if final else None) if due else rows


def _count_due(lengths_N: np.ndarray, drawn: _Drawn, packing: PackingConfig, pinch: Pinch, row: int) -> int:
    """How many of the pinch are due in the rows that the drawn examples, and these themselves, are likely to fill."""
    if not len(pinch.due):
        return 0
    if packing.packed:
        drawn_rows = lengths_N[drawn.examples].sum() / packing.row_length
        own_rows = np.cumsum(lengths_N[pinch.examples]) / packing.row_length
    else:
        drawn_rows, own_rows = len(drawn.examples), np.arange(1, len(pinch.due) + 1)
    # Due before the row that the block ends at if it holds all that are due before.
    ends = row + np.maximum(drawn_rows + own_rows, 1)
    late = np.flatnonzero(pinch.due >= ends)
    return int(late[0]) if len(late) else len(pinch.due)


def _pack_rows(
    lengths_N: np.ndarray, drawn: _Drawn, packing: PackingConfig, *, keys: tuple[int, int], carry: bool
) -> _Rows:
    """Mixed, packed, and the rows shuffled; the emptiest row is carried, unless some example has waited too often."""
    # Mixed before packing, so that equally long examples meet in no order of cells; those that have waited go first, so
    # that they are in no emptiest row again if anybody else can be.
    mixed = shuffled(keys[0], len(drawn.examples))
    mixed = mixed[np.argsort(drawn.entry[mixed] >= FRESH, kind="stable")]
    examples, entry = drawn.examples[mixed], drawn.entry[mixed]
    assign = assign_best_fit if packing.packed else assign_one_each
    bin_N = assign(lengths_N[examples], packing.row_length)
    bins = int(bin_N.max()) + 1 if len(bin_N) else 0
    kept = np.ones(bins, bool)
    if carry and packing.packed and bins:
        filled = np.bincount(bin_N, weights=lengths_N[examples])
        filled[bin_N[(entry >= 0) | (FRESH - entry >= MOST_WAITS)]] = packing.row_length
        # Of equals the one opened last, which holds the fewest that have waited.
        emptiest = bins - 1 - int(np.argmin(filled[::-1]))
        kept[emptiest] = filled[emptiest] >= packing.row_length
    # Best fit opens bins for the longest first; a run cut inside a block must not end on the short ones.
    places = np.full(bins, bins)
    places[np.flatnonzero(kept)[shuffled(keys[1], int(kept.sum()))]] = np.arange(int(kept.sum()))
    by_row = np.argsort(places[bin_N], kind="stable")
    counts = np.bincount(places[bin_N], minlength=bins)
    inside = int(counts[: kept.sum()].sum())
    ordered = _Drawn(examples[by_row], entry[by_row])
    carried = _Drawn(ordered.examples[inside:], ordered.entry[inside:] - 1)
    return _Rows(_Drawn(ordered.examples[:inside], ordered.entry[:inside]), counts[: kept.sum()], carried)


def _add_pinch(drawn: _Drawn, pinch: Pinch, due: int) -> _Drawn:
    if not due:
        return drawn
    return _Drawn(np.concatenate((drawn.examples, pinch.examples[:due])), np.concatenate((drawn.entry, np.arange(due))))


def _place_pinch(rows: _Rows, pinch: Pinch, *, row: int, room: int | None) -> _Rows:
    """The rows that hold a pinch's examples moved to where the first of them is due, at the latest before `room`."""
    row_of = np.repeat(np.arange(len(rows.counts)), rows.counts)
    held = rows.drawn.entry >= 0
    due_R = np.full(len(rows.counts), np.inf)
    np.minimum.at(due_R, row_of[held], pinch.due[rows.drawn.entry[held]])
    pinned = np.flatnonzero(np.isfinite(due_R))
    pinned = pinned[np.argsort(due_R[pinned], kind="stable")]
    limit = len(rows.counts) if room is None else min(room, len(rows.counts))
    if len(pinned) > limit:
        raise DataError(
            f"the pinch's examples fill {len(pinned)} rows at the end of the run, where {limit} are left; ask for "
            "fewer in data.mixture.pinch, or train longer"
        )
    # Each at its own row or the next free one, and none so late that those after it have no place.
    steps = np.arange(len(pinned))
    places = np.maximum(due_R[pinned] - row, 0).astype(np.int64)
    places = np.maximum.accumulate(places - steps) + steps
    places = np.minimum(places, limit - len(pinned) + steps)
    order = np.full(len(rows.counts), -1)
    order[places] = pinned
    order[order < 0] = np.flatnonzero(np.isinf(due_R))
    return _reorder(rows, order)


def _reorder(rows: _Rows, order: np.ndarray) -> _Rows:
    starts = np.cumsum(rows.counts) - rows.counts
    counts = rows.counts[order]
    ends = np.cumsum(counts)
    take = np.arange(int(counts.sum())) - np.repeat(ends - counts - starts[order], counts)
    return _Rows(_Drawn(rows.drawn.examples[take], rows.drawn.entry[take]), counts, rows.carried)


def _cut(rows: _Rows, room: int | None) -> tuple[_Rows, _Rows]:
    """The rows before `room`, and those after."""
    at = len(rows.counts) if room is None else min(room, len(rows.counts))
    split = int(rows.counts[:at].sum())
    head = _Drawn(rows.drawn.examples[:split], rows.drawn.entry[:split])
    tail = _Drawn(rows.drawn.examples[split:], rows.drawn.entry[split:])
    return _Rows(head, rows.counts[:at], rows.carried), _Rows(tail, rows.counts[at:], rows.carried)


def _leave_pinch(pinch: Pinch, served: np.ndarray) -> Pinch:
    """The pinch without its served entries."""
    open_ = np.ones(len(pinch.due), bool)
    open_[served[served >= 0]] = False
    return Pinch(pinch.examples[open_], pinch.due[open_])


def _give_back(examples: np.ndarray, visits: Sequence[Visits], cell_N: np.ndarray, left_C: np.ndarray) -> np.ndarray:
    """Puts examples in front of their cells' next; how many each cell may then give."""
    cell = cell_N[examples]
    left_C = left_C.copy()
    for index in np.unique(cell).tolist():
        own = examples[cell == index]
        visits[index].give_back(own)
        left_C[index] += len(own) if left_C[index] != NO_LIMIT else 0
    return left_C
