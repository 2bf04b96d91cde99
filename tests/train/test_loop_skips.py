"""The loop over batches that must not be learned from: what is skipped, written down, resumed, and when it ends."""

import dataclasses
import json

import jax
import msgspec
import numpy as np
import pytest
from toy import assert_equal_trees

from tests.train.toy_run import ROWS, STEPS, make_job, open_batches, run, saved_params, signal_at, steps_of
from train.config import SpikeConfig
from train.guard import SkippedStepsError
from train.loop import run_training
from train.metrics import read_metrics


def poison(*poisoned):
    """The batches, of which those of these steps have a weight that is no number, in their second row."""

    def batches(first_row):
        for step, batch in enumerate(open_batches(first_row), 1 + first_row // ROWS):
            weight_BT = batch.loss_weight_BT.copy()
            if step in poisoned:
                weight_BT[1, np.flatnonzero(weight_BT[1])[0]] = np.nan
            yield batch._replace(loss_weight_BT=weight_BT)

    return batches


def test_a_batch_of_nan_is_skipped_and_its_rows_written_down(tmp_path, one_device):
    said = []
    job = dataclasses.replace(make_job(tmp_path / "run"), describe_row=lambda row: [{"text": f"text of row {row}"}])
    (tmp_path / "run").mkdir()
    outcome = run_training(job, open_batches=poison(4), show=lambda record: None, say=said.append)
    assert (outcome.step, outcome.finished) == (STEPS, True)
    steps = steps_of(tmp_path / "run")
    assert [step["rows"] for step in steps] == [[8 * i, 8 * i + 8] for i in range(STEPS)], "the data moves on"
    assert [step.get("skipped") for step in steps] == [None] * 3 + ["non_finite"] + [None] * 6
    assert (steps[3]["loss"], steps[3]["grad_norm"]) == (None, None)
    assert all(np.isfinite(step["loss"]) for step in steps if "skipped" not in step)
    assert jax.tree.all(jax.tree.map(lambda leaf: np.isfinite(leaf).all(), saved_params(tmp_path / "run")))
    [line] = (tmp_path / "run" / "offending_rows.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert (line["step"], line["skipped"], line["rows"]) == (4, "non_finite", [24, 32])
    assert line["offending"] == [{"row": 25, "loss": None, "examples": [{"text": "text of row 25"}]}]
    assert [loss is None for loss in line["loss_by_row"]] == [False, True] + [False] * 6
    [text] = said
    assert text.startswith("step 4 skipped (non_finite): loss nan") and "not finite in 1 of them: 25" in text
    weights = sum(sum(it["weight"].values()) for it in read_metrics(tmp_path / "run") if it["kind"] == "languages")
    assert weights == sum(step["weight"] for step in steps if "skipped" not in step)


@pytest.mark.slow
def test_a_skipped_step_is_resumed_to_the_same_bits(tmp_path, one_device):
    """What a run carries over a skipped step (moments, schedule) is all in its checkpoint."""
    run(tmp_path / "whole", batches=poison(4))
    run(tmp_path / "run", batches=poison(4), show=signal_at(4))
    assert run(tmp_path / "run", batches=poison(4)).resumed_from == 5
    assert_equal_trees(saved_params(tmp_path / "run"), saved_params(tmp_path / "whole"))


def test_three_batches_of_nan_in_a_row_stop_the_run_and_are_never_saved(tmp_path, one_device):
    with pytest.raises(SkippedStepsError, match=r"3 steps in a row, the last: step 7 .* rows \[48, 56\).* lower optim"):
        run(tmp_path / "run", batches=poison(3, 5, 6, 7), save_every=2)
    assert [step["step"] for step in steps_of(tmp_path / "run")] == list(range(1, 8))
    assert jax.tree.all(jax.tree.map(lambda leaf: np.isfinite(leaf).all(), saved_params(tmp_path / "run")))


@pytest.mark.slow
def test_loss_spikes_are_skipped_and_resumed_to_the_same_bits(tmp_path, one_device):
    """Skipped are those that the logged numbers say; the window they are judged by is part of the checkpoint."""
    config = SpikeConfig(sigma=0.5, window=3)

    def train(run_dir, show=lambda record: None):
        run_dir.mkdir(exist_ok=True)
        train = msgspec.structs.replace(make_job(run_dir).train, spikes=config)
        job = dataclasses.replace(make_job(run_dir), train=train)
        return run_training(job, open_batches=open_batches, show=show)

    train(tmp_path / "whole")
    steps = steps_of(tmp_path / "whole")
    seen = np.array([[step["loss"], step["grad_norm"]] for step in steps])
    limits = [before.mean(0) + 0.5 * before.std(0) for before in (seen[i - 3 : i] for i in range(3, STEPS))]
    wanted = [None] * 3 + ["spike" if (seen[i + 3] > limit).any() else None for i, limit in enumerate(limits)]
    assert [step.get("skipped") for step in steps] == wanted
    assert 1 <= wanted.count("spike") < STEPS - 3
    train(tmp_path / "run", show=signal_at(5))
    assert train(tmp_path / "run").resumed_from == 6
    assert_equal_trees(saved_params(tmp_path / "run"), saved_params(tmp_path / "whole"))
