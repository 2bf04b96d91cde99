"""Faults that a run lived through: counted once, told in words, no part of its averages."""

import json

from fake_run import write_fake_run

from eval import faults, report_training
from eval.report import write_report
from eval.run_files import StepRecord, read_run


def test_skipped_steps_and_failed_saves_are_told_and_skipped_losses_are_no_part_of_the_average(tmp_path):
    """A run that skipped a tenth of its steps looks like one that trained on all of its data."""
    lines = [{"kind": "step", "attempt": 1, "step": step, "loss": 2.0, "weight": 100.0} for step in range(1, 21)]
    lines[8] |= {"loss": None, "skipped": "non_finite"}  # made again by a later process, and not skipped then
    lines[9] |= {"loss": None, "grad_norm": None, "skipped": "non_finite"}
    lines[14] |= {"loss": 50.0, "skipped": "spike"}
    lines[15] |= {"loss": 60.0, "skipped": "spike"}
    lines += [lines[8] | {"attempt": 2, "loss": 2.0, "skipped": None}]
    lines += [{"kind": "save_failed", "attempt": 1, "step": step, "error": f"<disk> {step}"} for step in (6, 7, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "1 step skipped, loss or gradient not finite: step 10. " in html
    assert "2 steps skipped, spike of loss or gradient: steps 15, 16. " in html
    assert "3 saves failed: steps 6, 7. The last: &lt;disk&gt; 7" in html
    assert 'class="value">1,700<' in html, "trained tokens: those of 17 steps"
    run = read_run(tmp_path)
    assert report_training.loss_curve(run.steps, [], {}).last == 2.0


def test_a_run_in_which_nothing_went_wrong_tells_of_no_faults(tmp_path):
    html = write_report(write_fake_run(tmp_path / "run", languages=("en",))).read_text(encoding="utf-8")
    assert "skipped" not in html and "failed" not in html


def test_of_many_skipped_steps_the_first_few_are_listed():
    steps = [StepRecord(step=step, skipped="spike") for step in range(1, 1012)]
    (told,) = faults.describe_faults(steps, ())
    assert told.startswith(
        "1,011 steps skipped, spike of loss or gradient: steps 1, 2, 3, 4, 5, 6, 7, 8 and 1,003 more. "
    )
