"""The demo tells only what happened: its audit fails on a log that does not prove it."""

import fcntl
from copy import deepcopy

import pytest
from rich.console import Console

from data.cldr import cldr_conversations
from data.procedural import ignore_rule_answer
from data.source_config import CldrSource, ProceduralSource
from launch.config import RecipeError
from launch.demo import DEMO_MARK, DemoError, audit_resume, clear_old_demo, pick_kill_step, pick_prompts
from launch.recipe import load_recipe

OWED = [f"{step:08x}" for step in range(1, 11)]
QUIET = Console(quiet=True)


def start(attempt, step):
    return {"kind": "start", "attempt": attempt, "step": step}


def steps(attempt, numbers):
    return [
        {"kind": "step", "attempt": attempt, "step": n, "rows": [4 * (n - 1), 4 * n], "digest": OWED[n - 1]}
        for n in numbers
    ]


# Killed after step 6, resumed from the checkpoint of step 4.
LOG = [start(1, 0), *steps(1, range(1, 7)), start(2, 4), *steps(2, range(5, 11))]


def audit(log):
    return audit_resume(log, steps=10, batch_rows=4, owed=OWED)


def test_a_run_killed_once_that_saw_its_batches_passes():
    assert audit(LOG)._asdict() == {"killed_after": 6, "resumed_from": 4, "repeated": 2, "steps": 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.pop(3), "step 3 is missing"),
        (lambda log: log.pop(-1), "step 10 is missing"),
        (lambda log: log[8].update(digest="0"), "step 5 saw batch 0, the plan owed it 00000005"),
        (lambda log: log[2].update(digest="0"), "step 2 saw batch 0"),
        (lambda log: log[-1].update(rows=[0, 4]), "step 10 was made on rows"),
        (lambda log: log.append(start(3, 10)), "3 starts"),
    ],
)
def test_a_log_that_does_not_prove_the_resume_fails_the_demo(change, message):
    log = deepcopy(LOG)
    change(log)
    with pytest.raises(DemoError, match=message):
        audit(log)


def test_the_kill_comes_between_two_saves_near_the_middle():
    recipe = load_recipe("demo")
    steps, every = recipe.train.steps, recipe.checkpoint.save_every
    step = pick_kill_step(steps, save_every=every)
    assert step % every == every // 2
    assert recipe.train.steps * 0.35 < step < recipe.train.steps * 0.65


def test_the_shown_prompts_are_trained_facts_in_phrasings_never_trained_on():
    recipe = load_recipe("demo")
    facts = next(source for source in recipe.data.sources if isinstance(source, CldrSource))
    trained = cldr_conversations(facts)
    known = {(it.language, it.task, it.id.split("/")[2], it.turns[-1].content) for it in trained}
    prompts = {it.turns[0].content for it in trained}
    *shown, rewrite = pick_prompts(recipe)
    assert len({it.language for it in shown}) == 8
    for it in shown:
        assert (it.language, it.task, it.id.split("/")[2], it.turns[-1].content) in known
        assert it.turns[0].content not in prompts
    assert rewrite.turns[-1].content != ignore_rule_answer(rewrite)
    assert any(isinstance(source, ProceduralSource) for source in recipe.data.sources)


def test_the_demo_never_deletes_a_run_that_is_not_its_own(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").touch()
    with pytest.raises(RecipeError, match="was not made by the demo and is left as it is"):
        clear_old_demo(run, QUIET)
    assert (run / "recipe.yaml").exists()


def test_the_demo_replaces_its_own_run_unless_it_is_still_training(tmp_path):
    run = tmp_path / "run"
    clear_old_demo(run, QUIET)
    (run / "metrics.jsonl").touch()
    with (run / ".lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="another process is training"):
            clear_old_demo(run, QUIET)
    clear_old_demo(run, QUIET)
    assert [path.name for path in run.iterdir()] == [DEMO_MARK]
