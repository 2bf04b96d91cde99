"""Whole examples into rows of fixed length: best-fit decreasing, from lengths alone."""

from collections.abc import Sequence

import numpy as np

from data.schema import DataError


def assign_best_fit(lengths: Sequence[int] | np.ndarray, row_length: int) -> np.ndarray:
    """Which bin each index goes to, int64, bins numbered as they are opened; none is fuller than `row_length`.

    Longest first, each into the fullest bin it still fits (the latest filled of equals, which is then filled on as long
    as equally long ones fit). Lengths (5, 3, 7, 2, 3) in rows of 10: 7 and 5 open a bin each, the first 3 fills up the
    7, the other 3 and the 2 the 5, which gives bins (1, 0, 0, 1, 1).

    Equal lengths are placed at once: what each bin takes of them is a division. Free space is kept as one integer whose
    bit `f` says that some bin has `f` positions left, so finding the tightest bin is a shift and a lowest set bit.

    Raises DataError for a length below 1 or above `row_length`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    _check_lengths(sizes, row_length)
    order = np.argsort(-sizes, kind="stable")
    counts = np.bincount(sizes)
    present = np.flatnonzero(counts)[::-1]
    # Runs of one bin: how many of the sorted examples it takes, one run after the other.
    run_bins: list[int] = []
    run_sizes: list[int] = []
    bins_with_free: list[list[int]] = [[] for _ in range(row_length + 1)]
    free_mask, opened = 0, 0
    for size, waiting in zip(present.tolist(), counts[present].tolist(), strict=True):
        while waiting:
            fitting = free_mask >> size
            if fitting:
                free = size + (fitting & -fitting).bit_length() - 1
                stack = bins_with_free[free]
                chosen = stack.pop()
                if not stack:
                    free_mask ^= 1 << free
            else:
                free, chosen = row_length, opened
                opened += 1
            taken = min(waiting, free // size)
            run_bins.append(chosen)
            run_sizes.append(taken)
            waiting -= taken
            left = free - taken * size
            if left:
                bins_with_free[left].append(chosen)
                free_mask |= 1 << left
    bin_N = np.empty(len(sizes), np.int64)
    bin_N[order] = np.repeat(np.array(run_bins, np.int64), np.array(run_sizes, np.int64))
    return bin_N


def assign_one_each(lengths: Sequence[int] | np.ndarray, row_length: int) -> np.ndarray:
    """One bin per index, in order: the unpacked form of the same stream. Raises like `assign_best_fit`."""
    sizes = np.asarray(lengths, dtype=np.int64)
    _check_lengths(sizes, row_length)
    return np.arange(len(sizes))


def pack_best_fit(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """The bins of `assign_best_fit` as lists of indices, rising within a bin: [[1, 2], [0, 3, 4]] in its example."""
    bin_N = assign_best_fit(lengths, row_length)
    ends = np.cumsum(np.bincount(bin_N)).tolist()
    members = np.argsort(bin_N, kind="stable").tolist()
    return [members[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


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
