import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.stats import Estimate, Ratio, estimate, find_worst, macro_average


def test_stderr_is_the_sample_deviation_over_root_n():
    result = estimate([Ratio(value) for value in (1, 0, 1, 1)])
    assert result == Estimate(0.75, pytest.approx(0.25), 4)  # stdev .5, n 4


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_unit_denominators_give_the_plain_mean(values):
    result = estimate([Ratio(value) for value in values])
    assert result.value == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert result.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_ratios_are_sums_within_a_language_never_means_of_ratios():
    # 8 bits over 4 bytes and 1 bit over 1 byte: 9/5, not the mean of 2 and 1.
    result = estimate([Ratio(8, 4), Ratio(1, 1)])
    assert result.value == pytest.approx(1.8)
    assert result.stderr == pytest.approx(math.sqrt((0.8**2 + 0.8**2) * 2) / 5)


def test_one_document_has_no_stderr_rather_than_zero():
    assert estimate([Ratio(1)]) == Estimate(1.0, None, 1)
    assert macro_average([Estimate(1, None, 1), Estimate(0, 0.1, 5)]).stderr is None


def test_macro_average_weighs_languages_alike():
    large, small = estimate([Ratio(1)] * 1000), estimate([Ratio(0)] * 2)
    assert macro_average([large, small]) == Estimate(0.5, 0.0, 1002)


def test_macro_stderr_is_not_made_small_by_asking_the_same_items_in_more_languages():
    result = macro_average([Estimate(0.2, 0.03, 10), Estimate(0.6, 0.04, 10)])
    assert result == Estimate(pytest.approx(0.4), pytest.approx(0.035), 20)
    same = estimate([Ratio(value) for value in (1, 0, 1, 1)])
    assert macro_average([same] * 9) == Estimate(0.75, pytest.approx(0.25), 36)


def test_worst_languages_follow_the_direction_of_the_metric():
    scores = {"en": 0.9, "sw": 0.1, "ar": 0.1, "fr": 0.5}
    assert find_worst(scores, higher_is_better=True, count=3) == [("ar", 0.1), ("sw", 0.1), ("fr", 0.5)]
    assert find_worst(scores, higher_is_better=False, count=1) == [("en", 0.9)]
