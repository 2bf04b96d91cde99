"""Whole examples into rows of fixed length: best-fit decreasing, from lengths alone."""

from collections.abc import Sequence

import numpy as np

from data.schema import DataError


def pack_best_fit(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Bins of indices into `lengths`, none longer in total than `row_length`, every index in exactly one.

    Longest first, each into the fullest bin it still fits (the latest filled of equals); indices rise within
    a bin and bins come in the order they were opened. Lengths (5, 3, 7, 2, 3) in rows of 10: 7 and 5 open a
    bin each, the first 3 fills up the 7, the other 3 and the 2 the 5, which gives [[1, 2], [0, 3, 4]].

    Free space is kept as one integer whose bit `f` says that some bin has `f` positions left, so finding the
    tightest bin is a shift and a lowest set bit instead of a search over bins.

    Raises DataError for a length below 1 or above `row_length`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    _check_lengths(sizes, row_length)
    bins: list[list[int]] = []
    bins_with_free: list[list[int]] = [[] for _ in range(row_length + 1)]
    free_mask = 0
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        fitting = free_mask >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            stack = bins_with_free[free]
            chosen = stack.pop()
            if not stack:
                free_mask ^= 1 << free
        else:
            free, chosen = row_length, len(bins)
            bins.append([])
        bins[chosen].append(index)
        left = free - size
        if left:
            bins_with_free[left].append(chosen)
            free_mask |= 1 << left
    for members in bins:
        members.sort()
    return bins


def pack_one_each(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """One bin per index, in order: the unpacked form of the same stream. Raises like `pack_best_fit`."""
    sizes = np.asarray(lengths, dtype=np.int64)
    _check_lengths(sizes, row_length)
    return [[index] for index in range(len(sizes))]


def padding_share(tokens: int, rows: int, row_length: int) -> float:
    """Share of all positions that hold padding, in [0, 1]; 0 for no rows."""
    return 1.0 - tokens / (rows * row_length) if rows else 0.0


def _check_lengths(sizes: np.ndarray, row_length: int) -> None:
    wrong = np.flatnonzero((sizes < 1) | (sizes > row_length))
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"example {index} fills {int(sizes[index])} positions; a row takes 1 to {row_length}. "
            "Drop it before packing or raise data.packing.row_length"
        )
