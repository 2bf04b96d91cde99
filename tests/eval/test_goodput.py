"""Goodput of runs whose every second is known."""

import pytest

from eval.goodput import PARTS, measure
from eval.run_files import HeldOutRecord, RunFiles, SaveRecord, StartRecord, StepRecord


def run_of(starts, steps, saves=(), held_out=()):
    return RunFiles(
        name="run", recipe_text=None, plan=None, statistics=None, bad_rows=[], cleaning=None, languages=(),
        evaluations={}, samples={}, card=None, problems=(), failed_saves=(),
        starts=tuple(starts), steps=tuple(steps), saves=tuple(saves), held_out=tuple(held_out),
    )  # fmt: skip


def start(attempt, step, time, process_s=0.0):
    return StartRecord(attempt=attempt, step=step, time=time, process_s=process_s)


def step(attempt, number, time, *, lasted=1.0, waited=0.0, compiled=False, **more):
    return StepRecord(
        step=number, attempt=attempt, time=time, step_s=lasted, data_wait_s=waited, compiled=compiled, **more
    )  # fmt: skip


def parts(**seconds):
    return dict.fromkeys(PARTS, 0.0) | seconds


def test_every_second_of_an_interrupted_run_has_a_place():
    """20 s of starting, 9 of compiling, a save, a look at held-out rows, a kill after 3, half a minute until the next
    process, which does step 3 again."""
    first = [step(1, 1, 30.0, lasted=10.0, compiled=True), step(1, 2, 31.0, waited=0.25), step(1, 3, 34.0)]
    second = [step(2, 3, 71.0), step(2, 4, 72.0)]
    run = run_of(
        [start(1, 0, 20.0, 20.0), start(2, 2, 69.5, 5.5)],
        [*first, *second],
        saves=[SaveRecord(step=2, attempt=1, time=32.0, seconds=0.5)],
        held_out=[HeldOutRecord(step=2, attempt=1, time=33.0, seconds=1.5)],
    )
    found = measure(run)
    assert found.wall_s == 72.0
    assert found.seconds == pytest.approx(
        parts(
            useful=3.75, compile=9.0, data_wait=0.25, saving=0.5, held_out=1.5, repeated=1.0, starting=25.5, down=30.0,
            other=0.5,
        )
    )  # fmt: skip
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s)
    assert found.share == pytest.approx(3.75 / 72)


def test_steps_that_were_lost_are_not_useful_though_no_one_has_done_them_again_yet():
    """A run resumed from an old checkpoint looks as far along as before until someone counts."""
    steps = [step(1, number, float(number)) for number in range(1, 9)]
    run = run_of([start(1, 0, 0.0), start(2, 4, 8.0)], [*steps, step(2, 5, 9.0)])
    assert measure(run).seconds == parts(useful=5.0, repeated=4.0)


def test_a_program_compiled_late_is_no_useful_time_either():
    steps = [step(1, 1, 1.0), step(1, 2, 9.0, lasted=8.0, compiled=True), step(1, 3, 10.0)]
    assert measure(run_of([start(1, 0, 0.0)], steps)).seconds == parts(useful=3.0, compile=7.0)


def test_a_skipped_step_is_no_useful_step_nor_is_the_search_for_its_rows():
    """A run that skips every other step looks as busy as one that learns. The search is in the next step's time."""
    steps = [
        step(1, 1, 1.0, write_s=0.125),
        step(1, 2, 2.0, waited=0.25, skipped="spike"),
        step(1, 3, 7.0, lasted=5.0, write_s=4.0),
        step(1, 4, 8.0, write_s=0.125),
    ]
    found = measure(run_of([start(1, 0, 0.0)], steps))
    assert found.seconds == parts(useful=3.0, skipped=4.75, data_wait=0.25)
    assert found.share == 3 / 8


def test_a_step_skipped_in_a_process_that_died_counts_by_what_was_made_of_it_later():
    first = [step(1, 1, 1.0), step(1, 2, 2.0, skipped="non_finite")]
    run = run_of([start(1, 0, 0.0), start(2, 1, 2.0)], [*first, step(2, 2, 3.0), step(2, 3, 4.0, write_s=0.5)])
    assert measure(run).seconds == parts(useful=3.0, repeated=1.0)


def test_a_process_that_says_it_is_older_than_the_end_of_the_last_one_counts_no_second_twice():
    run = run_of([start(1, 0, 0.0), start(2, 1, 3.0, process_s=100.0)], [step(1, 1, 1.0), step(2, 2, 4.0)])
    found = measure(run)
    assert found.wall_s == 4.0 and found.seconds == parts(useful=2.0, starting=2.0)


def test_starting_a_finished_run_once_more_changes_nothing():
    steps = [step(1, 1, 1.0), step(1, 2, 2.0)]
    assert measure(run_of([start(1, 0, 0.0), start(2, 2, 9000.0)], steps)).wall_s == 2.0


@pytest.mark.parametrize(
    "run",
    [
        run_of([], []),
        run_of([start(1, 0, 0.0)], []),
        run_of([StartRecord(attempt=1, step=0)], [step(1, 1, 1.0)]),
        run_of([start(1, 0, 0.0)], [StepRecord(step=1)]),
    ],
    ids=["nothing", "no step", "no time", "a step of unknown length"],
)
def test_records_that_tell_no_times_have_no_goodput(run):
    assert measure(run) is None
