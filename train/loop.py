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
import jax.numpy as jnp
import numpy as np
import optax

from data.batch import Batch
from model.parallel import AxisRules
from model.transformer import Params
from train.beginning import Beginning, find_beginning
from train.checkpoint import Damaged, check_disk, restore_step
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.guard import DescribeRow, Guard
from train.hosts import Notes, Share, Told, is_first, read_notes, share_of_batch, spread_notes, write_notes
from train.metrics import BatchFacts, MetricsWriter, SharesAfter, describe_batch
from train.optim import make_optimizer, make_schedule
from train.progress import ShowStep
from train.saver import Saver
from train.spikes import watch_spikes
from train.stage import Stage
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
    describe_row: DescribeRow | None = None
    """The examples of a global row, for the record of a skipped step; None: they are left out."""
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
    damaged: tuple[Damaged, ...] = ()
    """Checkpoints that are not as they were written any more, and were moved too."""
    is_unverified: bool = False
    """Whether the checkpoint it goes on from had no checksums to be verified by."""


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


def start_state(
    job: TrainJob, tx: optax.GradientTransformation, *, newest: int | None
) -> tuple[TrainState, int, int | None]:
    """The state to go on from, its next global row, and the step it was restored from (None: a fresh run)."""
    abstract = abstract_state(job.spec.model, job.spec.axes, tx)
    if newest is not None:
        wanted = None if job.accepts_changed_plan else job.plan_hash
        state, next_row = restore_step(job.run_dir, newest, abstract, plan_hash=wanted)
        return state, next_row, newest
    if is_first():
        check_disk(job.run_dir, abstract, copies=job.checkpoint.keep_last + job.checkpoint.keep_initial + 1)
    if job.load_params is not None:
        return first_state(job.load_params(job.spec.axes), tx), 0, None
    return init_state(job.spec.model, job.spec.axes, tx, jax.random.key(job.seed)), 0, None


def put_batch(batch: Batch, spec: jax.sharding.PartitionSpec, *, shares: int = 1) -> Batch:
    """The global batch on the mesh in use, of which `batch` is this process's share, one of so many."""
    sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)

    def put(x_BT: np.ndarray) -> jax.Array:
        rows, length = x_BT.shape
        return jax.make_array_from_process_local_data(sharding, x_BT, (rows * shares, length))

    return jax.tree.map(put, batch)


def check_batch(batch: Batch, most_trained: int) -> None:
    """Raises ValueError when a row trains more positions than the step was built for: their loss would vanish.

    Also when no row trains any: the mean loss would be zero by zero, and all parameters with it.
    """
    most = int((batch.loss_weight_BT > 0).sum(axis=1).max())
    if most == 0:
        raise ValueError("a batch trains no position at all; the plan should hold no example without loss weight")
    if most > most_trained:
        raise ValueError(f"a row trains {most} positions, the plan promised at most {most_trained}")


def run_training(
    job: TrainJob,
    *,
    open_batches: Callable[[int], Iterator[Batch]],
    show: ShowStep,
    on_start: Callable[[Outcome], None] = lambda outcome: None,
    beginning: Beginning | None = None,
    stage: Stage | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Trains to the last step, or until told to stop, from the newest checkpoint of the run if there is one.

    `open_batches(first_row)` gives the iterator of global batches from that row on: a seek, not a replay.
    `show` sees each finished step; `on_start(outcome)` is told where the run begins; `stage` is kept up to date;
    `say` is given what a person should know at once: skipped steps, failed saves.
    """
    tx = make_optimizer(job.optim, job.steps)
    tx = tx if job.train.spikes is None else watch_spikes(tx, job.train.spikes)
    beginning = beginning or find_beginning(job.run_dir)
    stage = stage or Stage()
    stage.begins(beginning.newest)
    state, next_row, resumed_from = start_state(job, tx, newest=beginning.newest)
    outcome = Outcome(
        step=int(state.step), finished=False, resumed_from=resumed_from, attempt=beginning.attempt,
        set_aside=tuple(map(Path, beginning.set_aside)), damaged=beginning.damaged,
        is_unverified=beginning.is_unverified,
    )  # fmt: skip
    on_start(outcome)
    share = share_of_batch(jax.sharding.get_mesh(), job.spec.axes.spec("batch", None), rows=job.train.batch_rows)
    writer = MetricsWriter(
        job.run_dir, attempt=outcome.attempt, languages=job.languages, language_every=job.train.log_every,
        tensorboard=job.train.tensorboard, shares_after=job.shares_after, writes=is_first(),
    )  # fmt: skip
    most_trained = max(job.most_trained_S, default=job.spec.most_trained)
    spec = dataclasses.replace(job.spec, most_trained=most_trained, spikes=job.train.spikes)
    guard = Guard(job.run_dir, job.train, spec=spec, share=share, describe_row=job.describe_row)
    saver = Saver(job.run_dir, job.checkpoint, meta=job.meta, plan_hash=job.plan_hash)
    with stop_on_signals() as stop, saver:
        run = _Run(job, tx, spec, share, writer, saver, guard, stop, show, stage, say)
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
                stage.saves(0)
                saver.save(state, step=0, next_row=0)
            step = _advance(run, state, next_row, open_batches(next_row))
        finally:
            writer.close()
    stage.ends()
    return dataclasses.replace(outcome, step=step, finished=step == job.steps)


class _Run(NamedTuple):
    """What the steps of a run are made with and told to."""

    job: TrainJob
    tx: optax.GradientTransformation
    spec: StepSpec
    share: Share
    writer: MetricsWriter
    saver: Saver
    guard: Guard
    stop: StopRequest
    show: ShowStep
    stage: Stage
    say: Callable[[str], None]

    def hear(self) -> Told:
        """What this process is told by signals and by its own saves."""
        return Told(stops=self.stop.signal is not None, saves=self.saver.wants_retry())

    def place(self, batch: Batch) -> Batch:
        """This process's share of a batch, on the mesh in use."""
        return put_batch(batch, self.job.spec.axes.spec("batch", None), shares=self.share.count)


class _Pending(NamedTuple):
    """A step that was dispatched and not yet written."""

    step: int
    metrics: StepMetrics
    notes: Notes | None
    facts: BatchFacts
    batch: Batch
    began: float


def _advance(run: _Run, state: TrainState, next_row: int, batches: Iterator[Batch]) -> int:
    """Runs steps until the end or a stop request; returns the step whose state is saved."""
    # All at once: asked between steps, a device would answer only after the step that it is busy with.
    with jax.numpy_dtype_promotion("standard"):
        rates_S = np.asarray(jax.vmap(make_schedule(run.job.optim, run.job.steps))(jnp.arange(run.job.steps)))
    stage, last = run.stage, run.job.steps
    is_alone = jax.process_count() == 1
    compiled: dict[int, Callable[..., Any]] = {}

    def write(pending: _Pending, ahead: int, *, ended: float | None = None) -> Told:
        """Waits for a step, which ended then or does now, and writes it; returns what any process has said with it."""
        stage.computes(pending.step, ahead=ahead)
        jax.block_until_ready(pending.metrics)
        stage.writes(pending.step, ahead=ahead)
        ended = time.monotonic() if ended is None else ended
        return _write(run, pending, ended, learning_rate=float(rates_S[pending.step - 1]), params=state.params)

    pending: _Pending | None = None
    for step in range(int(state.step) + 1, last + 1):
        began = time.monotonic()
        stage.loads(step)
        batch = next(batches)
        most_trained = run.job.most_trained_S[step - 1]
        check_batch(batch, most_trained)
        facts = describe_batch(batch, first_row=next_row, num_languages=len(run.job.languages))
        notes = None if is_alone else write_notes(facts, run.share, run.hear())
        stage.dispatches(step, compiles=most_trained not in compiled)
        if most_trained not in compiled:
            spec = dataclasses.replace(run.spec, most_trained=most_trained)
            compiled[most_trained] = jax.jit(functools.partial(_update, spec, run.tx), donate_argnums=0)
        state, metrics, notes = compiled[most_trained](state, run.place(batch), notes)
        # The step before: the device is busy with this one meanwhile.
        told = write(pending, step, ended=began) if pending else Told()
        pending = _Pending(step, metrics, notes, facts, batch, began)
        next_row += run.job.train.batch_rows
        # Asked once: a signal that comes after this waits for the next step. Several processes go by what all of them
        # read in the step before, so that they stop, or save, at the same one.
        now = run.hear() if is_alone else told
        if now.stops or now.saves or run.saver.is_due(step, last=last):
            told = write(pending, step)
            pending = None
            run.writer.write_languages()
            stage.saves(step)
            stopping = now.stops or told.stops
            _save(run, state, step, next_row, is_last=step == last, stopping=stopping)
            if stopping:
                return step
    return last


def _write(run: _Run, pending: _Pending, ended: float, *, learning_rate: float, params: Params) -> Told:
    """Writes and shows a finished step, tells of saves, and looks for skipped steps."""
    facts, told = pending.facts, Told()
    if pending.notes is not None:
        facts, told = read_notes(pending.notes, facts, run.share)
    record = run.writer.write_step(
        pending.step, pending.metrics, facts, learning_rate=learning_rate, seconds=ended - pending.began
    )
    run.show(record)
    if (skipped := run.guard.judge(record, params, pending.batch, run.place)) is not None:
        run.say(skipped)
    _tell_of_saves(run)
    return told


def _tell_of_saves(run: _Run) -> None:
    for event in run.saver.take_events():
        if event.error is not None:
            run.writer.write_event("save_failed", event.step, error=event.error)
            run.say(f"step {event.step} is not saved: {event.error}")
            continue
        run.writer.write_event("saved", event.step)
        if event.notice is not None:
            run.say(f"step {event.step} is saved, but {event.notice}")


def _save(run: _Run, state: TrainState, step: int, next_row: int, *, is_last: bool, stopping: bool) -> None:
    """Starts a save; of the last step, waits for it."""
    try:
        if is_last or stopping:
            run.saver.save_last(state, step=step, next_row=next_row, patient=not stopping)
        else:
            run.saver.save(state, step=step, next_row=next_row)
    finally:
        _tell_of_saves(run)


def _update(
    spec: StepSpec, tx: optax.GradientTransformation, state: TrainState, batch: Batch, notes: Notes | None
) -> tuple[TrainState, StepMetrics, Notes | None]:
    """A step, and with it what several processes tell each other."""
    state, metrics = train_step(spec, tx, state, batch)
    return state, metrics, None if notes is None else spread_notes(notes)


def head_positions(trained_R: np.ndarray, *, batch_rows: int, row_length: int) -> list[int]:
    """K of each step: the largest count of trained positions in any row of its batch, from a few sizes.

    The sizes are T / 8, T / 4, 3 T / 8, T / 2, 3 T / 4 and T, so a run compiles a handful of programs at most. Every
    host knows the whole plan, so all of them choose alike. Rows that train (3 4 2 16) of 16, two a batch: K = (4, 16).
    """
    sizes = np.unique([max(1, row_length * eighths // 8) for eighths in (1, 2, 3, 4, 6, 8)])
    most_S = trained_R.reshape(-1, batch_rows).max(axis=1)
    return [int(size) for size in sizes[np.searchsorted(sizes, most_S)]]
