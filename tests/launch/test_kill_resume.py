"""A killed run goes on as if nothing had happened: same batches, same parameters, bit for bit."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest
from ruamel.yaml import YAML

from launch.train import EXIT_STOPPED
from model.checkpoint import find_checkpoint, read_meta
from model.config import ModelConfig
from model.parallel import AxisRules, MeshConfig, make_mesh
from tests.launch.programs import environment, polytune_command, run_polytune, write_tiny_recipe
from train.checkpoint import restore_newest
from train.config import OptimConfig
from train.metrics import read_metrics
from train.optim import make_optimizer
from train.state import abstract_state

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS, SAVE_EVERY, BATCH_ROWS = 122, 7, 8


def final_state(run_dir: Path) -> dict[str, np.ndarray]:
    """Parameters and optimizer moments of the last step, by name."""
    found = find_checkpoint(run_dir)
    assert found.step == STEPS
    meta = read_meta(found)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])):
        tx = make_optimizer(msgspec.convert(meta["recipe"]["optim"], OptimConfig), STEPS)
        abstract = abstract_state(msgspec.convert(meta["model"], ModelConfig), AxisRules(), tx)
        state, next_row = restore_newest(run_dir, abstract, plan_hash=meta["plan_hash"])
    assert next_row == STEPS * BATCH_ROWS
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def digests(run_dir: Path) -> dict[int, set[str]]:
    seen: dict[int, set[str]] = {}
    for record in read_metrics(run_dir):
        if record["kind"] == "step":
            assert record["rows"] == [(record["step"] - 1) * BATCH_ROWS, record["step"] * BATCH_ROWS]
            seen.setdefault(record["step"], set()).add(record["digest"])
    return seen


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_tiny_recipe(folder, run_dir=folder / "run", steps=STEPS, save_every=SAVE_EVERY)
    run_polytune("train", recipe)
    return folder / "run"


def start(recipe: Path) -> subprocess.Popen:
    return subprocess.Popen(
        polytune_command("train", recipe),
        env=environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    while process.poll() is None:
        if max((r["step"] for r in read_metrics(run_dir) if r["kind"] == "step"), default=0) >= step:
            return
        time.sleep(0.002)


@pytest.mark.slow
def test_kills_at_random_moments_leave_the_final_parameters_bit_for_bit_the_same(uninterrupted, tmp_path):
    chance = random.Random()
    seed = chance.randrange(2**32)
    chance.seed(seed)
    print(f"kill points drawn with seed {seed}")
    run_dir = tmp_path / "run"
    recipe = write_tiny_recipe(tmp_path, run_dir=run_dir, steps=STEPS, save_every=SAVE_EVERY)
    kill_steps = sorted(chance.sample(range(2, STEPS - 10), 5))
    kills = 0
    for kill_step in [0, *kill_steps]:  # 0: some time while it starts, prepares or compiles
        process = start(recipe)
        if kill_step:
            wait_for_step(process, run_dir, kill_step)
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0.5, 4))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 5
    run_polytune("train", recipe)

    expected, got = final_state(uninterrupted), final_state(run_dir)
    assert expected.keys() == got.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=f"{name} (seed {seed})", strict=True)
    whole, pieces = digests(uninterrupted), digests(run_dir)
    assert pieces.keys() == whole.keys() == set(range(1, STEPS + 1))
    assert pieces == whole, f"a batch differed after a resume (seed {seed})"


def test_sigterm_saves_exits_with_the_retry_code_and_the_same_command_goes_on(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    recipe = write_tiny_recipe(tmp_path, run_dir=run_dir, steps=STEPS, save_every=1000)
    process = start(recipe)
    wait_for_step(process, run_dir, 40)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, output
    saved = find_checkpoint(run_dir).step
    assert saved >= 40
    last = max(r["step"] for r in read_metrics(run_dir) if r["kind"] == "step")
    assert last == saved, "a step was made after the saved one, or its metrics were lost"
    assert f"step {saved} is saved" in output
    run_polytune("train", recipe, "checkpoint.save_every=1000")
    expected, got = final_state(uninterrupted), final_state(run_dir)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name, strict=True)


def test_a_finished_run_started_again_does_nothing_more(uninterrupted):
    recipe = uninterrupted.parent / "run.yaml"
    before = (uninterrupted / "metrics.jsonl").read_text().count('"kind": "step"')
    done = run_polytune("train", recipe)
    assert "finished" in done.stdout
    assert (uninterrupted / "metrics.jsonl").read_text().count('"kind": "step"') == before


def test_another_recipe_in_the_same_run_directory_is_refused(uninterrupted):
    done = run_polytune("train", uninterrupted.parent / "run.yaml", "optim.learning_rate=1e-4", check=False)
    assert done.returncode == 2
    assert "optim.learning_rate: 0.005 there, 0.0001 here" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_whose_newest_checkpoint_is_half_written_goes_on_from_the_one_before(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    newest = run_dir / "checkpoints" / str(STEPS)
    (newest / "commit_success.txt").unlink()
    (newest / "params" / "manifest.ocdbt").unlink()
    recipe = write_tiny_recipe(tmp_path, run_dir=run_dir, steps=STEPS, save_every=SAVE_EVERY)
    done = run_polytune("train", recipe)
    assert f"resumed from checkpoint {STEPS // SAVE_EVERY * SAVE_EVERY}" in done.stdout
    assert "half written" in done.stdout
    expected, got = final_state(uninterrupted), final_state(run_dir)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name, strict=True)


def test_a_run_of_an_earlier_version_goes_on_with_the_same_losses(uninterrupted, tmp_path):
    """It was refused: its recipe differed in every field that had been added since."""
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / str(STEPS))
    tree = YAML(typ="safe").load((run_dir / "recipe.yaml").read_text())
    for field in ("freeze", "ema_decay", "dropout", "non_finite"):
        del tree["train"][field]
    with (run_dir / "recipe.yaml").open("w") as file:
        YAML(typ="safe").dump(tree, file)
    done = run_polytune("train", write_tiny_recipe(tmp_path, run_dir=run_dir, steps=STEPS, save_every=SAVE_EVERY))
    filled_in = "4 fields took their defaults: train.freeze, train.ema_decay, train.dropout, train.non_finite"
    assert f"recipe of an earlier version: {filled_in}" in " ".join(done.stdout.split())
    for step in range(STEPS // SAVE_EVERY * SAVE_EVERY + 1, STEPS + 1):
        first, again = (r["loss"] for r in read_metrics(run_dir) if r["kind"] == "step" and r["step"] == step)
        assert again == pytest.approx(first, rel=1e-6)
    written = YAML(typ="safe").load((run_dir / "recipe.yaml").read_text())
    assert written["train"]["dropout"] == 0.0, "said once: the recipe is written anew with every default"


def test_two_processes_cannot_train_in_one_run_directory(uninterrupted, tmp_path):
    with (uninterrupted / ".lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = run_polytune("train", uninterrupted.parent / "run.yaml", check=False)
    assert done.returncode == 2
    assert "another process is training" in done.stderr


@pytest.mark.slow
def test_a_relative_run_directory_works_for_training_resuming_and_reading(tmp_path, monkeypatch):
    recipe = write_tiny_recipe(tmp_path, run_dir=Path("run"), steps=12, save_every=5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run_polytune("train", recipe)
    assert find_checkpoint("run").step == 12
    run_polytune("generate", "run", "--prompt", "Which day comes after Monday?")


def test_the_run_directory_holds_what_the_contract_says(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"recipe.yaml", "plan", "tokenizer", "checkpoints", "metrics.jsonl", "run_card.json"} <= names
    card = json.loads((uninterrupted / "run_card.json").read_text())
    assert (
        card["step"] == STEPS
        and card["plan_hash"] == json.loads((uninterrupted / "plan/plan.json").read_text())["hash"]
    )
    assert card["attention"]["kernel"] == "dense", "not what the recipe asked for (auto), but what that meant"
    steps = sorted(int(path.name) for path in (uninterrupted / "checkpoints").iterdir())
    assert steps == [0, STEPS // SAVE_EVERY * SAVE_EVERY, STEPS]
