"""The loop: next batch, dispatch, write the step before, save when due, stop when told."""

import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from data.batch import Batch
from model.parallel import AxisRules
from model.transformer import Params
from train.checkpoint import Saver, check_disk, restore_newest, set_aside_incomplete
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.metrics import BatchFacts, MetricsWriter, SharesAfter, describe_batch, read_metrics
from train.optim import make_optimizer, make_schedule
from train.progress import ShowStep
from train.state import TrainState, abstract_state, first_state, init_state
from train.step import StepMetrics, StepSpec, train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a run needs besides its data: all static, all decided before the first step."""

    run_dir: Path
    spec: StepSpec
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    seed: int
    languages: tuple[str, ...]
    """Language table; entry 0 is padding's."""
    plan_hash: str
    most_trained_S: Sequence[int]
    """K of each step of the run: for how many positions of a row its batch needs logits. From `head_positions`."""
    meta: dict[str, Any]
    """Saved with every checkpoint: model config, resolved recipe, hashes, tables, versions."""
    accepts_changed_plan: bool = False
    """Whether a run goes on at the row it has come to where the plan is another one by now."""
    shares_after: SharesAfter | None = None
    """Shares of languages and sources in the first so many rows of the run; logged beside the losses by language."""
    load_params: Callable[[AxisRules], Params] | None = None
    """Float32 parameters to start from, on the mesh in use; None: random ones. Not asked for on resume."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; epochs have become steps by now."""
        assert self.train.steps is not None, "launch.train.resolve_length gives a job its steps"
        return self.train.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the run stands when the loop returns."""

    step: int
    finished: bool
    """False: told to stop by a signal; the state of `step` is saved."""
    resumed_from: int | None
    attempt: int
    set_aside: tuple[Path, ...] = ()
    """Half-written checkpoints that were moved out of the way."""


class StopRequest:
    """Set by SIGTERM or the first SIGINT; the loop saves and returns at the next step boundary."""

    def __init__(self):
        self.signal: int | None = None

    def __call__(self, number: int, _frame: object) -> None:
        """The signal handler: a second SIGINT interrupts at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a request to stop while inside; must run in the main thread."""
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_state(job: TrainJob, tx: optax.GradientTransformation) -> tuple[TrainState, int, int | None]:
    """The state to go on from, its next global row, and the step it was restored from (None: a fresh run)."""
    abstract = abstract_state(job.spec.model, job.spec.axes, tx)
    restored = restore_newest(job.run_dir, abstract, plan_hash=None if job.accepts_changed_plan else job.plan_hash)
    if restored is not None:
        state, next_row = restored
        return state, next_row, int(state.step)
    check_disk(job.run_dir, abstract, copies=job.checkpoint.keep_last + job.checkpoint.keep_initial + 1)
    if job.load_params is not None:
        return first_state(job.load_params(job.spec.axes), tx), 0, None
    return init_state(job.spec.model, job.spec.axes, tx, jax.random.key(job.seed)), 0, None


def put_batch(batch: Batch, spec: jax.sharding.PartitionSpec) -> Batch:
    """The global batch on the mesh in use, of which `batch` is this process's share."""
    sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.tree.map(lambda x_BT: jax.make_array_from_process_local_data(sharding, x_BT), batch)


def check_batch(batch: Batch, most_trained: int) -> None:
    """Raises ValueError when a row trains more positions than the step was built for: their loss would vanish.

    Also when no row trains any: the mean loss would be zero by zero, and all parameters with it.
    """
    most = int((batch.loss_weight_BT > 0).sum(axis=1).max())
    if most == 0:
        raise ValueError("a batch trains no position at all; the plan should hold no example without loss weight")
    if most > most_trained:
        raise ValueError(f"a row trains {most} positions, the plan promised at most {most_trained}")


def run_training(job: TrainJob, *, open_batches, show: ShowStep, on_start=None) -> Outcome:
    """Trains to the last step, or until told to stop, from the newest checkpoint of the run if there is one.

    `open_batches(first_row)` gives the iterator of global batches from that row on: a seek, not a replay.
    `show` sees each finished step; `on_start(outcome)` is told where the run begins.
    """
    tx = make_optimizer(job.optim, job.steps)
    schedule = make_schedule(job.optim, job.steps)
    set_aside = tuple(set_aside_incomplete(job.run_dir))
    state, next_row, resumed_from = start_state(job, tx)
    attempt = 1 + sum(record["kind"] == "start" for record in read_metrics(job.run_dir))
    outcome = Outcome(
        step=int(state.step), finished=False, resumed_from=resumed_from, attempt=attempt, set_aside=set_aside
    )
    if on_start:
        on_start(outcome)
    writer = MetricsWriter(
        job.run_dir, attempt=attempt, languages=job.languages, language_every=job.train.log_every,
        tensorboard=job.train.tensorboard, shares_after=job.shares_after,
    )  # fmt: skip
    saver = Saver(job.run_dir, job.checkpoint, meta=job.meta, plan_hash=job.plan_hash)
    with stop_on_signals() as stop, saver:
        try:
            writer.write_start(
                outcome.step,
                {
                    "devices": jax.device_count(),
                    "mesh": dict(jax.sharding.get_mesh().shape),
                    "plan_hash": job.plan_hash,
                },
            )
            if resumed_from is None and saver.is_due(0, last=job.steps):
                saver.save(state, step=0, next_row=0)
            batches = open_batches(next_row)
            step = _advance(job, tx, schedule, state, next_row, batches, writer, saver, stop, show)
        finally:
            writer.close()
    return dataclasses.replace(outcome, step=step, finished=step == job.steps)


def _advance(job, tx, schedule, state, next_row, batches, writer, saver, stop, show) -> int:
    """Runs steps until the end or a stop request; returns the step whose state is saved."""

    @functools.cache
    def compile_update(most_trained: int):
        spec = dataclasses.replace(job.spec, most_trained=most_trained)
        return jax.jit(functools.partial(train_step, spec, tx), donate_argnums=0)

    batch_spec = job.spec.axes.spec("batch", None)
    first, last = int(state.step), job.steps
    pending: tuple[int, StepMetrics, BatchFacts, float] | None = None

    def write_pending(ended: float) -> None:
        if pending is not None:
            step, metrics, facts, began = pending
            show(
                writer.write_step(step, metrics, facts, learning_rate=float(schedule(step - 1)), seconds=ended - began)
            )

    for step in range(first + 1, last + 1):
        began = time.monotonic()
        batch = next(batches)
        most_trained = job.most_trained_S[step - 1]
        check_batch(batch, most_trained)
        facts = describe_batch(batch, first_row=next_row, num_languages=len(job.languages))
        state, metrics = compile_update(most_trained)(state, put_batch(batch, batch_spec))
        write_pending(began)  # the step before: the device is busy with this one meanwhile
        pending = (step, metrics, facts, began)
        next_row += job.train.batch_rows
        stopping = stop.signal is not None  # asked once: a signal that comes after this waits for the next step
        if stopping or saver.is_due(step, last=last):
            jax.block_until_ready(metrics)
            write_pending(time.monotonic())
            pending = None
            writer.write_languages()
            saver.save(state, step=step, next_row=next_row)
        if stopping:
            return step
    return last


def head_positions(trained_R: np.ndarray, *, batch_rows: int, row_length: int) -> list[int]:
    """K of each step: the largest count of trained positions in any row of its batch, from a few sizes.

    The sizes are T / 8, T / 4, 3 T / 8, T / 2, 3 T / 4 and T, so a run compiles a handful of programs at most. Every
    host knows the whole plan, so all of them choose alike. Rows that train (3 4 2 16) of 16, two a batch: K = (4, 16).
    """
    sizes = np.unique([max(1, row_length * eighths // 8) for eighths in (1, 2, 3, 4, 6, 8)])
    most_S = trained_R.reshape(-1, batch_rows).max(axis=1)
    return [int(size) for size in sizes[np.searchsorted(sizes, most_S)]]
