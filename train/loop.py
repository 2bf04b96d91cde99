"""The loop: next batch, dispatch, write the step before, save when due, stop when told."""

import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from data.batch import Batch
from model.transformer import Params
from train.beginning import Beginning, find_beginning
from train.checkpoint import check_disk, restore_step
from train.guard import Guard
from train.held_out import Look, make_look, scalars_of
from train.hosts import (
    Notes,
    Share,
    Told,
    is_first,
    put_batch,
    read_notes,
    row_order,
    share_of_batch,
    spread_notes,
    write_notes,
)
from train.job import Outcome, TrainJob, list_rates
from train.metrics import BatchFacts, MetricsWriter, describe_batch
from train.mfu import Utilisation, make_utilisation
from train.optim import make_optimizer
from train.profiling import StepProfile
from train.progress import ShowStep
from train.saver import Saver
from train.spikes import watch_spikes
from train.stage import Stage
from train.state import TrainState, abstract_state, first_state, init_state, with_ema
from train.step import StepMetrics, StepSpec, train_step
from train.timing import StepClock, process_age_s
from train.trackers import open_trackers


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
    memory = job.spec.optimizer_memory
    abstract = _with_average(job, abstract_state(job.spec.model, job.spec.axes, tx, memory=memory))
    if newest is not None:
        wanted = None if job.accepts_changed_plan else job.plan_hash
        state, next_row = restore_step(job.run_dir, newest, abstract, plan_hash=wanted)
        return state, next_row, newest
    if is_first():
        check_disk(job.run_dir, abstract, copies=job.checkpoint.keep_last + job.checkpoint.keep_initial + 1)
    if job.load_params is not None:
        return _with_average(job, first_state(job.load_params(job.spec.axes), tx, memory=memory)), 0, None
    state = init_state(job.spec.model, job.spec.axes, tx, jax.random.key(job.seed), memory=memory)
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
    tx = make_optimizer(job.optim, job.steps, freeze=job.spec.freeze)
    tx = tx if job.train.spikes is None else watch_spikes(tx, job.train.spikes)
    beginning = beginning or find_beginning(job.run_dir)
    stage = stage or Stage()
    stage.begins(beginning.newest)
    began = time.monotonic()
    state, next_row, resumed_from = start_state(job, tx, newest=beginning.newest)
    restore_s = None if resumed_from is None else time.monotonic() - began
    outcome = Outcome(
        step=int(state.step), finished=False, resumed_from=resumed_from, attempt=beginning.attempt,
        set_aside=tuple(map(Path, beginning.set_aside)), damaged=beginning.damaged,
        is_unverified=beginning.is_unverified,
    )  # fmt: skip
    on_start(outcome)
    with _open_run(job, tx, stage, show, say, attempt=outcome.attempt) as run:
        run.writer.write_start(
            outcome.step,
            {
                "devices": jax.device_count(),
                "mesh": dict(jax.sharding.get_mesh().shape),
                "plan_hash": job.plan_hash,
                "process_s": process_age_s(),
                "restore_s": restore_s,
            },
        )
        if resumed_from is None and run.saver.is_due(0, last=job.steps):
            stage.saves(0)
            _save(run, state, 0, 0, is_last=False, stopping=False)
        step = _advance(run, state, next_row, open_batches(next_row))
    stage.ends()
    return dataclasses.replace(outcome, step=step, finished=step == job.steps)


class _Run(NamedTuple):
    """What the steps of a run are made with and told to."""

    job: TrainJob
    tx: optax.GradientTransformation
    spec: StepSpec
    share: Share
    utilisation: Utilisation
    rates_S: np.ndarray
    look: Look | None
    writer: MetricsWriter
    saver: Saver
    guard: Guard
    stop: StopRequest
    profile: StepProfile
    clock: StepClock
    show: ShowStep
    stage: Stage
    say: Callable[[str], None]

    def hear(self) -> Told:
        """What this process is told by signals and by its own saves."""
        return Told(stops=self.stop.signal is not None, saves=self.saver.wants_retry())

    def place(self, batch: Batch) -> Batch:
        """This process's share of a batch, on the mesh in use."""
        return put_batch(batch, self.job.spec.axes.spec("batch", None), shares=self.share.count)

    def describe(self, batch: Batch, first_row: int) -> BatchFacts:
        """What is known of this process's share of a batch."""
        return describe_batch(
            batch, first_row=first_row, num_languages=len(self.job.languages), num_sources=len(self.job.sources),
            flops=self.utilisation.count_flops(batch),
        )  # fmt: skip


@contextmanager
def _open_run(
    job: TrainJob, tx: optax.GradientTransformation, stage: Stage, show: ShowStep, say, *, attempt: int
) -> Iterator[_Run]:
    """Opens all that a run writes to, and closes it, the log first: a save that fails is told after it."""
    layout = (jax.sharding.get_mesh(), job.spec.axes.spec("batch", None))
    share = share_of_batch(*layout, rows=job.train.batch_rows)
    utilisation = make_utilisation(job.spec, job.train)
    writer = MetricsWriter(
        job.run_dir, attempt=attempt, languages=job.languages, sources=job.sources,
        language_every=job.train.log_every, shares_after=job.shares_after, peak_flops_per_s=utilisation.peak_of_all,
        trackers=open_trackers(job.train, job.run_dir, about=job.meta) if is_first() else (), writes=is_first(),
    )  # fmt: skip
    most_trained = max(job.most_trained_S, default=job.spec.most_trained)
    order = row_order(*layout, rows=job.train.batch_rows)
    spec = dataclasses.replace(job.spec, most_trained=most_trained, spikes=job.train.spikes, row_order=order)
    guard = Guard(job.run_dir, job.train, spec=spec, share=share, describe_row=job.describe_row)
    saver = Saver(job.run_dir, job.checkpoint, meta=job.meta, plan_hash=job.plan_hash)
    profile = StepProfile(job.run_dir, job.train.profile)
    with stop_on_signals() as stop, saver, profile:
        try:
            yield _Run(
                job=job, tx=tx, spec=spec, share=share, utilisation=utilisation, rates_S=list_rates(job),
                look=None if job.held_out is None else make_look(job.held_out, job.spec), writer=writer, saver=saver,
                guard=guard, stop=stop, profile=profile, clock=StepClock(), show=show, stage=stage, say=say,
            )  # fmt: skip
        finally:
            writer.close()


class _Pending(NamedTuple):
    """A step that was dispatched and not yet written."""

    step: int
    metrics: StepMetrics
    notes: Notes | None
    facts: BatchFacts
    batch: Batch


def _advance(run: _Run, state: TrainState, next_row: int, batches: Iterator[Batch]) -> int:
    """Runs steps until the end or a stop request; returns the step whose state is saved."""
    stage, clock, first, last = run.stage, run.clock, int(state.step), run.job.steps
    is_alone = jax.process_count() == 1
    programs: dict[int, Callable[..., Any]] = {}
    if first == 0:
        _look(run, state.params, 0)
    pending: _Pending | None = None
    clock.restart()
    for step in range(first + 1, last + 1):
        run.profile.before(step)
        stage.loads(step)
        batch = next(batches)
        clock.lap("data_wait_s")
        most_trained = run.job.most_trained_S[step - 1]
        check_batch(batch, most_trained)
        facts = run.describe(batch, next_row)
        notes = None if is_alone else write_notes(facts, run.share, run.hear())
        compiles = most_trained not in programs
        stage.dispatches(step, compiles=compiles)
        if compiles:
            spec = dataclasses.replace(run.spec, most_trained=most_trained)
            programs[most_trained] = jax.jit(functools.partial(_update, spec, run.tx), donate_argnums=0)
        state, metrics, notes = programs[most_trained](state, run.place(batch), notes)
        clock.lap("dispatch_s", compiled=compiles)
        # The step before: the device is busy with this one meanwhile.
        told = _write(run, pending, state.params, ahead=step) if pending else Told()
        pending = _Pending(step, metrics, notes, facts, batch)
        run.profile.after(step, metrics)
        next_row += run.job.train.batch_rows
        # Asked once: a signal that comes after this waits for the next step. Several processes go by what all of them
        # read in the step before, so that they stop, or save, at the same one.
        now = run.hear() if is_alone else told
        saves = now.stops or now.saves or run.saver.is_due(step, last=last)
        if saves or _looks(run, step):
            told = _write(run, pending, state.params, ahead=step)
            pending = None
            stopping = now.stops or told.stops
            if _looks(run, step):
                _look(run, state.params, step)
            if saves or stopping:
                run.writer.write_languages()
                stage.saves(step)
                _save(run, state, step, next_row, is_last=step == last, stopping=stopping)
            if stopping:
                return step
            clock.restart()
    return last


def _write(run: _Run, pending: _Pending, params: Params, *, ahead: int) -> Told:
    """Waits for a step, writes and shows it, tells of saves and looks for skipped steps.

    `ahead` is the step that was dispatched last. Returns what any process has said with the step.
    """
    step, metrics, notes, facts, batch = pending
    run.stage.computes(step, ahead=ahead)
    jax.block_until_ready(metrics)
    run.stage.writes(step, ahead=ahead)
    run.clock.lap("device_s")
    split, compiled = run.clock.cut()
    told = Told()
    if notes is not None:
        facts, told = read_notes(notes, facts, run.share)
    rate = float(run.rates_S[step - 1])
    record = run.writer.write_step(step, metrics, facts, learning_rate=rate, split=split, compiled=compiled)
    run.show(record)
    if (skipped := run.guard.judge(record, params, batch, run.place)) is not None:
        run.say(skipped)
    _tell_of_saves(run)
    run.clock.lap("write_s")
    return told


def _looks(run: _Run, step: int) -> bool:
    return run.job.held_out is not None and run.job.held_out.is_due(step, last=run.job.steps)


def _look(run: _Run, params: Params, step: int) -> None:
    """Looks at the held-out rows, if there are any, and notes what it saw."""
    if run.look is not None:
        run.stage.looks(step)
        record = run.look(params)
        run.writer.write_event("held_out", step, record, scalars_of(record))


def _tell_of_saves(run: _Run) -> None:
    for event in run.saver.take_events():
        if event.error is not None:
            run.writer.write_event("save_failed", event.step, {"error": event.error})
            run.say(f"step {event.step} is not saved: {event.error}")
            continue
        run.writer.write_event("saved", event.step)
        if event.notice is not None:
            run.say(f"step {event.step} is saved, but {event.notice}")


def _save(run: _Run, state: TrainState, step: int, next_row: int, *, is_last: bool, stopping: bool) -> None:
    """Starts a save, and of the last step waits for it; notes how long the run stood still for it."""
    began = time.monotonic()
    try:
        if is_last or stopping:
            run.saver.save_last(
                state, step=step, next_row=next_row, patient=not stopping, on_wait=lambda: run.stage.saves(step)
            )
        else:
            run.saver.save(state, step=step, next_row=next_row)
    finally:
        _tell_of_saves(run)
    seconds = time.monotonic() - began
    run.writer.write_event("save", step, {"seconds": round(seconds, 6)}, {"speed/save_s": seconds})


def _update(
    spec: StepSpec, tx: optax.GradientTransformation, state: TrainState, batch: Batch, notes: Notes | None
) -> tuple[TrainState, StepMetrics, Notes | None]:
    """A step, and with it what several processes tell each other."""
    state, metrics = train_step(spec, tx, state, batch)
    return state, metrics, None if notes is None else spread_notes(notes)
