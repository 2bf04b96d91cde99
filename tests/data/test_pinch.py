"""A pinch is a number of examples in the whole run: exactly, evenly, and as new as can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture_config import PinchConfig, StageConfig
from data.pinch import schedule_pinch
from data.plan import build_plan
from data.schema import DataError
from tests.data.fake_examples import make_config, make_examples, seen_by_language

SIZES = {"en": 600, "es": 90, "fr": 30, "zu": 4}
LANGUAGES = [tag for tag, size in SIZES.items() for _ in range(size)]
DATASET = make_examples(np.arange(len(LANGUAGES)) % 13 + 3, LANGUAGES, ["s"] * len(LANGUAGES))


def pinch(examples, *languages, each=True):
    return PinchConfig(languages=languages, examples=examples, each=each)


def plan_of(*pinches, steps=30, batch_rows=4, seed=0, **config):
    return build_plan(
        DATASET, make_config(DATASET, pinch=pinches, **config), steps=steps, batch_rows=batch_rows, seed=seed
    )


def rows_of_language(plan, tag):
    row_of = np.repeat(np.arange(plan.rows), np.diff(plan.row_offsets))
    return row_of[DATASET.language[plan.row_examples] == DATASET.facts.languages.index(tag)]


@settings(max_examples=60)
@given(
    count=st.integers(1, 60),
    steps=st.integers(4, 60),
    seed=st.integers(0, 100),
    packed=st.booleans(),
    block_examples=st.sampled_from([16, 64, 500]),
)
def test_exactly_as_many_examples_as_asked_for(count, steps, seed, packed, block_examples):
    """Whatever block the run ends in, and however the rows fall."""
    rows = 8 * steps
    if not packed and 2 * count > rows:
        return
    plan = plan_of(
        pinch(count, "zu", "fr"), steps=steps, batch_rows=8, seed=seed, packed=packed, block_examples=block_examples
    )
    seen = seen_by_language(DATASET, plan)
    assert (seen["zu"], seen["fr"]) == (count, count)
    assert plan.summary["pinch"] == {"zu": count, "fr": count}
    visits = np.bincount(plan.row_examples, minlength=len(DATASET))
    for tag in ("zu", "fr"):
        own = visits[DATASET.language == DATASET.facts.languages.index(tag)]
        assert own.max() - own.min() <= 1, "every example comes before any comes again"


@pytest.mark.parametrize("block_examples, most", [(16, 24), (64, 24), (1000, 45)])
def test_spread_evenly_over_the_run(block_examples, most):
    """In a lump, or at the end, it would be no pinch. 12 examples in 240 rows are 20 rows apart; two that come in one
    block may be packed into one row."""
    plan = plan_of(pinch(12, "fr"), steps=60, block_examples=block_examples)
    gaps = np.diff(rows_of_language(plan, "fr"))
    assert len(gaps) == 11
    assert gaps.max() <= most
    assert np.median(gaps) == pytest.approx(20, abs=2)


def test_forty_examples_of_all_together_are_dealt_out_evenly():
    """One percent of English pairs, spread evenly over the others."""
    plan = plan_of(pinch(40, "es", "fr", "zu", each=False), steps=60)
    seen = seen_by_language(DATASET, plan)
    assert sorted(seen[tag] for tag in ("es", "fr", "zu")) == [13, 13, 14]


def test_other_shares_are_as_if_the_pinched_languages_were_not_there():
    plan = plan_of(pinch(5, "zu"), temperature=100, steps=100)
    seen = seen_by_language(DATASET, plan)
    others = [seen[tag] for tag in ("en", "es", "fr")]
    assert max(others) - min(others) < 70
    wanted = {cell["language"]: cell["wanted_share"] for cell in plan.summary["cells"]}
    assert wanted["zu"] == pytest.approx(5 / sum(seen.values()))
    assert sum(wanted.values()) == pytest.approx(1)


def test_a_pinch_runs_through_all_stages():
    stages = (StageConfig(steps=7), StageConfig(steps=3, temperature=5.0), StageConfig())
    for seed in range(4):
        plan = plan_of(pinch(20, "zu", "fr"), stages=stages, seed=seed)
        seen = seen_by_language(DATASET, plan)
        assert (seen["zu"], seen["fr"]) == (20, 20)
        assert 3 <= seen_by_language(DATASET, plan, 0, 28)["fr"] <= 6


def test_the_schedule_by_hand():
    members = {"a": np.array([5, 6]), "b": np.array([1, 2, 3])}
    schedule = schedule_pinch([pinch(3, "a")], members, rows=300, seed=0)
    assert sorted(schedule.examples[:2].tolist()) == [5, 6], "both before either again"
    np.testing.assert_allclose(np.diff(schedule.due), 100)
    assert 0 <= schedule.due[0] < 100
    assert schedule.examples.tolist() != schedule_pinch([pinch(3, "a")], members, rows=300, seed=4).examples.tolist()


def test_the_plan_of_a_pinch_is_that_of_its_length():
    assert plan_of(pinch(3, "zu")).hash != plan_of(pinch(3, "zu"), steps=31).hash
    assert plan_of(pinch(3, "zu")).hash != plan_of(pinch(4, "zu")).hash


def test_a_weight_of_a_pinched_language_would_have_no_effect_and_is_refused():
    with pytest.raises(DataError, match="counts the examples of 'zu', so it has no share; remove its weight"):
        plan_of(pinch(3, "zu"), language_weights={"zu": 2.0})


@pytest.mark.parametrize(
    "pinches, message",
    [
        ([pinch(3, "zz")], "data.mixture.pinch names 'zz', but no example has this language"),
        ([pinch(3, "zu"), pinch(2, "fr", "zu")], "names 'zu' twice"),
        ([pinch(3)], "names no language"),
        ([pinch(2, "zu", "fr", "es", each=False)], "2 examples for 3 languages would leave 1 of them with none; use 3"),
        ([pinch(9999, "zu")], "fill .* rows at the end of the run, where .* are left; ask for fewer"),
    ],
)
def test_impossible_pinches_are_errors(pinches, message):
    with pytest.raises(DataError, match=message):
        plan_of(*pinches)
