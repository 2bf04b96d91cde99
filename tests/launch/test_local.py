"""Real jobs of several processes on this machine: they train what one process trains, and end as one."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest
from rich.console import Console
from toy import TOLERANCE, assert_close_trees, copy_to_host, mesh_of

from launch.config import RecipeError
from launch.local import hold_port, make_environment, run_local, run_processes
from launch.train import EXIT_STOPPED
from model.checkpoint import find_checkpoint, list_steps, load_params, read_meta
from model.config import ModelConfig
from model.parallel import AxisRules
from model.transformer import abstract
from tests.launch.jobs import BATCH_ROWS, local_command, run_job, write_recipe
from train.metrics import read_metrics

STEPS, SAVE_EVERY = 9, 3
SAME = ("step", "weight", "learning_rate", "tokens", "padding", "rows", "digest")
"""What is equal to the last bit in every log of the same run; loss and gradient only within rounding."""
QUIET = Console(quiet=True)


def steps_of(run_dir):
    return [record for record in read_metrics(run_dir) if record["kind"] == "step"]


def languages_of(run_dir):
    return [record for record in read_metrics(run_dir) if record["kind"] == "languages"]


def params_of(run_dir):
    found = find_checkpoint(run_dir)
    assert found.step == STEPS
    with jax.set_mesh(mesh_of((1, 1))):
        cfg = msgspec.convert(read_meta(found)["model"], ModelConfig)
        return copy_to_host(load_params(found, abstract(cfg, AxisRules())))


def assert_same_run(found, wanted):
    """Same batches, counted alike; losses and final parameters equal within the tolerance."""
    assert [[step[name] for name in SAME] for step in steps_of(found)] == [
        [step[name] for name in SAME] for step in steps_of(wanted)
    ]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [step[name] for step in steps_of(found)], [step[name] for step in steps_of(wanted)], **TOLERANCE
        )
    assert_close_trees(params_of(found), params_of(wanted))


@pytest.fixture(scope="module")
def run_by(tmp_path_factory):
    """The run directory of the same recipe, trained by so many processes; once."""

    @functools.cache
    def train(processes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"by{processes}")
        run_job(local_command(write_recipe(folder, steps=STEPS, save_every=SAVE_EVERY), processes))
        return folder / "run"

    return train


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_what_one_does(run_by, processes):
    several, one = run_by(processes), run_by(1)
    assert len(steps_of(one)) == STEPS
    assert_same_run(several, one)
    for found, wanted in zip(languages_of(several), languages_of(one), strict=True):
        for name in ("step", "first_step", "weight", "tokens", "share_so_far"):
            assert found[name] == wanted[name], "a count of one process's share, or one counted twice"
    assert read_metrics(several)[0]["devices"] == processes
    assert list_steps(several)[0] == list_steps(one)[0] == [0, 3, 6, 9]


@pytest.mark.slow
def test_rows_have_the_noise_of_one_process_where_the_hosts_rows_are_not_consecutive(tmp_path):
    """Dropout and NEFTune on two processes of two devices each, of which the first and third belong to one."""
    noise = ("train.dropout=0.2", "train.neftune_alpha=5")
    for name, processes, fault in [("one", 1, None), ("two", 2, "interleave:0:0")]:
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, steps=STEPS, save_every=100)
        run_job(local_command(recipe, processes, *noise, "--devices-per-process", str(processes), fault=fault))
    assert_same_run(tmp_path / "two" / "run", tmp_path / "one" / "run")


def resume_from(run_dir: Path, step: int, folder: Path, processes: int) -> Path:
    """The run gone on with from one of its checkpoints, elsewhere, by another number of processes."""
    recipe = write_recipe(folder, steps=STEPS, save_every=SAVE_EVERY)
    shutil.copytree(run_dir, folder / "run")
    for later in list_steps(run_dir)[0]:
        if later > step:
            shutil.rmtree(folder / "run" / "checkpoints" / str(later))
    log = folder / "run" / "metrics.jsonl"
    records = [line for line in log.read_bytes().splitlines(True) if msgspec.json.decode(line)["step"] <= step]
    log.write_bytes(b"".join(records))
    # The recipe that is there names another folder, which is free to change.
    output = run_job(local_command(recipe, processes))
    assert f"resumed from checkpoint {step}; the next global row is {step * BATCH_ROWS}" in output
    return folder / "run"


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes_4_2_1(run_by, tmp_path_factory):
    """The batches go on with the next one whatever the number of hosts, nothing replayed or left out."""
    by_two = resume_from(run_by(4), 3, tmp_path_factory.mktemp("then2"), 2)
    assert_same_run(by_two, run_by(1))
    by_one = resume_from(by_two, 6, tmp_path_factory.mktemp("then1"), 1)
    assert_same_run(by_one, run_by(1))


@pytest.mark.slow
def test_a_loader_that_fails_on_one_host_fails_the_run_on_all(tmp_path):
    """Told of by its process, named by the other, which sits in a collective; neither ends as success."""
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=100)
    output = run_job(local_command(recipe, 2, fault="loader:1:4"), code=2)
    assert "[1] error: process 1 of 2 failed: shard abc is damaged: row 7 is cut short; prepare again" in output
    assert "[0] error: process 1 of 2, on " in output
    assert "process 0 ends with it. It said: DataError: shard abc is damaged" in output
    assert "was the first to end: exit code 2" in output
    assert "killing what has not ended" not in output, "the other process did not notice"
    assert "Traceback" not in output


def test_sigterm_on_one_host_saves_one_step_on_all(tmp_path):
    """Process 1 alone is told, before its fourth batch: all learn of it with that step, and save the next."""
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=100)
    output = run_job(local_command(recipe, 2, fault="sigterm:1:4"), code=EXIT_STOPPED)
    assert "step 5 is saved" in output
    assert find_checkpoint(tmp_path / "run").step == 5
    assert [step["step"] for step in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 5]


def say(text: str) -> list[str]:
    return [sys.executable, "-u", "-c", text]


def run_texts(*texts: str, **options):
    return run_processes([(say(text), os.environ) for text in texts], **options)


def test_lines_come_with_the_index_of_their_process(capsys):
    assert run_texts("print('one [bold]'); print('two')", "print('three')", console=Console(width=9)) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["[0] one [bold]", "[0] two", "[1] three"]


def test_the_first_code_that_is_not_success_is_the_job_s(capsys):
    slow = "import time; time.sleep(0.7); raise SystemExit(4)"
    assert run_texts(slow, "raise SystemExit(75)", "pass", console=Console()) == 75
    assert "process 1 was the first to end: exit code 75" in capsys.readouterr().out
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_texts("pass", killed, console=QUIET) == 128 + signal.SIGKILL


def test_processes_that_jax_aborts_when_process_0_is_gone_are_not_taken_for_the_cause(capsys):
    """Their stacks of C++ are all that is to be seen: they hear that a "task died", not which and why."""
    killed, aborted = "os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(0.7); os.kill(os.getpid(), signal.SIGABRT)"
    first, *others = ("import os, signal, time; " + text for text in (killed, aborted, aborted))
    assert run_texts(first, *others, console=Console(width=500)) == 128 + signal.SIGKILL
    output = capsys.readouterr().out
    assert "process 0 was the first to end: killed by SIGKILL" in output
    assert "process 1, 2: aborted by JAX, because process 0 is gone (killed by SIGKILL)" in output
    run_texts("pass", others[0], console=Console(width=500))
    assert "aborted by JAX" not in capsys.readouterr().out, "it aborted by itself"


def test_what_outlives_a_failure_is_killed_with_all_it_started(tmp_path):
    """A loader process of a training that hangs must not stay behind."""
    stays = (
        "import subprocess, sys, time, pathlib; "
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); time.sleep(100)"
    )
    fails = (
        "import pathlib, time\n"
        f"while not (p := pathlib.Path({str(tmp_path / 'pid')!r})).exists() or not p.read_text(): time.sleep(0.01)\n"
        "raise SystemExit(3)"
    )
    began = time.monotonic()
    assert run_texts(stays, fails, console=QUIET, grace_s=0.2) == 3
    assert time.monotonic() - began < 30
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < until, "still there"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_signals_go_to_every_process():
    waits = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready')\n"
        "time.sleep(60)"
    )
    launcher = (
        "import os, sys\nfrom rich.console import Console\nfrom launch.local import run_processes\n"
        f"command = [sys.executable, '-u', '-c', {waits!r}]\n"
        "sys.exit(run_processes([(command, os.environ)] * 2, console=Console()))"
    )
    with subprocess.Popen(say(launcher), stdout=subprocess.PIPE, text=True) as job:
        try:
            assert sorted(job.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
            job.send_signal(signal.SIGTERM)
            assert job.wait(timeout=30) == 75
        finally:
            job.kill()


def test_processes_do_not_outlive_a_launcher_that_is_killed():
    waits = "import os, time; print(os.getpid()); time.sleep(60)"
    launcher = (
        "import os, sys\nfrom rich.console import Console\nfrom launch.local import run_processes\n"
        f"run_processes([([sys.executable, '-u', '-c', {waits!r}], os.environ)], console=Console())"
    )
    with subprocess.Popen(say(launcher), stdout=subprocess.PIPE, text=True) as job:
        pid = int(job.stdout.readline().removeprefix("[0] "))
        job.kill()
    until = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < until, "still there"
        time.sleep(0.01)


def test_a_port_is_kept_from_others_and_free_for_process_0():
    with hold_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as service, socket.socket() as client:
            service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            service.bind(("127.0.0.1", port))
            service.listen()
            client.connect(("127.0.0.1", port))
            service.accept()[0].close()


def test_each_process_knows_its_place_and_has_cpu_devices_of_its_own():
    before = {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8", "HOME": "/h"}
    assert make_environment(before, 1, processes=2, devices=3, port=77) == {
        "HOME": "/h",
        "XLA_FLAGS": "--a=1",
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:77",
        "JAX_COORDINATOR_BIND_ADDRESS": "127.0.0.1:77",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "3",
    }


@pytest.mark.parametrize(("processes", "devices"), [(0, 1), (2, 0)])
def test_no_processes_or_no_devices_are_refused(processes, devices):
    with pytest.raises(RecipeError, match="is 0; give at least 1"):
        run_local("demo", [], processes=processes, devices_per_process=devices, console=QUIET)
