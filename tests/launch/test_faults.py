"""Faults in real jobs: each is named, and ends the run or is lived through as the recipe says; none ends as success."""

import contextlib
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from launch.train import EXIT_STOPPED
from model.checkpoint import find_checkpoint, list_steps
from model.checksums import find_damage
from tests.launch.jobs import BATCH_ROWS, local_command, run_job, start_job, write_recipe
from train.metrics import read_metrics

pytestmark = pytest.mark.slow
STEPS = 12


def alone(recipe, *overrides, fault="none:9:9"):
    """`polytune train` in one process, maybe with a fault."""
    return [sys.executable, "-m", "tests.launch.faulty_train", fault, "train", str(recipe), *overrides]


def records_of(folder, kind):
    return [record for record in read_metrics(folder / "run") if record["kind"] == kind]


def assert_finished(folder):
    assert find_checkpoint(folder / "run").step == STEPS
    assert [record["step"] for record in records_of(folder, "step")][-1] == STEPS


def assert_all_whole(folder):
    complete, incomplete = list_steps(folder / "run")
    assert incomplete == []
    for step in complete:
        assert find_damage(folder / "run" / "checkpoints" / str(step)) is None
        assert (folder / "run" / "checkpoints" / str(step) / "checksums.json").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_of_nan_on_one_host_is_skipped_on_all_and_its_row_written_down(tmp_path, processes):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=4)
    fault = f"nan:{processes - 1}:5"
    output = run_job(alone(recipe, fault=fault) if processes == 1 else local_command(recipe, 2, fault=fault))
    assert "step 5 skipped (non_finite): loss nan" in output
    assert_finished(tmp_path)
    steps = records_of(tmp_path, "step")
    assert [step["step"] for step in steps if step.get("skipped")] == [5]
    [line] = map(json.loads, (tmp_path / "run" / "offending_rows.jsonl").read_text().splitlines())
    first = 4 * BATCH_ROWS + (4 if processes == 2 else 0)  # the second process has the second half
    [row] = line["offending"]
    assert first <= row["row"] < 5 * BATCH_ROWS
    assert row["examples"]
    assert {"en", "de", "sw", "ar"} >= {example["language"] for example in row["examples"]}
    assert all(example["source"] == "cldr" and len(example["text"]) > 10 for example in row["examples"])
    assert np.isfinite([step["loss"] for step in steps if not step.get("skipped")]).all()


@pytest.mark.parametrize("processes", [1, 4])
def test_a_loader_that_hangs_on_one_host_is_named_with_its_stage_and_stacks(tmp_path, processes):
    """The others hang in a collective by then, and must not be taken for the cause."""
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=100)
    fault, limit = f"freeze:{processes // 2}:5", "train.stalled_after_s=20"
    command = local_command(recipe, 4, limit, fault=fault) if processes == 4 else alone(recipe, limit, fault=fault)
    output = run_job(command, code=1)
    assert "it loads the batch of step 5, for " in output
    assert "in _freeze" in output, "no stack of the hung loader"
    if processes == 4:
        for index in (0, 1, 3):
            assert f"process {index} ends with it. It said: it has stalled" in output
        assert "error: process 2 of 4, on " in output
        assert "; meanwhile process 0 computes step " in output
        assert "killing what has not ended" not in output


def test_a_host_that_stops_answering_is_named_with_what_it_did_last(tmp_path):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=100)
    output = run_job(local_command(recipe, 4, fault="sigstop:2:5"), code=1)
    for index in (0, 1, 3):
        assert f"process {index} ends with it. It said: no sign of life any more" in output
    assert "; when last heard of, it " in output
    assert "killing what has not ended 20 s later: process 2" in output


def test_metrics_that_cannot_be_written_fail_the_run_on_all_hosts(tmp_path):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=100)
    output = run_job(local_command(recipe, 2, fault="metrics:0:4"), code=2)
    assert "[0] error: process 0 of 2 failed: metrics.jsonl: No space left on device" in output
    assert "process 1 ends with it. It said: OSError: metrics.jsonl" in output


def test_all_hosts_try_again_where_one_cannot_write_its_checkpoint(tmp_path):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=6)
    retry = ("checkpoint.on_error=retry", "checkpoint.retry_every_s=0.001", "checkpoint.keep_every=null")
    output = run_job(local_command(recipe, 2, *retry, fault="no_save:1:3"))
    assert "step 6 is not saved: process 1: the bucket is out of reach" in output
    assert_finished(tmp_path)
    assert_all_whole(tmp_path)
    failed, saved = ([record["step"] for record in records_of(tmp_path, kind)] for kind in ("save_failed", "saved"))
    assert failed[0] == 6 and len(failed) == 2 and 6 < failed[1] < 10
    assert saved[0] == 0 and saved[-1] == STEPS and saved[1] < STEPS, "not before it was due again"


def test_a_run_stops_on_all_hosts_where_one_cannot_write_its_checkpoint(tmp_path):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=4)
    output = run_job(local_command(recipe, 2, fault="no_save:1:3"), code=2)
    assert "process 1: the bucket is out of reach. Earlier checkpoints are intact" in output
    assert [step for step in list_steps(tmp_path / "run")[0]] == [0]


AGREED_S = 30.0
"""Within which all processes know of a save that has failed in one of them; Orbax alone takes 20 minutes."""


@pytest.mark.parametrize("process", [0, 2])
def test_a_run_stops_at_once_where_one_of_four_cannot_write_its_part_of_a_checkpoint(tmp_path, process):
    """The disk is full in the middle of a save, when the others wait for that process inside of Orbax."""
    recipe = write_recipe(tmp_path, steps=5000, save_every=6)
    output = run_job(local_command(recipe, 4, fault=f"no_room:{process}:3"), code=2)
    [before] = [record for record in records_of(tmp_path, "step") if record["step"] == 6]
    assert time.time() - before["time"] < AGREED_S
    assert f"[{process}] error: process {process} of 4 failed: a checkpoint could not be written to " in output
    for index in {0, 1, 2, 3} - {process}:
        [line] = [line for line in output.splitlines() if line.startswith(f"[{index}] error: ")]
        assert f"error: process {process} of 4, on " in line and "File too large" in line
    assert "killing what has not ended" not in output
    assert list_steps(tmp_path / "run")[0] == [0]


def test_all_go_on_and_try_again_where_one_cannot_write_its_part_of_a_checkpoint(tmp_path):
    """None waits for the threads that Orbax has left waiting, nor do these meet with the saves that follow."""
    recipe = write_recipe(tmp_path, steps=400, save_every=200)
    retry = ("checkpoint.on_error=retry", "checkpoint.retry_every_s=0.2", "checkpoint.keep_every=null")
    output = run_job(local_command(recipe, 2, *retry, fault="no_room:1:199"))
    assert "step 200 is not saved: process 1: a checkpoint could not be written to " in output
    [failed] = records_of(tmp_path, "save_failed")
    [began] = [record for record in records_of(tmp_path, "save") if record["step"] == 200]
    assert failed["step"] == 200 and failed["time"] - began["time"] < AGREED_S
    saved = [record["step"] for record in records_of(tmp_path, "saved")]
    assert saved[0] == 0 and 200 < saved[1] < 400 and saved[-1] == 400, "saved again before it was due again"
    assert find_checkpoint(tmp_path / "run").step == 400
    assert [record["step"] for record in records_of(tmp_path, "step")] == list(range(1, 401))
    assert_all_whole(tmp_path)


def test_all_say_why_process_0_fails_though_what_they_talk_through_goes_with_it(tmp_path):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=100)
    output = run_job(local_command(recipe, 4, fault="bug:0:5"), code=1)
    assert "[0] error: process 0 of 4 failed: 'a bug'" in output
    for index in (1, 2, 3):
        assert f"failed; process {index} ends with it. It said: KeyError: 'a bug'" in output
    assert "Terminating process because the JAX distributed service" not in output


def test_it_is_said_that_the_others_cannot_know_where_process_0_is_killed(tmp_path):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=100)
    output = run_job(local_command(recipe, 4, fault="sigkill:0:5"), code=137)
    assert "process 0 was the first to end: killed by SIGKILL" in output
    assert "process 1, 2, 3: aborted by JAX, because process 0 is gone (killed by SIGKILL)" in output
    assert "killing what has not ended" not in output


@contextlib.contextmanager
def small_disk(folder, size_bytes):
    """A file system of its own at this folder; skips the test where none may be mounted."""
    folder.mkdir(parents=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, how):
    """Read-only (`ro`) or not (`rw`); as soon as no file there is open for writing."""
    until = time.monotonic() + 30
    while subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], capture_output=True).returncode:
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_for(job, condition):
    until = time.monotonic() + 100
    while not condition():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_cannot_be_written_for_a_while_costs_no_step(tmp_path, processes, fault):
    """Room for less than a checkpoint, or permission lost, until a save has failed: none that is there is damaged."""
    recipe = write_recipe(tmp_path, steps=300, save_every=50)
    folder = tmp_path / "run" / "checkpoints"
    overrides = ("checkpoint.on_error=retry", "checkpoint.retry_every_s=0.5", "checkpoint.keep_every=null")
    command = alone(recipe, *overrides) if processes == 1 else local_command(recipe, processes, *overrides)
    with small_disk(folder, 8_000_000):
        if fault == "full":
            (folder / "ballast").write_bytes(bytes(7_700_000))
        with start_job(command) as job:
            if fault == "read-only":
                wait_for(job, lambda: records_of(tmp_path, "saved"))
                remount(folder, "ro")
            wait_for(job, lambda: records_of(tmp_path, "save_failed"))
            if fault == "read-only":
                remount(folder, "rw")
            else:
                (folder / "ballast").unlink()
            output = job.communicate(timeout=100)[0]
        assert job.returncode == 0, output
        assert {"full": "No space left on device", "read-only": "Read-only file system"}[fault] in output
        assert find_checkpoint(tmp_path / "run").step == 300
        assert [record["step"] for record in records_of(tmp_path, "step")] == list(range(1, 301))
        assert_all_whole(tmp_path)
        assert [path.name for path in folder.iterdir() if not path.name.isdigit()] == []


def test_a_full_disk_ends_the_run_with_an_error_where_the_recipe_says_stop(tmp_path):
    recipe = write_recipe(tmp_path, steps=300, save_every=50)
    folder = tmp_path / "run" / "checkpoints"
    with small_disk(folder, 8_000_000):
        (folder / "ballast").write_bytes(bytes(7_700_000))
        output = run_job(alone(recipe), code=2)
        assert "No space left on device" in output
        assert "make room, then run the same command again" in output
        assert "Traceback" not in output
        assert_all_whole(tmp_path)
        (folder / "ballast").unlink()
        run_job(alone(recipe))
        assert find_checkpoint(tmp_path / "run").step == 300


@pytest.mark.parametrize("file", ["params/manifest.ocdbt", "opt_state/_METADATA", "meta/data.json"])
def test_a_truncated_file_of_the_newest_checkpoint_costs_its_steps_and_nothing_else(tmp_path, file):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=4)
    run_job(alone(recipe, fault="sigterm:0:10"), code=EXIT_STOPPED)
    path = find_checkpoint(tmp_path / "run").path / file
    path.write_bytes(path.read_bytes()[:-7])
    output = run_job(alone(recipe))
    assert f"damaged checkpoint set aside in {tmp_path}/run/damaged/{path.relative_to(tmp_path).parts[2]}" in output
    assert f"{file} has " in output
    assert "resumed from checkpoint 8" in output
    assert_finished(tmp_path)
    digests = {}
    for step in records_of(tmp_path, "step"):
        digests.setdefault(step["step"], set()).add((step["digest"], step["loss"]))
    assert all(len(seen) == 1 for seen in digests.values()), "a step made again was another"


def test_deleted_checkpoints_cost_their_steps_and_all_of_them_the_run(tmp_path):
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=4)
    run_job(alone(recipe, fault="sigterm:0:10"), code=EXIT_STOPPED)
    shutil.rmtree(find_checkpoint(tmp_path / "run").path)
    assert "resumed from checkpoint 8" in run_job(alone(recipe))
    assert_finished(tmp_path)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    output = run_job(alone(recipe), code=2)
    assert f"no whole checkpoint left, though step {STEPS} was saved" in output
