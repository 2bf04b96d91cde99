"""When a source is used up, what happens is what the recipe says; a mixture never just ends or fades."""

import numpy as np
import pytest

from data.mixture_config import MixtureConfig, PinchConfig, SharesConfig, StageConfig
from data.plan import build_plan
from data.schema import DataError
from tests.data.fake_examples import make_config, make_examples, rows_of, seen_by_language

# Two equal shares of 1,000 and 10 examples of 8 positions, four a row.
UNEVEN = make_examples([8] * 1010, ["en"] * 1000 + ["sw"] * 10, ["big"] * 1000 + ["small"] * 10)
EQUAL = {"languages": SharesConfig(shares={"en": 0.5, "sw": 0.5})}
# Two sources of Swahili beside one of English.
BESIDE = make_examples(
    [8] * 160, ["sw"] * 10 + ["sw"] * 50 + ["en"] * 100, ["small"] * 10 + ["other"] * 50 + ["english"] * 100
)


def plan_of(dataset, *, steps, **mixture):
    return build_plan(dataset, make_config(dataset, **mixture), steps=steps, batch_rows=4, seed=0)


def test_by_default_what_is_used_up_starts_again():
    """A peer's mixture of 1,000 and 10 at even shares silently ends after 21 examples."""
    plan = plan_of(UNEVEN, steps=60, **EQUAL)
    assert plan.rows == 240
    seen = seen_by_language(UNEVEN, plan)
    assert seen["sw"] == pytest.approx(seen["en"], abs=40)
    assert plan.summary["used_up"] == []
    assert plan.summary["exhausted"] == "repeat"


def test_what_leaves_gives_its_last_example_and_the_others_go_on():
    plan = plan_of(UNEVEN, steps=60, exhausted="leave", **EQUAL)
    assert plan.rows == 240
    assert seen_by_language(UNEVEN, plan) == {"en": 950, "sw": 10}
    (gone,) = plan.summary["used_up"]
    assert (gone["source"], gone["language"], gone["examples"]) == ("small", "sw", 10)
    assert gone["last_step"] <= 3, "in the first block of 64 examples, 16 rows"
    last = max(row for row, examples in enumerate(rows_of(plan)) if max(examples) >= 1000)
    assert gone["last_step"] == last // 4


def test_the_same_languages_other_sources_take_over():
    even = {"languages": SharesConfig(shares={"en": 0.5, "sw": 0.5}), "sources": SharesConfig(weights={"small": 5.0})}
    # Of 144 places half would be 72; Swahili has 60, and English takes the rest.
    assert seen_by_language(BESIDE, plan_of(BESIDE, steps=9, exhausted="leave", **even)) == {"en": 84, "sw": 60}
    half = plan_of(BESIDE, steps=6, exhausted="leave", **even)
    assert seen_by_language(BESIDE, half)["sw"] == pytest.approx(48, abs=8)
    assert np.bincount(half.row_examples, minlength=160)[:10].tolist() == [1] * 10


def test_max_epochs_hold_by_source():
    plan = plan_of(UNEVEN, steps=60, exhausted="leave", max_epochs={"small": 2.5}, **EQUAL)
    visits = np.bincount(plan.row_examples, minlength=1010)
    assert visits[1000:].sum() == 25
    assert sorted(visits[1000:].tolist()) == [2] * 5 + [3] * 5
    assert [gone["source"] for gone in plan.summary["used_up"]] == ["small"]
    both = plan_of(UNEVEN, steps=60, exhausted="leave", max_epochs=3, **EQUAL)
    assert seen_by_language(UNEVEN, both)["sw"] == 30


def test_a_plan_that_stops_says_how_many_steps_it_has():
    plan = plan_of(UNEVEN, steps=60, exhausted="stop", max_epochs=10, **EQUAL)
    assert (plan.summary["steps"], plan.summary["steps_asked"]) == (12, 60)
    assert plan.rows == plan.summary["rows"] == 48
    longer = plan_of(UNEVEN, steps=90, exhausted="stop", max_epochs=10, **EQUAL)
    assert (rows_of(longer), longer.hash) == (rows_of(plan), plan.hash)
    enough = plan_of(UNEVEN, steps=5, exhausted="stop", max_epochs=10, **EQUAL)
    assert enough.summary["steps"] == 5
    assert rows_of(enough) == rows_of(plan)[:20]


@pytest.mark.parametrize(
    "mixture, message",
    [
        (
            {"exhausted": "error", **EQUAL},
            r"used up after 1 of 90 steps: 'sw' in source 'small' \(10 examples\); use at most 1",
        ),
        ({"exhausted": "error", "max_epochs": {"big": 1.0}}, r"used up after 63 of 90 steps: 'en' in source 'big'"),
        ({"exhausted": "leave"}, r"used up after 63 of 90 steps: 'en' .*, 'sw' .*; use at most 63 steps, a higher"),
        (
            {"exhausted": "leave", "max_epochs": {"huge": 1.0}},
            "max_epochs names 'huge', but no example has this source",
        ),
    ],
)
def test_a_run_that_outlasts_its_data_is_an_error_with_the_steps_there_are(mixture, message):
    with pytest.raises(DataError, match=message):
        plan_of(UNEVEN, steps=90, **mixture)


def test_the_steps_that_an_error_names_are_there():
    for steps, mixture in [(63, {"exhausted": "leave"}), (63, {"exhausted": "error", "max_epochs": {"big": 1.0}})]:
        assert plan_of(UNEVEN, steps=steps, **mixture).summary["steps"] == steps


def test_a_pinch_may_not_end_early():
    with pytest.raises(ValueError, match="the run may not end early"):
        MixtureConfig(pinch=(PinchConfig(languages=("sw",), examples=3),), exhausted="stop")


def test_what_is_used_up_stays_used_up_in_the_next_stage():
    stages = (StageConfig(steps=10), StageConfig(temperature=100.0))
    plan = plan_of(UNEVEN, steps=50, exhausted="leave", stages=stages, **EQUAL)
    assert seen_by_language(UNEVEN, plan)["sw"] == 10
    assert seen_by_language(UNEVEN, plan, 40)["sw"] == 0


@pytest.mark.parametrize("exhausted", ["leave", "stop", "error"])
def test_what_a_stage_drew_to_its_last_example_and_gave_back_is_not_used_up(exhausted):
    """One block draws all there is, but the stage ends in the middle of it."""
    dataset = make_examples([8] * 64, ["en"] * 64, ["s"] * 64)
    stages = (StageConfig(steps=2), StageConfig())
    plan = plan_of(dataset, steps=4, exhausted=exhausted, stages=stages)
    assert np.bincount(plan.row_examples).tolist() == [1] * 64
    assert plan.summary["steps"] == 4


def test_a_language_below_one_in_ten_thousand_is_not_rounded_away():
    """A peer rounds weights to four places and then refuses the 0.003% language as one of weight zero."""
    rare = make_examples([8] * 1001, ["en"] * 1000 + ["sw"], ["s"] * 1001)
    config = {"language_weights": {"sw": 0.03}}
    plan = build_plan(rare, make_config(rare, **config), steps=10000, batch_rows=4, seed=0)
    assert seen_by_language(rare, plan)["sw"] == pytest.approx(160000 * 0.03 / 1000, abs=1)


def test_a_source_that_would_get_nothing_is_an_error_too():
    with pytest.raises(DataError, match="1 of 2 sources would get no example in 5 steps: small"):
        same = make_examples([8] * 1010, ["en"] * 1010, ["big"] * 1000 + ["small"] * 10)
        build_plan(same, make_config(same, weights={"small": 1e-4}), steps=5, batch_rows=4, seed=0)
