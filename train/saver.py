"""Writes the checkpoints of a run, asynchronously, with checksums; tells of what was saved and of what failed."""

import contextlib
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from model.checkpoint import FORMAT, CheckpointError, checkpoint_context, list_steps
from model.checksums import write_checksums
from train.config import CheckpointConfig
from train.hosts import agree, is_first
from train.paths import overlay
from train.save_barrier import SaveBarrier, use_barrier
from train.state import TrainState

SLEEP_S = 10.0
"""Most seconds that a process waiting for a retry gives no sign."""


POLL_S = 0.5
"""Between two looks at whether a save has failed in another process."""


CLEARING_TRIES, CLEARING_PAUSE_S = 50, 0.1


class SaveEvent(NamedTuple):
    """A checkpoint that is whole by now, or a save that has failed."""

    step: int
    error: str | None = None
    """What went wrong; None: the checkpoint is whole."""
    notice: str | None = None
    """Of a checkpoint that is whole and yet lacks something."""


class Saver:
    """Writes checkpoints of one run. A context manager: leaving it waits for the last save.

    `meta` is saved with every checkpoint; `data` is the one integer of data state, the next global row, and the hash
    of the plan it indexes. With several processes all call `save` and `save_last` alike, and agree there on whether the
    save before has failed.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, *, meta: dict[str, Any], plan_hash: str):
        self._folder = run_dir.resolve() / "checkpoints"
        self._config = config
        self._meta = {"format": FORMAT, **meta}
        self._plan_hash = plan_hash
        self._writing: _Writing | None = None
        self._agreed = 0
        self._opened = 0
        self._abandoned: list[threading.Thread] = []
        self._checkpointer: ocp.training.Checkpointer | None = self._open()
        self._failures = 0
        self._failed_at = 0.0
        self._last_error = ""
        self._events: list[SaveEvent] = []

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and jax.process_count() > 1:
            return  # the others do not come to what closing waits for: they are to be told first
        try:
            self._settle()
            if self._checkpointer is not None:
                self._checkpointer.close()
        except Exception as failure:
            if error is not None:
                return  # which comes out, and is what is to be told
            if isinstance(failure, CheckpointError):
                raise
            raise _final(_explain(failure, self._folder)) from failure

    def is_due(self, step: int, *, last: int) -> bool:
        """True if a state of this step should be saved by interval, as the first or as the last one."""
        return step == last or (step % self._config.save_every == 0 and (step > 0 or self._config.keep_initial))

    def wants_retry(self) -> bool:
        """Whether a save has failed in this process and it is time to try again, before the next one is due."""
        return self._failed_at > 0 and time.monotonic() - self._failed_at >= self._config.retry_every_s

    def take_events(self) -> list[SaveEvent]:
        """What has happened to saves since the last call; cheap, to be called every step.

        Raises CheckpointError for a save that failed in this process, unless the recipe says to retry.
        """
        if self._barrier.problem is not None and self._config.on_error == "stop":
            raise _final(self._barrier.problem)
        if self._writing is not None and not self._writing.is_alive():
            if jax.process_count() == 1:
                self._settle()
            elif (error := self._writing.error) is not None:
                if self._config.on_error == "stop":
                    raise _final(error)
                self._failed_at = self._failed_at or time.monotonic()
            elif not self._writing.failed_elsewhere:
                self._tell_saved(self._writing)
        events, self._events = self._events, []
        return events

    def save(self, state: TrainState, *, step: int, next_row: int) -> None:
        """Starts saving; returns once the state has been copied, so that it may be donated. Waits for a save before it.

        Raises CheckpointError when this or the previous save could not be written, unless the recipe says to retry.
        """
        self._settle()
        if (problem := self._agree(_probe(self._folder))) is not None:
            self._fail(step, problem)
            return
        items = {
            "params": state.params,
            "opt_state": state.opt_state,
            "data": {"next_row": next_row, "plan_hash": self._plan_hash},
            "meta": {**self._meta, "step": step},
        }
        if state.ema is not None:  # whole, so that it is a model by itself
            items["ema"] = overlay(state.params, state.ema)
        try:
            if self._checkpointer is None:
                self._checkpointer = self._open()
            response = self._checkpointer.save_checkpointables_async(step, items)
        except Exception as failure:
            if jax.process_count() > 1:  # the others may wait for this one inside of Orbax: it must end for them to
                raise _final(_explain(failure, self._folder)) from failure
            self._writing = _Writing(step, self._folder, functools.partial(_raise, failure), self._barrier)
        else:
            if response is None:
                raise CheckpointError(f"step {step} was not saved: {self._folder} already holds it or a later step")
            self._writing = _Writing(step, self._folder, response.result, self._barrier)
        self._writing.start()

    def save_last(
        self,
        state: TrainState,
        *,
        step: int,
        next_row: int,
        patient: bool,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Saves and waits until the checkpoint is whole; tries again as the recipe says, if there is time (`patient`).

        `on_wait` is called now and then between the tries: they may take longer than a process may be at one thing.
        Raises CheckpointError when it could not be written.
        """
        self.save(state, step=step, next_row=next_row)
        self._settle()
        while self._failures:
            if not patient:
                raise _final(f"step {step} is not saved, and the run was told to stop: {self._last_error}")
            left_s = self._config.retry_every_s
            while left_s > 0:
                time.sleep(min(left_s, SLEEP_S))
                left_s -= SLEEP_S
                on_wait()
            # The same step goes into the same folder: whoever still writes there, of a failed save, is to end first.
            while self._agree("writes" if any(thread.is_alive() for thread in self._abandoned) else None) is not None:
                time.sleep(SLEEP_S)
                on_wait()
            self.save(state, step=step, next_row=next_row)
            self._settle()

    def _settle(self) -> None:
        """Waits for the save that is being written, and agrees with the other processes on how it ended."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        writing.join()
        error = self._agree(writing.error)
        if error is not None:
            if writing.failed_elsewhere:  # closing would wait for what it waits for
                self._abandoned = [thread for thread in self._abandoned if thread.is_alive()] + [writing.waiting]
                self._checkpointer = None
            self._fail(writing.step, error)
        else:
            self._failures, self._failed_at = 0, 0.0
            self._tell_saved(writing)

    def _open(self) -> ocp.training.Checkpointer:
        """A checkpointer that begins with a folder free of half-written checkpoints."""
        self._opened += 1
        self._barrier = SaveBarrier(f"save-{self._opened}", functools.partial(_explain, folder=self._folder))
        if is_first() and self._opened > 1:
            _clear_incomplete(self._folder.parent)  # again: the folder may have been out of reach when the save failed
        return _open(self._folder, self._config, self._barrier)

    def _tell_saved(self, writing: "_Writing") -> None:
        """Once: of several processes each finds the checkpoint whole before all of them agree that it is."""
        if not writing.is_told:
            writing.is_told = True
            self._events.append(SaveEvent(writing.step, notice=writing.notice))

    def _agree(self, problem: str | None) -> str | None:
        self._agreed += 1
        return agree(f"save-{self._agreed}", problem)

    def _fail(self, step: int, error: str) -> None:
        """Clears away what a failed save has left; raises CheckpointError unless the recipe says to retry."""
        self._failures += 1
        self._failed_at = time.monotonic()
        self._last_error = error
        self._events.append(SaveEvent(step, error=error))
        # A checkpointer goes on to count the step that failed: the next save has a new one, which reads the folder.
        if self._checkpointer is not None:
            with contextlib.suppress(Exception):  # the failure that is told of by now, once more
                self._checkpointer.close()
            self._checkpointer = None
        if is_first():
            with contextlib.suppress(OSError):  # out of reach: what is left there is cleared away by the next save
                _clear_incomplete(self._folder.parent)
        if self._config.on_error == "stop":
            raise _final(error)
        if self._failures >= self._config.max_failures:
            raise _final(f"{self._failures} saves in a row have failed (checkpoint.max_failures): {error}")


class _Writing(threading.Thread):
    """Waits for one save to be committed, then writes its checksums; `error` says why it was not.

    Of several processes only those have an `error` that failed themselves: elsewhere `failed_elsewhere` is set.
    """

    def __init__(self, step: int, folder: Path, wait: Callable[[], object], barrier: SaveBarrier):
        super().__init__(name=f"polytune-save-{step}", daemon=True)
        self.step = step
        self.error: str | None = None
        self.failed_elsewhere = False
        self.notice: str | None = None
        self.is_told = False
        self.waiting = threading.Thread(target=self._end, name=f"polytune-wait-{step}", daemon=True)
        """Goes on waiting for Orbax where the save has failed elsewhere."""
        self._folder = folder
        self._wait = wait
        self._barrier = barrier

    def run(self) -> None:
        if jax.process_count() == 1:
            self._end()
            return
        self.waiting.start()
        while self.waiting.is_alive():
            self.waiting.join(POLL_S)
            if self._barrier.problem is None and self._barrier.has_failed():
                self.failed_elsewhere = True
                return

    def _end(self) -> None:
        try:
            self._wait()
        except Exception as failure:  # of whatever kind: it is told of, by `error`
            if not self.failed_elsewhere:
                self.error = _explain(failure, self._folder)
            return
        if not is_first():
            return
        try:
            write_checksums(self._folder / str(self.step))
        except OSError as failure:
            if (self._folder / str(self.step)).exists():  # a later save may have made room of it already
                self.notice = f"its checksums could not be written: {failure}"


def _open(folder: Path, config: CheckpointConfig, barrier: SaveBarrier) -> ocp.training.Checkpointer:
    policies = ocp.training.preservation_policies
    # Any: Orbax's policies do not match its own protocols in its annotations.
    keep: list[Any] = [policies.LatestN(config.keep_last)]
    if config.keep_every:
        keep.append(policies.EveryNSteps(config.keep_every))
    if config.keep_initial:
        keep.append(policies.CustomSteps([0]))
    keep_any: Any = policies.AnyPreservationPolicy(keep)
    always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    configured = checkpoint_context()
    use_barrier(configured, barrier)
    with configured as context:
        return ocp.training.Checkpointer(
            str(folder),
            context=context,
            save_decision_policy=always,
            preservation_policy=keep_any,
            # Orbax clears away in a thread that outlives its checkpointer: it would remove what a later one writes.
            cleanup_tmp_directories=False,
        )


def _clear_incomplete(run_dir: Path) -> None:
    """Removes half-written checkpoints, again if need be: threads of a failed save may write on for a moment."""
    quiet, pause = 0, threading.Event()
    for _ in range(CLEARING_TRIES):
        left = list_steps(run_dir)[1]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        quiet = 0 if left else quiet + 1
        if quiet == 2:
            return
        pause.wait(CLEARING_PAUSE_S)


def _probe(folder: Path) -> str | None:
    """Why nothing can be written into the folder, seen by writing a small file; None if it can.

    Process 0 makes a folder too: it makes those of a checkpoint, and for them others wait up to ten minutes in Orbax.
    """
    path = folder / f".probe-{jax.process_index()}"
    try:
        with path.open("wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        if is_first():
            path.mkdir()
            path.rmdir()
    except OSError as failure:
        return _explain(failure, folder)
    return None


def _explain(failure: BaseException, folder: Path) -> str:
    try:
        room = f"; {shutil.disk_usage(folder).free / 1e6:.0f} MB are free there"
    except OSError:
        room = ""
    return f"a checkpoint could not be written to {folder} ({type(failure).__name__}: {str(failure)[:600]}){room}"


def _final(error: str) -> CheckpointError:
    return CheckpointError(
        f"{error}. Earlier checkpoints are intact: make room, then run the same command again to go on from the newest"
    )


def _raise(failure: Exception) -> None:
    raise failure
