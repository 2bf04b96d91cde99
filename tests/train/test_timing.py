"""Where time goes, on a clock that a test turns."""

import time

import pytest

from train.timing import Split, StepClock, process_age_s


@pytest.fixture
def pass_time(monkeypatch):
    """Turns the clock on by so many seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def run_laps(clock, pass_time, laps):
    for part, seconds in laps:
        pass_time(seconds)
        clock.lap(part)


def test_a_step_has_all_that_was_done_since_the_one_before_was_done(pass_time):
    clock = StepClock()
    run_laps(clock, pass_time, [("data_wait_s", 1.0), ("dispatch_s", 0.5), ("device_s", 2.5)])
    assert clock.cut() == (Split(data_wait_s=1.0, dispatch_s=0.5, device_s=2.5), False)
    run_laps(clock, pass_time, [("write_s", 0.25), ("data_wait_s", 0.5), ("dispatch_s", 0.25), ("device_s", 1.0)])
    split, _ = clock.cut()
    assert split == Split(0.5, 0.25, 1.0, 0.25) and split.seconds == 2.0


def test_saving_is_no_part_of_any_step(pass_time):
    """Steps beside a save looked twice as long, and those after it as if they took no time."""
    clock = StepClock()
    run_laps(clock, pass_time, [("device_s", 1.0)])
    clock.cut()
    run_laps(clock, pass_time, [("write_s", 0.5)])
    pass_time(60.0)
    clock.restart()
    run_laps(clock, pass_time, [("data_wait_s", 0.25), ("device_s", 1.0)])
    assert clock.cut()[0].seconds == 1.25


def test_compiling_is_said_of_the_step_in_whose_time_it_was(pass_time):
    clock = StepClock()
    clock.lap("dispatch_s", compiled=True)
    clock.lap("dispatch_s")
    assert clock.cut()[1] and not clock.cut()[1]


def test_a_process_knows_its_age():
    age = process_age_s()
    assert age is None or 0 < age < 1e6
