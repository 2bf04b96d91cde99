"""Shares to whole numbers of examples, block by block, exactly and for ever."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data.mixture import Cell, Mixed, amount_of

# Draw shares are integers of this many bits, so quotas are exact integer arithmetic on every platform.
SHARE_BITS = 32
WHOLE = 1 << SHARE_BITS
NO_LIMIT = 1 << 62
# Quotas are products of a share and a number of draws in 63 bits.
MAX_BLOCK = 1 << 30


class Quotas(NamedTuple):
    """Where the draws from C cells stand."""

    parts_C: np.ndarray
    """Share of the next draws, int64 of 2**-32, summing to one."""
    credit_C: np.ndarray
    """Exact share of all draws so far less examples drawn, int64 of 2**-32 examples; sums to zero."""
    left_C: np.ndarray
    """How many more examples each cell may give, int64; `NO_LIMIT` for any number."""


def draw_shares(cells: Sequence[Cell], shares_C: np.ndarray, unit: str) -> np.ndarray:
    """Share of *examples* to draw from each cell so that `unit` comes out as `shares_C`; integers of 2**-32.

    A cell with long examples needs fewer of them: draws are proportional to share / mean amount per
    example. Half the target tokens from examples of 30 and half from examples of 10 are draws of 1 : 3.
    Positive shares stay positive.
    """
    mean_C = np.array([amount_of(cell, unit) / cell.examples for cell in cells])
    draws_C = shares_C / mean_C
    parts_C = np.floor(draws_C / draws_C.sum() * WHOLE).astype(np.int64)
    parts_C[(parts_C == 0) & (draws_C > 0)] = 1
    parts_C[np.argmax(parts_C)] += WHOLE - int(parts_C.sum())
    return parts_C


def redeal(mixed: Mixed, open_C: np.ndarray) -> np.ndarray:
    """The shares when only some cells can still give: a group's cells stand in for one another, then groups do.

    All zeros when none can.
    """
    kept_C = np.where(open_C, mixed.shares_C, 0.0)
    before_G = np.bincount(mixed.group_C, weights=mixed.shares_C)
    after_G = np.bincount(mixed.group_C, weights=kept_C)
    scale_G = np.divide(before_G, after_G, out=np.zeros_like(before_G), where=after_G > 0)
    shares_C = kept_C * scale_G[mixed.group_C]
    return shares_C / shares_C.sum() if shares_C.any() else shares_C


def start_quotas(parts_C: np.ndarray, left_C: np.ndarray | None = None) -> Quotas:
    """Quotas from which nothing has been drawn."""
    left_C = np.full(len(parts_C), NO_LIMIT) if left_C is None else left_C
    return Quotas(parts_C, np.zeros(len(parts_C), np.int64), left_C)


def draw_block(
    quotas: Quotas, size: int, shares_of: Callable[[np.ndarray], np.ndarray], *, leave: bool
) -> tuple[Quotas, np.ndarray]:
    """The next `size` examples of the mixture, as counts by cell that may sum to fewer, because cells are used up.

    `shares_of` gives the parts when only the cells of a mask can still give. With `leave` the others go on until
    nobody is left; without, the first cell that is used up ends it.
    """
    assert 0 <= size < MAX_BLOCK
    counts_C = np.zeros(len(quotas.parts_C), np.int64)
    while size and quotas.parts_C.any():
        step = min(size, _draws_until_limit(quotas))
        step_C = _next_counts(quotas, step)
        parts_C, left_C = quotas.parts_C, quotas.left_C - np.where(quotas.left_C == NO_LIMIT, 0, step_C)
        credit_C = quotas.credit_C + parts_C * step - (step_C << SHARE_BITS)
        counts_C += step_C
        size -= step
        gone_C = (parts_C > 0) & (left_C == 0)
        if gone_C.any():
            parts_C = shares_of(left_C > 0) if leave else np.zeros_like(parts_C)
        quotas = Quotas(parts_C, credit_C, left_C)
    return quotas, counts_C


def _draws_until_limit(quotas: Quotas) -> int:
    """How many draws there are before the exact share of some cell is all that it has left; at least 1."""
    open_C = np.flatnonzero(quotas.parts_C > 0)
    limited = open_C[quotas.left_C[open_C] < MAX_BLOCK]
    if not len(limited):
        return MAX_BLOCK
    room = (quotas.left_C[limited] << SHARE_BITS) - quotas.credit_C[limited]
    until = max(1, int((room // quotas.parts_C[limited]).min()))
    # What cells that left have not given is owed by nobody: no more than there is.
    return min(until, int(quotas.left_C[open_C].sum())) if len(limited) == len(open_C) else until


def _next_counts(quotas: Quotas, size: int) -> np.ndarray:
    """Whole numbers that sum to `size`, each within one example of its exact share of everything drawn so far.

    The error of one block is carried into the next: no cell falls behind for ever, however small its share. Of the
    cells whose share is not a whole number, those whose next example is due first are rounded up. That order
    (earliest deadline first) is what makes the bound hold; plain largest remainders would at times have to take
    examples back. Where cells have left, those that remain may be off by one more for a while.
    Source: the quota method of Balinski and Young, American Mathematical Monthly 82 (1975).
    """
    parts_C, credit_C, left_C = quotas
    exact_C = credit_C + parts_C * size
    counts_C = np.clip(exact_C >> SHARE_BITS, 0, left_C)
    missing = size - int(counts_C.sum())
    behind_C = (parts_C > 0) & (exact_C > counts_C << SHARE_BITS)
    while missing > 0:
        # Those behind their share first; where they do not suffice, whoever has a share.
        open_C = np.flatnonzero((parts_C > 0) & (counts_C < left_C))
        due_C = (((counts_C[open_C] + 1) << SHARE_BITS) - exact_C[open_C]) / parts_C[open_C]
        chosen = open_C[np.lexsort((due_C, ~behind_C[open_C]))[:missing]]
        counts_C[chosen] += 1
        missing -= len(chosen)
    while missing < 0:
        held_C = np.flatnonzero((counts_C > 0) & (parts_C > 0))
        ahead_C = (exact_C[held_C] - (counts_C[held_C] << SHARE_BITS)) / parts_C[held_C]
        chosen = held_C[np.argsort(ahead_C, kind="stable")[:-missing]]
        counts_C[chosen] -= 1
        missing += len(chosen)
    return counts_C
