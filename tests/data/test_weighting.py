"""Golden numbers of the published ways of weighing, worked by hand elsewhere, and what no shares can meet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import DataError
from data.weighting import (
    bounded_shares,
    budgets,
    filling_budget,
    power_shares,
    taylor_softmax_shares,
    unimax_shares,
)

SIZES = np.array([1000.0, 100.0, 10.0])


@pytest.mark.parametrize(
    "amounts, exponent, expected",
    [
        (SIZES, 0.3, [0.570654, 0.286004, 0.143342]),
        (np.minimum(SIZES, 200), 1.0, [0.645161, 0.322581, 0.032258]),
        (np.minimum(SIZES, 200), 1 / 2, [0.517943, 0.366241, 0.115816]),
    ],
)
def test_capped_and_tempered_shares_of_t5_and_mt5(amounts, exponent, expected):
    np.testing.assert_allclose(power_shares(amounts, exponent), expected, atol=1e-6)


def test_a_power_of_huge_and_tiny_amounts_neither_overflows_nor_vanishes():
    shares = power_shares(np.array([1e300, 1e-8]), 1 / 100)
    assert shares[1] > 1e-4
    assert shares.sum() == pytest.approx(1)


def test_unimax_golden_values_of_a_budget_that_is_filled():
    dealt = unimax_shares(SIZES, 600, 4)
    assert dealt.amounts_G.tolist() == [280, 280, 40]
    np.testing.assert_allclose(dealt.shares_G, [0.466667, 0.466667, 0.066667], atol=1e-6)
    assert dealt.unfilled == 0


def test_unimax_golden_values_of_a_budget_that_is_not():
    dealt = unimax_shares(SIZES, 9000, 4)
    assert dealt.amounts_G.tolist() == [4000, 400, 40]
    assert dealt.unfilled == 4560


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.floats(1, 1e7), st.floats(0.5, 10))
def test_unimax_deals_out_its_budget_equally_to_all_who_can_take_it(sizes, budget, epochs):
    sizes = np.array(sizes, float)
    dealt = unimax_shares(sizes, budget, epochs)
    assert dealt.amounts_G.sum() + dealt.unfilled == pytest.approx(budget)
    assert (dealt.amounts_G <= epochs * sizes * (1 + 1e-12)).all()
    below = dealt.amounts_G[dealt.amounts_G < epochs * sizes * (1 - 1e-9)]
    np.testing.assert_allclose(below, below.max() if len(below) else 0)
    assert below.max(initial=0) >= dealt.amounts_G.max() * (1 - 1e-9) or not len(below)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 50)), min_size=1, max_size=12), st.floats(10, 1e5))
def test_the_budget_that_fills_the_rows_fills_them(sizes, positions):
    """Sizes in characters, rows in tokens: languages need unlike numbers of tokens for as much text."""
    amounts = np.array([size for size, _ in sizes], float)
    tokens = amounts * [per_unit for _, per_unit in sizes]
    budget = filling_budget(amounts, tokens, 4, positions)
    dealt = unimax_shares(amounts, budget, 4)
    filled = (dealt.amounts_G * tokens / amounts).sum()
    if dealt.unfilled > 1e-6 * budget:
        assert filled == pytest.approx(4 * tokens.sum())
        assert filled < positions
    else:
        assert filled == pytest.approx(positions, rel=1e-6)


def test_taylor_softmax_golden_values_of_smart():
    shares = taylor_softmax_shares(np.array([3, 1, 0.5]))
    np.testing.assert_allclose(shares, [0.673267, 0.198020, 0.128713], atol=1e-6)
    assert budgets(shares, 100).tolist() == [68, 20, 12]


@pytest.mark.parametrize(
    "shares, total, capacities, expected",
    [
        ([0.5, 0.3, 0.2], 10, [2, 10, 10], [2, 5, 3]),
        ([0.5, 0.3, 0.2], 10, [2, 3, 10], [2, 3, 5]),
        ([0.5, 0.25, 0.25], 8, [1, 3, 10], [1, 3, 4]),
        ([1.0, 0.0], 5, [5, 5], [5, 0]),
        ([0.5, 0.5], 6, [3, 3], [3, 3]),
    ],
)
def test_what_is_over_a_capacity_is_dealt_out_again_one_by_one(shares, total, capacities, expected):
    assert budgets(np.array(shares), total, np.array(capacities)).tolist() == expected


@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 60)), min_size=1, max_size=15), st.integers(0, 200))
def test_budgets_sum_to_the_total_and_fit(tasks, total):
    shares = np.array([share for share, _ in tasks])
    capacities = np.array([capacity for _, capacity in tasks])
    if capacities.sum() < total:
        with pytest.raises(DataError, match=f"a budget of {total} from {capacities.sum()} in all"):
            budgets(shares / shares.sum(), total, capacities)
        return
    dealt = budgets(shares / shares.sum(), total, capacities)
    assert dealt.sum() == total
    assert (dealt <= capacities).all()
    assert (dealt >= np.minimum(np.floor(shares / shares.sum() * total), capacities)).all()


@pytest.mark.parametrize(
    "shares, lower, upper, expected",
    [
        ([0.7, 0.2, 0.1], [0.15] * 3, [1] * 3, [0.85 * 7 / 9, 0.85 * 2 / 9, 0.15]),
        ([0.7, 0.2, 0.1], [0] * 3, [0.5] * 3, [0.5, 1 / 3, 1 / 6]),
        # Capping the first pushes the second over, which a single pass misses.
        ([0.6, 0.35, 0.05], [0] * 3, [0.4] * 3, [0.4, 0.4, 0.2]),
        ([0.6, 0.3, 0.1], [0, 0, 0.25], [0.5, 1, 1], [0.5, 0.25, 0.25]),
        ([0.5, 0.5], [0.3, 0.7], [0.3, 0.7], [0.3, 0.7]),
        ([0.9, 0.1], [0.5, 0.5], [1, 1], [0.5, 0.5]),
    ],
)
def test_floors_and_ceilings_by_hand(shares, lower, upper, expected):
    bounded = bounded_shares(np.array(shares), np.array(lower, float), np.array(upper, float))
    np.testing.assert_allclose(bounded, expected, atol=1e-12)


@given(
    st.lists(
        st.tuples(st.floats(1e-4, 1), st.floats(0, 0.3), st.floats(0.0, 1)), min_size=1, max_size=20
    )
)  # fmt: skip
def test_bounded_shares_keep_their_ratios_between_the_bounds(rows):
    shares, lower, more = np.array(rows).T
    upper = np.minimum(lower + more, 1)
    shares = shares / shares.sum()
    if lower.sum() > 1 or upper.sum() < 1:
        return
    bounded = bounded_shares(shares, lower, upper)
    assert bounded.sum() == pytest.approx(1)
    assert (bounded >= lower - 1e-9).all()
    assert (bounded <= upper + 1e-9).all()
    inside = (bounded > lower + 1e-7) & (bounded < upper - 1e-7)
    ratios = bounded[inside] / shares[inside]
    np.testing.assert_allclose(ratios, ratios.mean() if len(ratios) else 0, rtol=1e-5)


@pytest.mark.parametrize(
    "lower, upper, message",
    [
        ([0.6, 0.6], [1, 1], "least shares of 2 sum to 1.2, more than the whole"),
        ([0, 0], [0.3, 0.3], "largest shares of 2 sum to 0.6, less than the whole"),
        ([0.5, 0], [0.4, 1], "a floor of 0.5 is above its ceiling of 0.4"),
    ],
)
def test_bounds_that_nothing_meets_are_errors_with_their_sums(lower, upper, message):
    with pytest.raises(DataError, match=message):
        bounded_shares(np.array([0.5, 0.5]), np.array(lower, float), np.array(upper, float))
