"""Packing keeps every example whole and exactly once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.packing import assign_best_fit, assign_one_each, pack_best_fit, padding_share
from data.schema import DataError

ROW_LENGTHS = st.integers(1, 64)


def draw_lengths(data, row_length):
    return data.draw(st.lists(st.integers(1, row_length), max_size=80))


def first_fit_bins(lengths, row_length):
    """Bins that first-fit decreasing opens, written the obvious way."""
    free = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, left in enumerate(free) if left >= length]
        if fitting:
            free[fitting[0]] -= length
        else:
            free.append(row_length - length)
    return len(free)


@pytest.mark.parametrize(
    "lengths, row_length, expected",
    [
        ([], 10, []),
        ([10], 10, [[0]]),
        ([5, 3, 7, 2, 3], 10, [[1, 2], [0, 3, 4]]),
        ([6, 4, 5, 5, 4], 10, [[0, 1], [2, 3], [4]]),
        ([1, 1, 1], 2, [[0, 1], [2]]),
        # Best fit puts the 2 with the 8, where it fills the row, not with the older 7.
        ([7, 8, 2], 10, [[1, 2], [0]]),
    ],
)
def test_known_packings(lengths, row_length, expected):
    assert pack_best_fit(lengths, row_length) == expected


@given(st.data(), ROW_LENGTHS)
def test_no_example_is_lost_doubled_or_cut(data, row_length):
    lengths = draw_lengths(data, row_length)
    bins = pack_best_fit(lengths, row_length)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in members) <= row_length for members in bins)
    assert all(members == sorted(members) for members in bins)


@given(st.data(), ROW_LENGTHS)
def test_no_two_bins_could_be_one(data, row_length):
    lengths = draw_lengths(data, row_length)
    filled = sorted(sum(lengths[i] for i in members) for members in pack_best_fit(lengths, row_length))
    if len(filled) > 1:
        assert filled[0] + filled[1] > row_length


@given(st.data(), ROW_LENGTHS)
def test_the_length_index_finds_the_bins_a_search_finds(data, row_length):
    """A bit off in the free-space mask would show as more bins than the naive search needs."""
    lengths = draw_lengths(data, row_length)
    bins = len(pack_best_fit(lengths, row_length))
    # Both are within 11/9 of the best, so they cannot be further apart than that either.
    assert bins <= 11 / 9 * first_fit_bins(lengths, row_length) + 1
    assert bins >= -(-sum(lengths) // row_length)


def test_same_lengths_same_bins():
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    assert pack_best_fit(lengths, 256) == pack_best_fit(lengths.tolist(), 256)


def test_rows_are_full_on_realistic_lengths():
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(60), 0.8, 20_000).astype(int), 4, 512)
    bins = pack_best_fit(lengths, 512)
    assert padding_share(int(lengths.sum()), len(bins), 512) < 0.001


@pytest.mark.parametrize("pack", [assign_best_fit, assign_one_each, pack_best_fit])
@pytest.mark.parametrize("lengths, name", [([3, 11], "example 1 fills 11"), ([0], "example 0 fills 0")])
def test_a_length_that_no_row_takes_is_an_error_not_a_cut(pack, lengths, name):
    with pytest.raises(DataError, match=f"{name} positions; a row takes 1 to 10"):
        pack(lengths, 10)


def test_unpacked_is_one_example_a_row_in_order():
    assert assign_one_each([3, 9, 1], 10).tolist() == [0, 1, 2]


def test_padding_share_counts_positions():
    assert padding_share(30, 4, 10) == 0.25
    assert padding_share(0, 0, 10) == 0.0
