import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import bars
from eval.bars import Mark
from eval.charts import Moment, Series, format_number, format_tick, line_chart, nice_ticks, smooth, thin

FINITE = st.floats(-1e6, 1e6)


def test_smoothing_matches_hand_computed_values():
    # d = 1/2: (4 + 2/2 + 2/4) / 1.75, (4/2 + 2 + 2/2) / 2, (4/4 + 2/2 + 2) / 1.75
    assert smooth([4, 2, 2], [1, 1, 1], half_life=1) == pytest.approx([22 / 7, 2.5, 16 / 7])


def test_smoothing_weighs_steps_by_their_tokens():
    # (3 * 4 + 1 * 2 / 2) / 3.5 and (3 * 4 / 2 + 2) / 2.5
    assert smooth([4, 2], [3, 1], half_life=1) == pytest.approx([13 / 3.5, 8 / 2.5])


def test_one_bad_loss_does_not_poison_the_smooth_line():
    assert smooth([4, math.nan, 2], [1, 1, 1], half_life=1) == pytest.approx([3.6, 3.0, 2.4])
    assert all(math.isnan(value) for value in smooth([math.nan, math.inf], [1, 1], half_life=1))


@given(st.lists(FINITE, min_size=1, max_size=50), st.floats(0.5, 20))
def test_smoothing_stays_within_the_values(values, half_life):
    smoothed = smooth(values, [1.0] * len(values), half_life=half_life)
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert min(values) - slack <= min(smoothed) and max(smoothed) <= max(values) + slack


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 8.3, [0, 2, 4, 6, 8, 10]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.21, 0.34, [0.2, 0.25, 0.3, 0.35]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
        (0, 10.1, [0, 2, 4, 6, 8, 10, 12]),
        (5, 5, [5, 6, 7, 8, 9, 10]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(st.lists(FINITE, min_size=1, max_size=400), st.integers(4, 60))
def test_thinning_keeps_spikes_and_both_ends(values, limit):
    xs, ys = thin(range(len(values)), values, limit=limit)
    assert len(xs) <= limit + 4
    assert (max(ys), min(ys)) == (max(values), min(values))
    assert (xs[0], xs[-1]) == (0, len(values) - 1) and list(xs) == sorted(xs)
    assert all(values[int(x)] == y for x, y in zip(xs, ys, strict=True))


def test_a_gap_is_drawn_where_a_loss_is_not_finite():
    line = Series(name="loss", style="raw", xs=[1, 2, 3, 4], ys=[4.0, math.nan, 2.0, 1.0])
    svg = line_chart([line], name="a", title="t", description="d", y_from_zero=True)
    (path,) = re.findall(r'class="line raw" d="([^"]+)"', svg)
    assert path.count("M") == 2 and path.count("L") == 1


def test_points_lie_where_their_values_say():
    line = Series(name="loss", style="raw", xs=[0, 10], ys=[10.0, 0.0])
    svg = line_chart([line], name="a", title="t", description="d", size=(1066, 464), y_from_zero=True)
    # Plot area: x from 52 to 1066 - 14 = 1052, y from 26 to 464 - 38 = 426.
    assert 'd="M52.0 26.0L1052.0 426.0"' in svg


def test_charts_escape_text_and_name_themselves():
    line = Series(name="<loss>", style="raw", xs=[1, 2], ys=[1.0, 2.0])
    moment = Moment(x=1, until=2, label="a & b", detail="<script>")
    svg = line_chart([line], name="x", title="<T>", description='"D"', moments=[moment])
    assert "<script>" not in svg and "&lt;script&gt;" in svg and "a &amp; b" in svg
    assert 'role="img"' in svg and 'aria-labelledby="x-title x-desc"' in svg
    assert '<title id="x-title">&lt;T&gt;</title>' in svg


def test_a_chart_without_a_finite_value_is_nothing():
    line = Series(name="loss", style="raw", xs=[1], ys=[math.nan])
    assert line_chart([line], name="a", title="t", description="d") == ""


def test_bars_place_value_error_and_marks_in_percent():
    svg = bars.bar(0.6, scale=0.8, marks=[Mark(kind="chance", value=0.2)], error=0.1)
    assert 'width="75.00%"' in svg
    assert 'x1="62.50%" x2="87.50%"' in svg
    assert '<svg class="mark chance" x="25.00%"' in svg


def test_marks_beyond_the_scale_are_not_drawn_at_its_edge():
    assert "mark" not in bars.bar(1, scale=2, marks=[Mark(kind="untrained", value=9)])


def test_strips_have_a_tooltip_per_language():
    svg = bars.strip([(0.5, "A & B: 50%", "plain")], scale=1, mean=0.25)
    assert 'cx="50.00%"' in svg and "A &amp; B: 50%" in svg and 'class="mark mean" x="25.00%"' in svg


def test_sparklines_run_from_top_left_to_bottom_right_when_falling():
    assert 'points="2.0,4.0 98.0,22.0"' in bars.sparkline([3, 1])
    assert bars.sparkline([3]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1.5e-5, "1.5e-05"), (12500, "12,500"), (8.168, "8.17"), (math.nan, "–")],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text


def test_axis_labels_fit_beside_the_axis():
    assert [format_tick(x) for x in (0, 0.004, 2000, 50_000, 2e6, 4.5e9)] == [
        "0", "0.004", "2,000", "50k", "2M", "4.5G",
    ]  # fmt: skip


def test_a_single_step_can_be_drawn():
    line = Series(name="loss", style="raw", xs=[1.0], ys=[2.0])
    assert 'd="M' in line_chart([line], name="a", title="t", description="d")
