"""The loop over a list of batches: what it computes, writes and saves, and that stopping changes nothing."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest
from toy import (
    LANGUAGES,
    TOLERANCE,
    assert_close_trees,
    assert_equal_trees,
    mesh_of,
    most_trained,
)

from data.held_out import HeldOutRows
from model.checkpoint import CheckpointError, find_checkpoint, list_steps, read_meta
from tests.train.toy_run import (
    BATCHES,
    MOST,
    ROWS,
    STEPS,
    make_job,
    open_batches,
    run,
    saved_params,
    signal_at,
    steps_of,
)
from train.config import CheckpointConfig
from train.held_out import HeldOutJob
from train.job import head_positions
from train.loop import check_batch, run_training, stop_on_signals
from train.metrics import read_metrics
from train.saver import Saver

GOLDEN = Path(__file__).parent.parent / "golden" / "ten_steps.json"
MOVED = """ten steps of the toy model no longer give the losses of tests/golden/ten_steps.json.
If the numbers were not meant to change, this is a bug: find the commit that moved them.
If they were, say so in DECISIONS.md with the reason, and write the file anew:
    POLYTUNE_WRITE_GOLDEN=1 python -m pytest tests/train/test_loop.py -k golden"""


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that nothing interrupted: its directory and final parameters."""
    run_dir = tmp_path_factory.mktemp("loop") / "whole"
    with jax.set_mesh(mesh_of((1, 1))):
        outcome = run(run_dir)
        assert (outcome.step, outcome.finished, outcome.resumed_from, outcome.attempt) == (
            STEPS,
            True,
            None,
            1,
        )
        return run_dir, saved_params(run_dir)


def test_ten_golden_steps(whole_run):
    steps = steps_of(whole_run[0])
    found = {name: [step[name] for step in steps] for name in ("loss", "grad_norm", "learning_rate", "weight")}
    digests = [step["digest"] for step in steps]
    if os.environ.get("POLYTUNE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**found, "digest": digests}, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert digests == golden.pop("digest"), "the batches of this test are not those of the golden run"
    for name, wanted in golden.items():
        np.testing.assert_allclose(found[name], wanted, **TOLERANCE, err_msg=MOVED)


def test_every_step_is_written_once_with_the_rows_it_was_made_on(whole_run):
    records = read_metrics(whole_run[0])
    steps = [record for record in records if record["kind"] == "step"]
    assert [step["rows"] for step in steps] == [[8 * i, 8 * i + 8] for i in range(STEPS)]
    assert [step["weight"] for step in steps] == [float(batch.loss_weight_BT.sum()) for batch in BATCHES]
    assert [record["step"] for record in records if record["kind"] == "saved"] == [0, 4, 8, 10]
    assert [record["kind"] for record in records if record["kind"] != "saved"] == [
        "start",
        "save",
        *["step"] * 4,
        "languages",  # saved: no sum may span a step that a resumed run starts from
        "save",
        "step",
        "memory",
        "languages",  # log_every
        *["step"] * 3,
        "languages",
        "save",
        *["step"] * 2,
        "memory",
        "languages",
        "save",  # the last step
    ]
    assert records[0]["mesh"] == {"data": 1, "fsdp": 1, "expert": 1, "sequence": 1, "tensor": 1}
    by_language = [record for record in records if record["kind"] == "languages"]
    for record, part in zip(by_language, (BATCHES[:4], BATCHES[4:5], BATCHES[5:8], BATCHES[8:]), strict=True):
        for i, language in enumerate(LANGUAGES[1:], 1):
            assert record["tokens"][language] == sum(int((batch.language_BT == i).sum()) for batch in part)
    total = sum(sum(record["loss_sum"].values()) for record in by_language)
    assert total == pytest.approx(sum(step["loss"] * step["weight"] for step in steps), rel=1e-4)


def test_the_split_of_every_step_adds_up_and_only_the_first_was_compiled(whole_run):
    steps = steps_of(whole_run[0])
    for step in steps:
        parts = [step[name] for name in ("data_wait_s", "dispatch_s", "device_s", "write_s")]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(step["step_s"], abs=1e-5)
        assert step["mfu"] == pytest.approx(step["model_flops"] / (step["step_s"] * 1e12), abs=1e-5)
    assert [step["step"] for step in steps if "compiled" in step] == [1]
    assert steps[0]["dispatch_s"] > max(step["dispatch_s"] for step in steps[1:])


class OneBatch(HeldOutRows):
    """The first batch once more."""

    languages = LANGUAGES

    def batches(self, *, rows, index, count):
        return BATCHES[:1]


def test_looking_at_held_out_rows_changes_no_bit_and_falls_with_the_loss(whole_run, tmp_path, one_device):
    rows = OneBatch(None, [], BATCHES[0].tokens_BT.shape[1])
    run(tmp_path / "run", held_out=HeldOutJob(rows=rows, every=4, batch_rows=ROWS))
    assert_equal_trees(saved_params(tmp_path / "run"), whole_run[1])
    records = read_metrics(tmp_path / "run")
    looks = {record["step"]: sum(record["loss_sum"].values()) for record in records if record["kind"] == "held_out"}
    assert list(looks) == [0, 4, 8, 10] and looks[10] < looks[0]
    first = next(record for record in records if record["kind"] == "step")
    assert looks[0] == pytest.approx(first["loss"] * first["weight"], rel=1e-5)
    places = [(record["kind"], record["step"]) for record in records]
    assert places.index(("step", 4)) < places.index(("held_out", 4)) < places.index(("save", 4))
    assert places.index(("step", 8)) < places.index(("held_out", 8))


def test_the_steps_that_were_asked_for_are_traced(whole_run):
    traces = list((whole_run[0] / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000


def test_what_is_saved_is_what_the_policy_says(whole_run):
    run_dir, _ = whole_run
    assert list_steps(run_dir) == ([0, 8, 10], [])
    assert read_meta(find_checkpoint(run_dir))["step"] == STEPS


def test_a_stopped_run_goes_on_to_the_same_bits(whole_run, tmp_path, one_device):
    """SIGINT comes while step 4 runs, so 4 is saved; SIGTERM while 7 does. No step is done twice or in half."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    outcome = run(tmp_path / "run", show=signal_at(3, signal.SIGINT))
    assert (outcome.step, outcome.finished) == (4, False)
    assert find_checkpoint(tmp_path / "run").step == 4
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    outcome = run(tmp_path / "run", show=signal_at(6, signal.SIGTERM), save_every=3)
    assert (outcome.step, outcome.finished, outcome.resumed_from) == (7, False, 4)
    outcome = run(tmp_path / "run")
    assert (outcome.step, outcome.finished, outcome.resumed_from, outcome.attempt) == (STEPS, True, 7, 3)
    assert_equal_trees(saved_params(tmp_path / "run"), whole_run[1])
    restores = [record["restore_s"] for record in read_metrics(tmp_path / "run") if record["kind"] == "start"]
    assert restores[0] is None and len(restores) == 3 and min(restores[1:]) > 0
    same = ("step", "loss", "grad_norm", "learning_rate", "rows", "digest")
    pick = [[step[name] for name in same] for step in steps_of(tmp_path / "run")]
    assert pick == [[step[name] for name in same] for step in steps_of(whole_run[0])]


def test_a_signal_between_two_looks_at_it_loses_no_step(tmp_path, one_device, monkeypatch):
    """It comes after the loop found no reason to stop: step 3 is not saved, so it must not end there."""
    is_due = Saver.is_due

    def is_due_and_signal(saver, step, *, last):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return is_due(saver, step, last=last)

    monkeypatch.setattr(Saver, "is_due", is_due_and_signal)
    outcome = run(tmp_path / "run", save_every=100)
    assert (outcome.step, outcome.finished) == (4, False)
    assert find_checkpoint(tmp_path / "run").step == 4


def test_a_kill_while_saving_costs_steps_but_changes_no_bit(whole_run, tmp_path, one_device):
    """The newest save never finished: it is set aside, and its steps are made again on the rows they had."""
    run(tmp_path / "run", show=signal_at(8))
    (tmp_path / "run" / "checkpoints" / "9" / "commit_success.txt").unlink()
    outcome = run(tmp_path / "run")
    assert (outcome.resumed_from, outcome.finished) == (8, True)
    assert_equal_trees(saved_params(tmp_path / "run"), whole_run[1])
    digests = {}
    for step in steps_of(tmp_path / "run"):
        digests.setdefault(step["step"], set()).add((step["digest"], step["loss"]))
    assert all(len(seen) == 1 for seen in digests.values())


def test_a_run_goes_on_on_another_mesh(whole_run, tmp_path):
    with jax.set_mesh(mesh_of((4, 2))):
        assert run(tmp_path / "run", show=signal_at(5)).step == 6
    with jax.set_mesh(mesh_of((1, 1))):
        assert run(tmp_path / "run").resumed_from == 6
        assert_close_trees(saved_params(tmp_path / "run"), whole_run[1])


def test_a_finished_run_is_left_as_it_is(whole_run, tmp_path, one_device):
    run_dir, params = whole_run
    before = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    outcome = run(run_dir, show=lambda record: pytest.fail("no step is left"))
    assert (outcome.step, outcome.finished, outcome.resumed_from) == (STEPS, True, STEPS)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == before
    assert_equal_trees(saved_params(run_dir), params)


def test_metrics_are_written_while_the_next_step_runs(tmp_path, one_device):
    """Batch k + 1 is taken and started on before step k is waited for, save where a checkpoint is due."""
    events = []

    def batches(first_row):
        for step, batch in enumerate(open_batches(first_row), 1):
            events.append(f"take {step}")
            yield batch

    run(
        tmp_path / "run",
        batches=batches,
        show=lambda record: events.append(f"show {record.step}"),
        save_every=3,
    )
    assert " ".join(events).replace("take ", "t").replace("show ", "s") == (
        "t1 t2 s1 t3 s2 s3 t4 t5 s4 t6 s5 s6 t7 t8 s7 t9 s8 s9 t10 s10"
    )


def retrying(run_dir, **config):
    run_dir.mkdir(exist_ok=True)
    return dataclasses.replace(make_job(run_dir), checkpoint=CheckpointConfig(save_every=2, on_error="retry", **config))


class Away:
    """A `show` that takes the checkpoints' folder away, once an earlier step is saved, and puts it back."""

    def __init__(self, run_dir, *, gone_at, back_at, saved):
        self.folder, self.elsewhere = run_dir / "checkpoints", run_dir / "away"
        self.gone_at, self.back_at, self.saved = gone_at, back_at, saved

    def __call__(self, record):
        if record.step == self.gone_at:
            while not (self.folder / str(self.saved) / "checksums.json").exists():
                time.sleep(0.01)
            self.folder.rename(self.elsewhere)
        if record.step == self.back_at:
            self.elsewhere.rename(self.folder)


def saves_of(run_dir):
    return [(it["kind"], it["step"]) for it in read_metrics(run_dir) if it["kind"] in ("save_failed", "saved")]


def test_a_run_trains_on_while_its_checkpoints_cannot_be_written(whole_run, tmp_path, one_device):
    """Their folder is out of reach from step 3 to step 7, in which 4 and 6 are due; 8 is saved again, and so is 10."""
    said, show = [], Away(tmp_path / "run", gone_at=3, back_at=7, saved=2)
    outcome = run_training(retrying(tmp_path / "run"), open_batches=open_batches, show=show, say=said.append)
    assert (outcome.step, outcome.finished) == (STEPS, True)
    assert list_steps(tmp_path / "run") == ([0, 8, 10], [])
    failed = [("save_failed", 4), ("save_failed", 6)]
    assert saves_of(tmp_path / "run") == [("saved", 0), ("saved", 2), *failed, ("saved", 8), ("saved", 10)]
    assert len(said) == 2 and all("could not be written" in text and "No such file" in text for text in said)
    assert_equal_trees(saved_params(tmp_path / "run"), whole_run[1])


def test_a_failed_save_is_tried_again_before_the_next_one_is_due(tmp_path, one_device):
    show = Away(tmp_path / "run", gone_at=1, back_at=3, saved=0)
    run_training(retrying(tmp_path / "run", retry_every_s=1e-3), open_batches=open_batches, show=show)
    assert saves_of(tmp_path / "run")[:4] == [("saved", 0), ("save_failed", 2), ("saved", 3), ("saved", 4)]


@pytest.mark.parametrize("action", ["stop", "retry"])
def test_a_run_whose_last_state_cannot_be_saved_does_not_end_as_success(tmp_path, one_device, action):
    show = Away(tmp_path / "run", gone_at=5, back_at=None, saved=0)
    job = retrying(tmp_path / "run", retry_every_s=0.01, max_failures=3)
    job = dataclasses.replace(job, checkpoint=msgspec.structs.replace(job.checkpoint, on_error=action, save_every=100))
    message = {"stop": "could not be written", "retry": r"3 saves in a row have failed \(checkpoint.max_failures\)"}
    with pytest.raises(CheckpointError, match=f"{message[action]}.*Earlier checkpoints are intact"):
        run_training(job, open_batches=open_batches, show=show)
    show.elsewhere.rename(show.folder)
    assert list_steps(tmp_path / "run")[0] == [0]


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)


def test_a_row_with_more_trained_positions_than_planned_is_refused(tmp_path, one_device):
    """They would silently be left out of the loss."""
    check_batch(BATCHES[0], MOST)
    full = BATCHES[0]._replace(loss_weight_BT=np.ones_like(BATCHES[0].loss_weight_BT))
    with pytest.raises(ValueError, match=f"a row trains 16 positions, the plan promised at most {MOST}"):
        run(tmp_path, batches=lambda _: iter([full]))


def test_a_batch_that_trains_nothing_is_refused(tmp_path, one_device):
    empty = BATCHES[0]._replace(loss_weight_BT=np.zeros_like(BATCHES[0].loss_weight_BT))
    with pytest.raises(ValueError, match="trains no position at all"):
        run(tmp_path, batches=lambda _: iter([empty]))


@pytest.mark.parametrize(
    ("counts", "length", "wanted"),
    [
        ([3, 4, 2, 16], 16, [4, 16]),
        ([1, 2, 5, 1, 6, 6], 16, [2, 6, 6]),
        ([7, 0, 9, 1], 16, [8, 12]),
        ([31, 1], 31, [31]),
    ],
)
def test_k_of_a_step_is_the_least_size_that_holds_its_fullest_row(counts, length, wanted):
    assert head_positions(np.array(counts), batch_rows=2, row_length=length) == wanted


def test_steps_with_fewer_trained_positions_compute_fewer_logits_and_learn_the_same(whole_run, tmp_path, one_device):
    """A mixture's longest answers must not set the price of every step."""
    tight = [-(-most_trained(batch) // 8) * 8 for batch in BATCHES]
    assert len(set(tight)) > 1
    run(tmp_path / "tight", most_trained_S=tight)
    losses = [[step["loss"] for step in steps_of(run_dir)] for run_dir in (tmp_path / "tight", whole_run[0])]
    np.testing.assert_allclose(*losses, **TOLERANCE)


def test_a_run_with_moments_in_the_host_s_memory_resumes_to_the_same_bits_and_may_change_its_mind(
    tmp_path, whole_run, one_device
):
    """Checkpoints do not tell where moments were kept."""

    def job(memory):
        made = make_job(tmp_path / "run")
        return dataclasses.replace(made, spec=dataclasses.replace(made.spec, optimizer_memory=memory))

    def train(memory, show=lambda record: None):
        return run_training(job(memory), open_batches=open_batches, show=show)

    (tmp_path / "run").mkdir()
    assert not train("host", signal_at(3)).finished
    assert not train("device", signal_at(6)).finished
    assert train("host").finished
    assert_close_trees(saved_params(tmp_path / "run"), whole_run[1])
