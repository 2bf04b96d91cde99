"""Amounts and rules to shares: by literal numbers, and errors that name what is impossible."""

import numpy as np
import pytest

from data.mixture import Cell, cell_shares, mix_cells
from data.mixture_config import MixtureConfig, SharesConfig, UniMaxConfig
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


def rule(**config):
    return SharesConfig(**config)


def test_alpha_is_the_exponent_and_a_cap_comes_before_it():
    np.testing.assert_allclose(shares(THREE, languages=rule(alpha=0.3)), shares(THREE, temperature=1 / 0.3), atol=1e-12)
    np.testing.assert_allclose(
        shares(THREE, languages=rule(cap=200, temperature=2)), [0.517943, 0.366241, 0.115816], atol=1e-6
    )


def test_unimax_in_characters_as_in_the_paper():
    cells = [cell(tag, 5, characters=size) for tag, size in [("a", 1000), ("b", 100), ("c", 10)]]
    config = {"unit": "characters", "languages": rule(unimax=UniMaxConfig(budget=600, max_epochs=4))}
    np.testing.assert_allclose(shares(cells, **config), [0.466667, 0.466667, 0.066667], atol=1e-6)
    full = {"unit": "characters", "languages": rule(unimax=UniMaxConfig(budget=9000, max_epochs=4))}
    mixed = mix_cells(cells, MixtureConfig(**full))
    np.testing.assert_allclose(mixed.shares_C, np.array([4000, 400, 40]) / 4440)
    assert "leave 4,560 of a budget of 9,000 unfilled" in mixed.unfilled[0]


def test_unimax_without_a_budget_takes_what_the_rows_hold():
    """Ten tokens an example: rows of 6,000 positions hold 600 examples, the golden numbers' budget."""
    config = MixtureConfig(languages=rule(unimax=UniMaxConfig(max_epochs=4)))
    mixed = mix_cells(THREE, config, positions=6000.0)
    np.testing.assert_allclose(mixed.shares_C, [0.466667, 0.466667, 0.066667], atol=1e-6)
    assert mixed.unfilled == ()
    with pytest.raises(DataError, match=r"data.mixture.languages.unimax needs a `budget`"):
        mix_cells(THREE, config)


def test_sources_first_then_languages_inside_each():
    cells = [cell("en", 100, source="a"), cell("sw", 100, source="a"), cell("sw", 100, source="b")]
    config = {"first": "sources", "sources": rule(shares={"a": 0.4, "b": 0.6}), "language_weights": {"sw": 3.0}}
    np.testing.assert_allclose(shares(cells, **config), [0.4 / 4, 0.4 * 3 / 4, 0.6])
    np.testing.assert_allclose(shares(cells, first="sources", temperature=100), [1 / 3] * 3, atol=1e-9)
    languages_first = {"languages": rule(shares={"en": 0.5, "sw": 0.5}), "sources": rule(weights={"b": 3.0})}
    np.testing.assert_allclose(shares(cells, **languages_first), [0.5, 0.125, 0.375])


def test_flan_2022_sources_at_their_published_rates():
    rates = {"flan2021": 0.40, "t0": 0.32, "niv2": 0.20, "cot": 0.05, "dialog": 0.03}
    cells = [cell("en", 10 * n + 5, source=name) for n, name in enumerate(rates)]
    found = shares(cells, first="sources", sources=rule(shares=rates))
    np.testing.assert_allclose(found, list(rates.values()))


def test_shares_that_are_given_leave_the_rest_to_the_others():
    found = shares(THREE, temperature=2, languages=rule(shares={"yo": 0.5}))
    np.testing.assert_allclose(found, [0.5 * 10**0.5 / (10**0.5 + 1), 0.5 / (10**0.5 + 1), 0.5])


def test_inside_a_language_without_some_sources_shares_scale_up():
    cells = [cell("en", 10, source="a"), cell("en", 10, source="b"), cell("sw", 10, source="a")]
    found = shares(cells, sources=rule(shares={"a": 0.25, "b": 0.75}))
    np.testing.assert_allclose(found, [2 / 3 * 0.25, 2 / 3 * 0.75, 1 / 3])


def test_floors_and_ceilings_by_name_and_for_all():
    np.testing.assert_allclose(shares(THREE, languages=rule(floor=0.1))[2], 0.1)
    np.testing.assert_allclose(
        shares(THREE, languages=rule(floor={"sw": 0.3}, ceiling={"yo": 0.005}))[1:], [0.3, 0.005]
    )
    found = shares(THREE, languages=rule(floor=0.2, weights={"yo": 0.0}))
    np.testing.assert_allclose(found, [0.8, 0.2, 0.0], err_msg="a floor does not bring back who was removed")


def test_smart_gains_of_sources():
    cells = [cell("en", n, source=name) for n, name in [(9, "x"), (500, "y"), (70, "z")]]
    found = shares(cells, first="sources", sources=rule(gains={"x": 3, "y": 1, "z": 0.5}))
    np.testing.assert_allclose(found, [0.673267, 0.198020, 0.128713], atol=1e-6)


def test_a_language_left_with_no_source_is_left_out():
    cells = [cell("en", 10, source="a"), cell("sw", 10, source="b")]
    np.testing.assert_allclose(shares(cells, sources=rule(weights={"b": 0.0})), [1, 0])


def test_languages_counted_apart_take_no_share():
    mixed = mix_cells(THREE, MixtureConfig(), apart=["yo"])
    np.testing.assert_allclose(mixed.shares_C, np.array([1000, 100, 0]) / 1100)


@pytest.mark.parametrize("unit, expected", [("bytes", [0.2, 0.8]), ("characters", [0.5, 0.5])])
def test_bytes_and_characters_are_units_too(unit, expected):
    """Three bytes a letter is no reason to be seen three times as often; who wants characters gets characters."""
    cells = [cell("en", 10, content_bytes=100, characters=100), cell("my", 10, content_bytes=400, characters=100)]
    np.testing.assert_allclose(shares(cells, unit=unit), expected)


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"sources": rule(weights={"t": 1.0})},
            r"data.mixture.sources.weights names 't', but no example has this source",
        ),
        ({"languages": rule(floor={"swa": 0.1})}, r"data.mixture.languages.floor names 'swa'.*nearest: sw"),
        ({"languages": rule(shares={"en": 0.9, "sw": 0.3})}, r"data.mixture.languages: least shares of 3 sum to 1.2"),
        (
            {"languages": rule(shares={"en": 0.7, "sw": 0.3})},
            r"leave nothing for yo; lower them, or give these a weight",
        ),
        ({"languages": rule(ceiling=0.3)}, r"largest shares of 3 sum to 0.9, less than the whole"),
        ({"languages": rule(gains={"en": 1.0})}, r"data.mixture.languages.gains has no gain for sw, yo"),
        ({"unit": "characters"}, r"source 's' in 'en' have no characters"),
    ],
)
def test_rules_that_cannot_be_met_are_errors(config, message):
    with pytest.raises(DataError, match=message):
        shares(THREE, **config)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"temperature": 2.0, "languages": rule(alpha=0.3)}, "short for `languages.temperature`"),
        ({"language_weights": {"en": 1.0}, "languages": rule(weights={"en": 1.0})}, "short for `languages.weights`"),
        ({"max_epochs": 2.0}, "say what then"),
    ],
)
def test_two_ways_of_saying_one_thing_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        MixtureConfig(**config)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"alpha": 0.3, "temperature": 3.0}, "alpha is 1 / temperature"),
        ({"weights": {"en": 0.0, "sw": 2.0}, "shares": {"en": 0.5}}, "en: give a weight or a share, not both"),
        ({"unimax": UniMaxConfig(), "cap": 10.0}, "`unimax` decides the shares by itself"),
        ({"gains": {"en": 1.0}, "alpha": 0.5}, "`gains` decide the shares by themselves"),
    ],
)
def test_two_ways_of_weighing_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        rule(**config)
