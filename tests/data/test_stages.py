"""A curriculum changes at its very row, adds up to the run, and says what each part of it holds."""

import numpy as np
import pytest

from data.mixture import Cell
from data.mixture_config import MixtureConfig, SharesConfig, StageConfig, stage_mixture
from data.plan import build_plan
from data.schema import DataError
from data.stages import resolve_stages
from tests.data.fake_examples import make_config, make_examples, rows_of, seen_by_language

CELLS = [Cell("a", "en", 100, 1000, 500), Cell("b", "en", 100, 1000, 500), Cell("b", "sw", 50, 500, 250)]
DATASET = make_examples([8] * 900 + [5] * 300, ["en"] * 900 + ["sw"] * 300, ["a"] * 700 + ["b"] * 500)
ENGLISH, SWAHILI = {"sw": 0.0}, {"en": 0.0}


def resolve(stages, steps=100, **mixture):
    config = MixtureConfig(stages=tuple(StageConfig(**stage) for stage in stages), **mixture)
    weights = {"a": 1.0, "b": 1.0}
    return resolve_stages(CELLS, config, source_weights=weights, steps=steps, batch_rows=4, row_length=16)


@pytest.mark.parametrize(
    "stages, bounds",
    [
        ([{"steps": 30}, {}], [(0, 120), (120, None)]),
        ([{"share": 0.25}, {"share": 0.25}, {"share": 0.5}], [(0, 100), (100, 200), (200, None)]),
        ([{"steps": 10}, {"share": 0.5}, {}], [(0, 40), (40, 240), (240, None)]),
        # Thirds of 100 steps: rounded once each, never added up.
        ([{"share": 1 / 3}] * 3, [(0, 132), (132, 268), (268, None)]),
        ([{}], [(0, None)]),
    ],
)
def test_stages_end_at_whole_steps(stages, bounds):
    assert [(stage.first_row, stage.end_row) for stage in resolve(stages)] == bounds


@pytest.mark.parametrize(
    "stages, message",
    [
        ([{"steps": 100}, {}], "stage 2 of data.mixture.stages would have no step: it begins at step 100 of 100"),
        (
            [{"steps": 50}, {"steps": 40}],
            "last 90 steps, but the run has 100; leave `steps` and `share` out of the last",
        ),
        ([{"share": 0.001}, {}], "stage 1 of data.mixture.stages would have no step"),
        ([{"steps": 5}, {"language_weights": {"swa": 1.0}}], r"stage 2 of data.mixture.stages: .*names 'swa'"),
        ([{"source_weights": {"c": 1.0}}], r"stage 1 .*source_weights names 'c', but data.sources has none"),
        (
            [{"source_weights": {"a": 0.0, "b": 0.0}}],
            "stage 1 of data.mixture.stages: the mixture's weights sum to zero",
        ),
    ],
)
def test_stages_that_do_not_add_up_are_errors(stages, message):
    with pytest.raises(DataError, match=message):
        resolve(stages)


@pytest.mark.parametrize("stages", [[{}, {"steps": 3}], [{"steps": 3, "share": 0.5}]])
def test_a_stage_without_an_end_is_the_last(stages):
    with pytest.raises(ValueError, match="stage"):
        resolve(stages)


def test_a_stage_changes_what_it_names_and_keeps_the_rest():
    config = MixtureConfig(temperature=3.0, language_weights={"sw": 2.0}, sources=SharesConfig(weights={"a": 2.0}))
    warmer = stage_mixture(config, StageConfig(temperature=5.0))
    assert (warmer.temperature, warmer.language_weights, warmer.sources) == (5.0, {"sw": 2.0}, config.sources)
    other = stage_mixture(config, StageConfig(languages=SharesConfig(alpha=0.3)))
    assert (other.temperature, other.language_weights, other.languages.alpha) == (1.0, {}, 0.3)
    both = stage_mixture(other, StageConfig(temperature=2.0))
    assert (both.temperature, both.languages.alpha) == (2.0, None)
    plain = stage_mixture(MixtureConfig(languages=SharesConfig(temperature=3.0)), StageConfig(temperature=1.0))
    assert (plain.temperature, plain.languages.temperature) == (1.0, 1.0)


def test_source_weights_of_a_stage_replace_the_sources_own():
    first, second = resolve([{"steps": 5, "source_weights": {"a": 0.0}}, {}])
    np.testing.assert_allclose(first.mixed.shares_C, [0, 2 / 3, 1 / 3])
    np.testing.assert_allclose(second.mixed.shares_C, [0.4, 0.4, 0.2])


def test_a_stage_begins_at_its_very_row_and_no_row_lags_behind():
    stages = (StageConfig(steps=7, language_weights=ENGLISH), StageConfig(language_weights=SWAHILI))
    plan = build_plan(DATASET, make_config(DATASET, stages=stages), steps=20, batch_rows=3, seed=0)
    assert seen_by_language(DATASET, plan, 0, 21)["sw"] == 0
    assert seen_by_language(DATASET, plan, 21, 60)["en"] == 0
    assert plan.rows == 60


def test_what_a_stage_drew_and_did_not_use_comes_first_in_the_next():
    """A change of shares in the middle of a block must not cost an example its turn."""
    stages = (*(StageConfig(steps=step) for step in (1, 2, 1, 3)), StageConfig())
    for seed in range(3):
        plan = build_plan(DATASET, make_config(DATASET, stages=stages), steps=100, batch_rows=3, seed=seed)
        visits = np.bincount(plan.row_examples, minlength=len(DATASET))[:700]
        assert 750 < visits.sum() < 1300
        assert set(visits.tolist()) == {1, 2}


def test_stages_by_steps_keep_the_rows_of_a_shorter_run_and_by_share_are_another_plan():
    by_steps = (StageConfig(steps=5, language_weights=ENGLISH), StageConfig(temperature=2.0))
    config = make_config(DATASET, stages=by_steps)
    short, long = (build_plan(DATASET, config, steps=steps, batch_rows=3, seed=0) for steps in (12, 30))
    assert rows_of(long)[:36] == rows_of(short)
    assert long.hash == short.hash
    assert build_plan(DATASET, config, steps=12, batch_rows=4, seed=0).hash != short.hash
    by_share = make_config(DATASET, stages=(StageConfig(share=0.5, language_weights=ENGLISH), StageConfig()))
    hashes = {build_plan(DATASET, by_share, steps=steps, batch_rows=3, seed=0).hash for steps in (12, 30)}
    assert len(hashes) == 2


def test_the_summary_says_what_each_stage_holds():
    stages = (StageConfig(share=0.5, language_weights=ENGLISH), StageConfig(language_weights={"en": 1.0, "sw": 3.0}))
    plan = build_plan(DATASET, make_config(DATASET, unit="tokens", stages=stages), steps=40, batch_rows=4, seed=0)
    first, second = plan.summary["stages"]
    assert (first["first_step"], first["steps"], first["first_row"], first["rows"]) == (0, 20, 0, 80)
    assert (second["first_step"], second["steps"], second["first_row"], second["rows"]) == (20, 20, 80, 80)
    assert {cell["language"] for cell in first["cells"]} == {"en"}
    seen = seen_by_language(DATASET, plan, 80, 160)
    assert second["examples"] == sum(seen.values())
    assert second["tokens"] == 8 * seen["en"] + 5 * seen["sw"]
    swahili = [cell for cell in second["cells"] if cell["language"] == "sw"]
    wanted = 3 * 1500 / (3 * 1500 + 7200)
    assert sum(cell["wanted_share"] for cell in swahili) == pytest.approx(wanted)
    assert sum(cell["realised_share"] for cell in swahili) == pytest.approx(5 * seen["sw"] / second["tokens"])
    assert sum(cell["realised_share"] for cell in swahili) == pytest.approx(wanted, abs=0.03)
    whole = [cell for cell in plan.summary["cells"] if cell["language"] == "sw"]
    part = second["tokens"] / (first["tokens"] + second["tokens"])
    assert sum(cell["wanted_share"] for cell in whole) == pytest.approx(wanted * part)
