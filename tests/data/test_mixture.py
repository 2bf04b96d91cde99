"""Amounts and rules to shares: by literal numbers, and errors that name what is impossible."""

import numpy as np
import pytest

from data.mixture import Cell, cell_shares
from data.mixture_config import MixtureConfig
from data.schema import DataError


def cell(language, examples, *, source="s", tokens=None, target_tokens=None, content_bytes=0, characters=0):
    return Cell(
        source, language, examples, tokens or 10 * examples, target_tokens or 5 * examples, content_bytes, characters
    )


def shares(cells, source_weights=None, **config):
    return cell_shares(cells, MixtureConfig(**config), source_weights=source_weights)


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
