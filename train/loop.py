"""The loop: next batch, dispatch, write the step before, save when due, stop when told."""

import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from data.batch import Batch
from model.checkpoint import newest_step
from model.parallel import AxisRules
from model.transformer import Params
from train.checkpoint import Saver, check_disk, restore_step, set_aside_incomplete
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.held_out import HeldOutJob, make_look, scalars_of
from train.hosts import (
    Notes,
    Share,
    is_first,
    put_batch,
    read_notes,
    share_of_batch,
    spread_notes,
    tell_all,
    write_notes,
)
from train.metrics import BatchFacts, MetricsWriter, SharesAfter, describe_batch, read_metrics
from train.mfu import make_utilisation
from train.optim import make_optimizer, make_schedule
from train.profiling import StepProfile
from train.progress import ShowStep
from train.state import TrainState, abstract_state, first_state, init_state, with_ema
from train.step import StepMetrics, StepSpec, train_step
from train.timing import StepClock, process_age_s
from train.trackers import open_trackers


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
    sources: tuple[str, ...] = ()
    """Source table, likewise; empty: nothing is told apart by source."""
    plan_hash: str
    most_trained_S: Sequence[int]
    """K of each step of the run: for how many positions of a row its batch needs logits. From `head_positions`."""
    meta: dict[str, Any]
    """Saved with every checkpoint: model config, resolved recipe, hashes, tables, versions."""
    accepts_changed_plan: bool = False
    """Whether a run goes on at the row it has come to where the plan is another one by now."""
    shares_after: SharesAfter | None = None
    """Shares of languages and sources in the first so many rows of the run; logged beside the losses by language."""
    held_out: HeldOutJob | None = None
    """Rows whose loss is looked at while training; None: none."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a run begins: what process 0 finds in the run directory, and all go by."""

    newest: int | None
    """Step of the checkpoint to go on from; None: a fresh run."""
    attempt: int
    set_aside: tuple[str, ...]


def find_beginning(run_dir: Path) -> Beginning:
    """Sets half-written checkpoints aside and looks for the newest whole one; process 0 does, and tells the others.

    What one process sees of a shared file system may be older than what another does: each looking for itself might
    restore another step.
    """

    def look() -> dict[str, Any]:
        set_aside = [str(path) for path in set_aside_incomplete(run_dir)]
        attempt = 1 + sum(record["kind"] == "start" for record in read_metrics(run_dir))
        return {"newest": newest_step(run_dir), "attempt": attempt, "set_aside": set_aside}

    found = tell_all("beginning", look)
    return Beginning(**{**found, "set_aside": tuple(found["set_aside"])})


def start_state(
    job: TrainJob, tx: optax.GradientTransformation, *, newest: int | None
) -> tuple[TrainState, int, int | None]:
    """The state to go on from, its next global row, and the step it was restored from (None: a fresh run)."""
    abstract = _with_average(job, abstract_state(job.spec.model, job.spec.axes, tx))
    if newest is not None:
        wanted = None if job.accepts_changed_plan else job.plan_hash
        state, next_row = restore_step(job.run_dir, newest, abstract, plan_hash=wanted)
        return state, next_row, newest
    if is_first():
        check_disk(job.run_dir, abstract, copies=job.checkpoint.keep_last + job.checkpoint.keep_initial + 1)
    if job.load_params is not None:
        return _with_average(job, first_state(job.load_params(job.spec.axes), tx)), 0, None
    state = init_state(job.spec.model, job.spec.axes, tx, jax.random.key(job.seed))
    return _with_average(job, state), 0, None


def _with_average(job: TrainJob, state: TrainState) -> TrainState:
    return state if job.spec.ema_decay is None else with_ema(state, job.spec.freeze)


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
    tx = make_optimizer(job.optim, job.steps, freeze=job.spec.freeze)
    beginning = find_beginning(job.run_dir)
    state, next_row, resumed_from = start_state(job, tx, newest=beginning.newest)
    outcome = Outcome(
        step=int(state.step), finished=False, resumed_from=resumed_from, attempt=beginning.attempt,
        set_aside=tuple(map(Path, beginning.set_aside)),
    )  # fmt: skip
    if on_start:
        on_start(outcome)
    utilisation = make_utilisation(job.spec, job.train)
    writer = MetricsWriter(
        job.run_dir, attempt=outcome.attempt, languages=job.languages, sources=job.sources,
        language_every=job.train.log_every, shares_after=job.shares_after, peak_flops_per_s=utilisation.peak_of_all,
        trackers=open_trackers(job.train, job.run_dir, about=job.meta) if is_first() else (), writes=is_first(),
    )  # fmt: skip
    saver = Saver(job.run_dir, job.checkpoint, meta=job.meta, plan_hash=job.plan_hash)
    profile = StepProfile(job.run_dir, job.train.profile)
    with stop_on_signals() as stop, saver, profile:
        try:
            writer.write_start(
                outcome.step,
                {
                    "devices": jax.device_count(),
                    "mesh": dict(jax.sharding.get_mesh().shape),
                    "plan_hash": job.plan_hash,
                    "process_s": process_age_s(),
                },
            )
            if resumed_from is None and saver.is_due(0, last=job.steps):
                _save(saver, writer, state, step=0, next_row=0)
            batches = open_batches(next_row)
            step = _advance(job, tx, state, next_row, batches, writer, saver, stop, show, profile)
        finally:
            writer.close()
    return dataclasses.replace(outcome, step=step, finished=step == job.steps)


class _Pending(NamedTuple):
    """A step that was dispatched and not yet written."""

    step: int
    metrics: StepMetrics
    notes: Notes | None
    facts: BatchFacts


def list_rates(job: TrainJob) -> np.ndarray:
    """The learning rate of each step, made before the first: one made beside a step would wait for the devices."""
    schedule = make_schedule(job.optim, job.steps)
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(jax.vmap(lambda step: jax.numpy.asarray(schedule(step)))(jax.numpy.arange(job.steps)))


def _save(saver: Saver, writer: MetricsWriter, state: TrainState, *, step: int, next_row: int) -> None:
    """Saves, and notes how long the run stood still for it."""
    began = time.monotonic()
    saver.save(state, step=step, next_row=next_row)
    seconds = time.monotonic() - began
    writer.write_event("save", step, {"seconds": round(seconds, 6)}, {"speed/save_s": seconds})


def _make_look(job: TrainJob, writer: MetricsWriter) -> Callable[..., None]:
    """What looks at the held-out rows, if there are any, and notes what it saw."""
    if job.held_out is None:
        return lambda _params, *, step: None
    see = make_look(job.held_out, job.spec)

    def look(params: Params, *, step: int) -> None:
        record = see(params)
        writer.write_event("held_out", step, record, scalars_of(record))

    return look


def _write(
    writer: MetricsWriter, show: ShowStep, rates_S: np.ndarray, share: Share, clock: StepClock, pending: _Pending
) -> bool:
    """Waits for a step and writes it; returns whether any process had been told to stop by then."""
    step, metrics, notes, facts = pending
    jax.block_until_ready(metrics)
    clock.lap("device_s")
    split, compiled = clock.cut()
    told = False
    if notes is not None:
        facts, told = read_notes(notes, facts, share)
    rate = float(rates_S[step - 1])
    show(writer.write_step(step, metrics, facts, learning_rate=rate, split=split, compiled=compiled))
    clock.lap("write_s")
    return told


def _advance(job, tx, state, next_row, batches, writer, saver, stop, show, profile) -> int:
    """Runs steps until the end or a stop request; returns the step whose state is saved."""
    batch_spec = job.spec.axes.spec("batch", None)
    share = share_of_batch(jax.sharding.get_mesh(), batch_spec, rows=job.train.batch_rows)
    is_alone = jax.process_count() == 1
    utilisation = make_utilisation(job.spec, job.train)
    describe = functools.partial(describe_batch, num_languages=len(job.languages), num_sources=len(job.sources))

    @functools.cache
    def compile_update(most_trained: int):
        spec = dataclasses.replace(job.spec, most_trained=most_trained)
        return jax.jit(functools.partial(_update, spec, tx), donate_argnums=0)

    clock = StepClock()
    write = functools.partial(_write, writer, show, list_rates(job), share, clock)
    look = _make_look(job, writer)
    first, last = int(state.step), job.steps
    if first == 0:
        look(state.params, step=0)
    pending: _Pending | None = None
    clock.restart()
    for step in range(first + 1, last + 1):
        profile.before(step)
        batch = next(batches)
        clock.lap("data_wait_s")
        most_trained = job.most_trained_S[step - 1]
        check_batch(batch, most_trained)
        facts = describe(batch, first_row=next_row, flops=utilisation.count_flops(batch))
        notes = None if is_alone else write_notes(facts, share, is_stopping=stop.signal is not None)
        made_before = compile_update.cache_info().misses
        update = compile_update(most_trained)
        state, metrics, notes = update(state, put_batch(batch, batch_spec, shares=share.count), notes)
        clock.lap("dispatch_s", compiled=compile_update.cache_info().misses > made_before)
        # The step before: the device is busy with this one meanwhile.
        told = write(pending) if pending else False
        pending = _Pending(step, metrics, notes, facts)
        profile.after(step, metrics)
        next_row += job.train.batch_rows
        # Asked once: a signal that comes after this waits for the next step. Several processes go by what all of them
        # read in the step before, so that they stop at the same one.
        stopping = stop.signal is not None if is_alone else told
        saves, looks = saver.is_due(step, last=last), job.held_out is not None and job.held_out.is_due(step, last=last)
        if stopping or saves or looks:
            stopping |= write(pending)
            pending = None
            if looks:
                look(state.params, step=step)
            if stopping or saves:
                writer.write_languages()
                _save(saver, writer, state, step=step, next_row=next_row)
            clock.restart()
        if stopping:
            return step
    return last


def _update(
    spec: StepSpec, tx: optax.GradientTransformation, state: TrainState, batch: Batch, notes: Notes | None
) -> tuple[TrainState, StepMetrics, Notes | None]:
    """A step, and with it what several processes tell each other."""
    state, metrics = train_step(spec, tx, state, batch)
    return state, metrics, None if notes is None else spread_notes(notes)


def head_positions(trained_R: np.ndarray, *, batch_rows: int, row_length: int, multiple: int = 1) -> list[int]:
    """K of each step: the largest count of trained positions in any row of its batch, from a few sizes.

    The sizes are T / 8, T / 4, 3 T / 8, T / 2, 3 T / 4 and T, so a run compiles a handful of programs at most. Every
    host knows the whole plan, so all of them choose alike. They are rounded up to a `multiple`, which divides T, where
    positions are sharded. Rows that train (3 4 2 16) of 16, two a batch: K = (4, 16).
    """
    eighths = (max(1, row_length * eighths // 8) for eighths in (1, 2, 3, 4, 6, 8))
    sizes = np.unique([-(-size // multiple) * multiple for size in eighths])
    most_S = trained_R.reshape(-1, batch_rows).max(axis=1)
    return [int(size) for size in sizes[np.searchsorted(sizes, most_S)]]
