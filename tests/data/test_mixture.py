"""Shares follow the temperature; whole numbers of examples follow the shares within one, for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import (
    MAX_DRAWS,
    SHARE_BITS,
    Cell,
    cell_shares,
    draw_shares,
    quotas_through,
)
from data.mixture_config import MixtureConfig
from data.schema import DataError


def cell(language, examples, *, source="s", tokens=None, target_tokens=None):
    return Cell(source, language, examples, tokens or 10 * examples, target_tokens or 5 * examples)


def shares(cells, source_weights=None, **config):
    return cell_shares(cells, MixtureConfig(**config), source_weights=source_weights)


def parts_of(weights):
    return draw_shares([cell(f"l{i:03}", 1) for i in range(len(weights))], np.array(weights, float), "examples")


THREE = [cell("en", 1000), cell("sw", 100), cell("yo", 10)]


def test_temperature_golden_values_of_mt5():
    """alpha = .3 over sizes 1000, 100, 10: the published formula, worked by hand elsewhere."""
    np.testing.assert_allclose(shares(THREE, temperature=1 / 0.3), [0.570654, 0.286004, 0.143342], atol=1e-6)


def test_temperature_one_is_proportional_and_a_hundred_is_nearly_uniform():
    np.testing.assert_allclose(shares(THREE), np.array([1000, 100, 10]) / 1110)
    np.testing.assert_allclose(shares(THREE, temperature=100), [1 / 3] * 3, atol=0.02)


def test_temperature_acts_on_languages_not_on_their_sources():
    """Splitting a language over two files must not change its share, only divide it."""
    split = [cell("en", 600, source="a"), cell("en", 400, source="b"), *THREE[1:]]
    whole = shares(THREE, temperature=3)
    np.testing.assert_allclose(shares(split, temperature=3), [0.6 * whole[0], 0.4 * whole[0], *whole[1:]])


def test_source_weight_multiplies_amounts_before_the_temperature():
    cells = [cell("en", 100, source="a"), cell("en", 100, source="b"), cell("sw", 100, source="a")]
    wanted = np.array([1.0, 3.0, 1.0]) / 5
    np.testing.assert_allclose(shares(cells, {"a": 1.0, "b": 3.0}), wanted)
    warm = shares(cells, {"a": 1.0, "b": 3.0}, temperature=2)
    np.testing.assert_allclose(warm, [2 / 3 / 4, 2 / 3 * 3 / 4, 1 / 3])


def test_language_weights_act_after_the_temperature_and_zero_removes():
    np.testing.assert_allclose(shares(THREE, temperature=100, language_weights={"yo": 0.0})[2], 0)
    doubled = shares(THREE, language_weights={"sw": 2.0})
    np.testing.assert_allclose(doubled, np.array([1000, 200, 10]) / 1210)


def test_unit_decides_what_amounts_count():
    cells = [cell("en", 10, tokens=100, target_tokens=30), cell("sw", 10, tokens=300, target_tokens=10)]
    np.testing.assert_allclose(shares(cells, unit="examples"), [0.5, 0.5])
    np.testing.assert_allclose(shares(cells, unit="tokens"), [0.25, 0.75])
    np.testing.assert_allclose(shares(cells, unit="target_tokens"), [0.75, 0.25])


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
    drawn = np.zeros(len(parts), np.int64)
    for total in np.cumsum(blocks).tolist():
        quota = quotas_through(parts, drawn, total)
        exact = parts * total / (1 << SHARE_BITS)
        assert quota.sum() == total
        assert (quota >= drawn).all()
        assert (np.abs(quota - exact) < 1 + 1e-9).all()
        drawn = quota


def test_a_language_below_one_in_two_thousand_is_not_starved():
    """A peer truncates counts per block of 2,048, so weights under 0.049% never give one example."""
    parts = parts_of([0.9997, 0.0003])
    drawn = np.zeros(2, np.int64)
    for block in range(1, 101):
        drawn = quotas_through(parts, drawn, 2048 * block)
    assert drawn.tolist() == [204739, 61]


def test_many_small_cells_do_not_starve_the_large_one():
    """Plain divisor methods give all equal small cells their example at once."""
    parts = parts_of([0.9] + [0.001] * 100)
    drawn = np.zeros(101, np.int64)
    for total in range(10, 1001, 10):
        drawn = quotas_through(parts, drawn, total)
        assert abs(drawn[0] - 0.9 * total) < 1 + 1e-6
    assert drawn.tolist() == [900] + [1] * 100


def test_quotas_refuse_totals_that_would_overflow():
    with pytest.raises(DataError, match="use fewer steps"):
        quotas_through(parts_of([1.0]), np.zeros(1, np.int64), MAX_DRAWS)


@pytest.mark.parametrize(
    "config, source_weights, message",
    [
        ({"language_weights": {"swa": 1.0}}, None, r"names 'swa', but no example .*nearest: sw"),
        ({"language_weights": {"en": 0.0, "sw": 0.0, "yo": 0.0}}, None, "sum to zero"),
        ({"language_weights": {"en": -1.0}}, None, "'en' is -1.0; needed a finite number"),
        ({"language_weights": {"en": float("nan")}}, None, "'en' is nan"),
        ({"language_weights": {"en": float("inf")}}, None, "'en' is inf"),
        ({}, {"s": 0.0}, "sum to zero"),
        ({}, {"s": float("nan")}, "weight of source 's' is nan"),
    ],
)
def test_impossible_weights_are_errors(config, source_weights, message):
    with pytest.raises(DataError, match=message):
        shares(THREE, source_weights, **config)


def test_a_mixture_of_nothing_is_an_error():
    with pytest.raises(DataError, match="no examples"):
        shares([])


def test_a_cell_that_trains_nothing_is_an_error_that_names_it():
    with pytest.raises(DataError, match="source 's' in 'en' has a token to train on"):
        shares([Cell("s", "en", 5, 50, 0)])
