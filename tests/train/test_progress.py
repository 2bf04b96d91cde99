import io

import pytest
from rich.console import Console

from train.device_memory import MemoryUse
from train.metrics import StepRecord
from train.progress import show_progress
from train.timing import Split


def record(step, *, tokens=100, seconds=0.5, **other):
    return StepRecord(
        step=step, loss=2.0 / step, weight=1.0, grad_norm=1.0, learning_rate=0.1, tokens=tokens,
        padding=0.125, seconds=seconds, first_row=0, rows=8, digest="", **other,
    )  # fmt: skip


def show_all(records, *, start, steps, every, terminal=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with show_progress(start=start, steps=steps, every=every, console=console) as show:
        for one in records:
            show(one)
    return console.file.getvalue()


def test_a_log_gets_the_first_step_every_nth_and_the_last():
    text = show_all([record(step) for step in range(1, 12)], start=0, steps=11, every=5)
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "step 1/11",
        "step 5/11",
        "step 10/11",
        "step 11/11",
    ]


def test_speed_counts_real_tokens_and_leaves_every_compilation_out():
    """A run compiles again whenever a batch trains more positions than any before it, not only at its first step."""
    records = [record(11, seconds=60.0, compiled=True), *(record(step) for step in range(12, 21))]
    records[4] = record(15, seconds=30.0, compiled=True)
    first, second = show_all(records, start=10, steps=100, every=10).splitlines()
    assert first == "step 11/100  loss 0.1818  padding 12.5%  (compiled in 60.0 s)"
    assert second == ("step 20/100  loss 0.1000  padding 12.5%  200 real, 2 target tokens/s  wait 0%  ETA 40 s")


def test_the_figures_that_are_known_are_shown():
    memory = MemoryUse("tpu:0", 2 * 2**30, 3 * 2**30, 16 * 2**30)
    split = Split(data_wait_s=0.02)
    records = [record(step, mfu=0.412, memory=memory, split=split) for step in range(1, 3)]
    line = show_all(records, start=0, steps=2, every=1).splitlines()[-1]
    assert line.endswith("  wait 4%  MFU 41.2%  tpu:0 3.0 of 16.0 GiB  ETA 0 s")


@pytest.mark.parametrize(("wait_s", "hints"), [(0.2, 1), (0.01, 0)])
def test_a_run_that_waits_for_data_is_told_once_which_setting_helps(wait_s, hints):
    """A starving device looks like a slow model: nothing in a loss curve shows it."""
    records = [record(step, split=Split(data_wait_s=wait_s)) for step in range(1, 120)]
    text = show_all(records, start=0, steps=200, every=100)
    assert text.count("raise data.workers") == hints
    assert text.count("steps wait for data 40% of the time") == hints


def test_a_terminal_gets_a_bar_that_ends_at_the_last_step():
    text = show_all([record(1), record(2), record(3)], start=0, steps=3, every=1, terminal=True)
    assert "step 3/3" in text
    assert "loss 0.667  200 real, 2 target tokens/s" in text
