import io

from rich.console import Console

from train.metrics import StepRecord
from train.progress import show_progress


def record(step, *, tokens=100, seconds=0.5):
    return StepRecord(
        step=step, loss=2.0 / step, weight=1.0, grad_norm=1.0, learning_rate=0.1, tokens=tokens,
        padding=0.125, seconds=seconds, first_row=0, rows=8, digest="",
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


def test_speed_counts_real_tokens_and_time_left_leaves_the_compilation_out():
    records = [record(11, seconds=60.0), *(record(step) for step in range(12, 21))]
    first, second = show_all(records, start=10, steps=100, every=10).splitlines()
    assert first == "step 11/100  loss 0.1818  padding 12.5%  (compiled in 60.0 s)"
    assert second == "step 20/100  loss 0.1000  padding 12.5%  200 real tokens/s  ETA 40 s"


def test_a_terminal_gets_a_bar_that_ends_at_the_last_step():
    text = show_all([record(1), record(2), record(3)], start=0, steps=3, every=1, terminal=True)
    assert "step 3/3" in text
    assert "loss 0.667  200 real tokens/s" in text
