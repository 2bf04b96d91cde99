"""Runs of the toy model over a list of batches, for tests of the loop."""

import os
import signal

import msgspec
from toy import AXES, LANGUAGES, OPTIM, TOY, copy_to_host, lay_out, make_examples, most_trained, pack_pairs

from model.checkpoint import find_checkpoint, load_params
from model.config import ComputeConfig
from model.transformer import abstract
from train.config import CheckpointConfig, TrainConfig
from train.job import TrainJob
from train.loop import run_training
from train.metrics import read_metrics
from train.step import StepSpec

STEPS, ROWS = 10, 8
BATCHES = [lay_out(pack_pairs(make_examples(2 * ROWS, seed=step))) for step in range(STEPS)]
MOST = max(map(most_trained, BATCHES))


def make_job(run_dir, *, save_every=4, most_trained_S=(MOST,) * 10, held_out=None):
    return TrainJob(
        run_dir=run_dir,
        spec=StepSpec(
            model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES),
            most_trained=MOST,
        ),
        optim=OPTIM,
        train=TrainConfig(
            steps=STEPS, batch_rows=ROWS, log_every=5, trackers=(), profile=(3, 4), peak_flops_per_s=1e12
        ),
        checkpoint=CheckpointConfig(save_every=save_every),
        seed=0,
        languages=LANGUAGES,
        plan_hash="plan",
        most_trained_S=most_trained_S,
        held_out=held_out,
        meta={"model": msgspec.to_builtins(TOY)},
    )  # fmt: skip


def open_batches(first_row):
    """A seek: the batches from a global row on."""
    assert first_row % ROWS == 0
    return iter(BATCHES[first_row // ROWS :])


def run(run_dir, *, batches=open_batches, show=lambda record: None, **job):
    run_dir.mkdir(exist_ok=True)
    return run_training(make_job(run_dir, **job), open_batches=batches, show=show)


def saved_params(run_dir):
    return copy_to_host(load_params(find_checkpoint(run_dir), abstract(TOY, AXES)))


def signal_at(step, number=signal.SIGTERM):
    """A `show` that signals this process once it has seen the step."""
    return lambda record: os.kill(os.getpid(), number) if record.step == step else None


def steps_of(run_dir):
    return [record for record in read_metrics(run_dir) if record["kind"] == "step"]
