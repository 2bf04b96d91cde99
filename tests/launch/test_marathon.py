"""One run, killed and stopped many times at random moments, on 4, 2 and 8 processes: nothing is lost, nothing repeated.

`POLYTUNE_MARATHON=20,5` sets how many SIGKILLs and SIGTERMs; `POLYTUNE_SEED` the chance, which is printed:

    POLYTUNE_MARATHON=20,5 python -m pytest -m slow -s tests/launch/test_marathon.py
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import jax
import msgspec
import numpy as np
import pytest
from toy import TOLERANCE, assert_close_trees, copy_to_host, mesh_of

from data.dataset import read_dataset
from data.pipeline import make_batch
from data.plan import read_plan
from launch.train import EXIT_STOPPED
from model.checkpoint import find_checkpoint, list_steps, load_params, read_meta
from model.checksums import find_damage
from model.config import ModelConfig
from model.parallel import AxisRules
from model.transformer import abstract
from tests.launch.jobs import BATCH_ROWS, LIMIT_S, local_command, run_job, start_job, write_recipe
from train.metrics import describe_batch, read_metrics

KILLS, TERMS = map(int, os.environ.get("POLYTUNE_MARATHON", "5,2").split(","))
STEPS, SAVE_EVERY = 40 + 12 * (KILLS + TERMS), 5


class Leg(NamedTuple):
    """How one attempt ends."""

    number: int
    signal: signal.Signals
    processes: int
    at_step: int | None
    """The step that is waited for before the signal; None: it comes while the job starts."""
    delay_s: float
    whole: bool
    """Whether all of the job is hit, or one process of it."""


def draw_legs(chance: random.Random) -> list[Leg]:
    """Signals in random order, at rising steps; one leg of 2 processes and one of 8, never two changes in a row."""
    signals = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * TERMS
    chance.shuffle(signals)
    steps = sorted(chance.sample(range(3, STEPS - 30), len(signals)))
    by_two, by_eight = chance.sample(range(1, len(signals)), 2)
    legs = []
    for number, (kind, step) in enumerate(zip(signals, steps, strict=True)):
        early = kind == signal.SIGKILL and chance.random() < 0.2
        processes = {by_two: 2, by_eight: 8}.get(number, 4)
        delay_s = chance.uniform(1, 12) if early else chance.uniform(0, 0.4)
        legs.append(Leg(number, kind, processes, None if early else step, delay_s, chance.random() < 0.5))
    return legs


def steps_of(run_dir: Path):
    return [record for record in read_metrics(run_dir) if record["kind"] == "step"]


def wait_for_step(job: subprocess.Popen, run_dir: Path, step: int) -> None:
    until = time.monotonic() + LIMIT_S
    while job.poll() is None and max((record["step"] for record in steps_of(run_dir)), default=0) < step:
        assert time.monotonic() < until, f"no step {step} in time"
        time.sleep(0.02)


def children_of(job: subprocess.Popen) -> list[int]:
    return list(map(int, Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()))


def run_leg(leg: Leg, recipe: Path, run_dir: Path, chance: random.Random) -> None:
    """Runs the job until its signal and checks how it ends."""
    began_at = len(read_metrics(run_dir))
    with start_job(local_command(recipe, leg.processes)) as job:
        if leg.at_step is not None:
            # A step of this attempt: a signal before the loop begins would be another case.
            wait_for_step(job, run_dir, leg.at_step)
            while job.poll() is None and not any(it["kind"] == "step" for it in read_metrics(run_dir)[began_at:]):
                time.sleep(0.02)
        time.sleep(leg.delay_s)
        assert job.poll() is None, f"{leg}: ended by itself:\n{job.communicate()[0]}"
        if leg.whole or not (children := children_of(job)):
            job.send_signal(leg.signal)
        else:
            os.kill(chance.choice(children), leg.signal)
        output, _ = job.communicate(timeout=LIMIT_S)
    wanted = {EXIT_STOPPED} if leg.signal == signal.SIGTERM else {-signal.SIGKILL} if leg.whole else None
    assert job.returncode != 0 and (wanted is None or job.returncode in wanted), f"{leg}: {job.returncode}\n{output}"


def audit(run_dir: Path) -> list[float]:
    """The loss of each step that counts, after a look at every global row that was trained on.

    A start takes back the steps after the one it begins at; what is left must be every batch that the plan owes, once
    and in order, with its own content.
    """
    dataset, plan = read_dataset(run_dir / "plan" / "dataset"), read_plan(run_dir / "plan")
    kept: list[dict] = []
    for record in read_metrics(run_dir):
        if record["kind"] == "start":
            assert record["step"] <= len(kept), "rows were left out"
            del kept[record["step"] :]
        elif record["kind"] == "step":
            kept.append(record)
    assert [record["rows"] for record in kept] == [[8 * i, 8 * i + 8] for i in range(STEPS)]
    for record in kept:
        batch = make_batch(dataset, plan, range(*record["rows"]))
        digest = describe_batch(batch, first_row=0, num_languages=9).digest
        assert record["digest"] == digest, f"another batch in step {record['step']}"
    return [record["loss"] for record in kept]


def params_of(run_dir: Path):
    found = find_checkpoint(run_dir)
    assert found.step == STEPS
    with jax.set_mesh(mesh_of((1, 1))):
        return copy_to_host(
            load_params(found, abstract(msgspec.convert(read_meta(found)["model"], ModelConfig), AxisRules()))
        )


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_at_random_ends_as_if_it_had_never_been(tmp_path):
    seed = int(os.environ.get("POLYTUNE_SEED") or random.randrange(2**32))
    print(f"\n{KILLS} SIGKILLs and {TERMS} SIGTERMs in {STEPS} steps, POLYTUNE_SEED={seed}", flush=True)
    chance = random.Random(seed)
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / "run"
    run_job(local_command(write_recipe(tmp_path / "whole", steps=STEPS, save_every=SAVE_EVERY), 4))
    run_dir = tmp_path / "run"
    recipe = write_recipe(tmp_path, steps=STEPS, save_every=SAVE_EVERY)
    for leg in draw_legs(chance):
        began = time.monotonic()
        run_leg(leg, recipe, run_dir, chance)
        last, (complete, incomplete) = max((it["step"] for it in steps_of(run_dir)), default=0), list_steps(run_dir)
        how = f"{leg.signal.name} of {'all' if leg.whole else 'one'} of {leg.processes}"
        took = f"{len(incomplete)} half written, {time.monotonic() - began:.0f} s"
        print(f"{how}: at step {last}, newest whole {max(complete, default=None)}, {took}", flush=True)
    run_job(local_command(recipe, 4))
    losses, wanted = audit(run_dir), audit(whole)
    assert BATCH_ROWS == 8
    np.testing.assert_allclose(losses, wanted, **TOLERANCE)
    assert_close_trees(params_of(run_dir), params_of(whole))
    assert not (run_dir / "damaged").exists(), "a kill has damaged a checkpoint that was whole"
    for step in list_steps(run_dir)[0]:
        assert find_damage(run_dir / "checkpoints" / str(step)) is None
    records = read_metrics(run_dir)
    starts = [record["devices"] for record in records if record["kind"] == "start"]
    made = sum(record["kind"] == "step" for record in records)
    print(f"{len(starts)} attempts reached their loop, {made} steps made, {STEPS} kept; last loss {losses[-1]:.6f}, "
          f"uninterrupted {wanted[-1]:.6f}")  # fmt: skip
