"""Whole numbers of examples follow the shares within one, for ever; what is used up is nobody else's loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import Cell, Mixed
from data.quotas import NO_LIMIT, SHARE_BITS, draw_block, draw_shares, redeal, start_quotas


def cell(language, examples, *, tokens=None):
    return Cell("s", language, examples, tokens or 10 * examples, 5 * examples)


def parts_of(weights):
    return draw_shares([cell(f"l{i:03}", 1) for i in range(len(weights))], np.array(weights, float), "examples")


def dealer(weights):
    """What the parts are when only some cells can give."""

    def deal(open_C):
        left = np.where(open_C, weights, 0.0)
        return parts_of(left / left.sum()) if left.any() else np.zeros(len(left), np.int64)

    return deal


def draw_all(parts, blocks, *, left=None, deal=None, leave=True):
    """Examples drawn from each cell through each block."""
    quotas, drawn = start_quotas(np.asarray(parts), left), []
    for block in blocks:
        quotas, counts = draw_block(quotas, block, deal or (lambda open_C: parts), leave=leave)
        drawn.append(counts + (drawn[-1] if drawn else 0))
    return drawn


def test_a_share_of_tokens_draws_fewer_of_the_longer_examples():
    """Weights that silently count examples where tokens were meant: the long source gets 3x its share."""
    cells = [cell("en", 10, tokens=300), cell("sw", 10, tokens=100)]
    parts = draw_shares(cells, np.array([0.5, 0.5]), "tokens")
    np.testing.assert_allclose(parts / (1 << SHARE_BITS), [0.25, 0.75], atol=1e-9)
    drawn_tokens = parts * np.array([30, 10])
    np.testing.assert_allclose(drawn_tokens / drawn_tokens.sum(), [0.5, 0.5], atol=1e-9)


def test_a_tiny_share_is_not_rounded_to_nothing():
    parts = parts_of([1.0, 1e-15, 0.0])
    assert parts.tolist()[1:] == [1, 0]
    assert parts.sum() == 1 << SHARE_BITS


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.floats(1e-6, 1.0) | st.sampled_from([0.001, 0.5]), min_size=1, max_size=40),
    blocks=st.lists(st.integers(1, 500), min_size=1, max_size=30),
)
def test_every_cell_stays_within_one_example_of_its_share_at_every_block(weights, blocks):
    parts = parts_of(weights)
    drawn = draw_all(parts, blocks)
    for total, quota, before in zip(np.cumsum(blocks).tolist(), drawn, [0 * parts, *drawn], strict=False):
        exact = parts * total / (1 << SHARE_BITS)
        assert quota.sum() == total
        assert (quota >= before).all()
        assert (np.abs(quota - exact) < 1 + 1e-9).all()


def test_a_language_below_one_in_two_thousand_is_not_starved():
    """A peer truncates counts per block of 2,048, so weights under 0.049% never give one example."""
    parts = parts_of([0.9997, 0.0003])
    assert draw_all(parts, [2048] * 100)[-1].tolist() == [204739, 61]


def test_many_small_cells_do_not_starve_the_large_one():
    """Plain divisor methods give all equal small cells their example at once."""
    parts = parts_of([0.9] + [0.001] * 100)
    drawn = draw_all(parts, [10] * 100)
    assert all(abs(quota[0] - 9 * block) < 1 + 1e-6 for block, quota in enumerate(drawn, start=1))
    assert drawn[-1].tolist() == [900] + [1] * 100


@settings(max_examples=300, deadline=None)
@given(
    cells=st.lists(st.tuples(st.floats(1e-6, 1.0), st.none() | st.integers(1, 300)), min_size=1, max_size=25),
    blocks=st.lists(st.integers(1, 200), min_size=1, max_size=20),
)
def test_what_is_used_up_leaves_and_the_others_go_on_in_their_shares(cells, blocks):
    """Draws never stop at the smallest member, nobody gives more than it has, nobody who is there falls behind."""
    weights = np.array([weight for weight, _ in cells])
    left = np.array([NO_LIMIT if limit is None else limit for _, limit in cells])
    drawn = draw_all(parts_of(weights), blocks, left=left, deal=dealer(weights))
    for total, quota, before in zip(np.cumsum(blocks).tolist(), drawn, [0 * left, *drawn], strict=False):
        there = sum(limit if limit < NO_LIMIT else 1 << 40 for limit in left.tolist())
        assert quota.sum() == min(total, there)
        assert (before <= quota).all()
        assert (quota <= left).all()
    # Whoever still has examples has at least as many as its share of a mixture that nobody left, within two.
    exact = weights / weights.sum() * sum(blocks)
    assert (drawn[-1][drawn[-1] < left] > exact[drawn[-1] < left] - 2).all()


def test_a_mixture_does_not_stop_at_its_smallest_member():
    """A peer's 50/50 mixture of 1,000 and 10 elements yields 21."""
    left = np.array([1000, 10])
    drawn = draw_all(parts_of([0.5, 0.5]), [64] * 20, left=left, deal=dealer([0.5, 0.5]))
    assert drawn[-1].tolist() == [1000, 10]
    assert drawn[0].tolist() == [54, 10]


def test_a_mixture_stops_at_its_smallest_member_only_where_the_recipe_says_stop():
    drawn = draw_all(parts_of([0.5, 0.5]), [64] * 3, left=np.array([1000, 10]), leave=False)
    assert [quota.tolist() for quota in drawn] == [[10, 10]] * 3


def test_a_small_share_is_not_forgotten_when_others_leave_one_by_one():
    """Each leaving changes everybody's shares: one example in 200 must not start to wait again each time."""
    weights = np.array([0.5] + [0.01] * 49 + [0.005])
    left = np.array([NO_LIMIT, *range(1, 50), NO_LIMIT])
    drawn = draw_all(parts_of(weights), [100] * 40, left=left, deal=dealer(weights))[-1]
    assert drawn[1:50].tolist() == list(range(1, 50))
    assert drawn[50] == pytest.approx((4000 - sum(range(50))) / 101, abs=3)


def test_a_languages_other_sources_take_over_before_other_languages_do():
    mixed = Mixed(np.array([0.3, 0.1, 0.6]), np.array([0, 0, 1]))
    np.testing.assert_allclose(redeal(mixed, np.array([True, True, True])), [0.3, 0.1, 0.6])
    np.testing.assert_allclose(redeal(mixed, np.array([False, True, True])), [0, 0.4, 0.6])
    np.testing.assert_allclose(redeal(mixed, np.array([False, False, True])), [0, 0, 1])
    np.testing.assert_allclose(redeal(mixed, np.array([False, False, False])), [0, 0, 0])
