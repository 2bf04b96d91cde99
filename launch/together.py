"""Several processes fail together: the first failure is told to all, named, and ends them all with its exit code."""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import jax
from rich.console import Console
from rich.text import Text

from train.hosts import PREFIX, store, wait_for_all
from train.stage import Stage

EXIT_USER_ERROR = 2
EXIT_BUG = 1
EXIT_INTERRUPTED = 130

FAILURE = f"{PREFIX}failure"
ALIVE = f"{PREFIX}alive/"
SEEN = f"{PREFIX}seen/"
POLL_S = 0.5
"""Between two signs of life, and two looks at the others'."""
SILENT_S = 60.0
"""Without a sign of life for so long, a process counts as gone. Long: a library may hold Python's lock for a while."""
SUSPECT_S = 4.0
"""The same, once a process's connection to another has broken."""
ADVICE = "Its stacks are in its output; train.stalled_after_s says how long anything may take"
SHOWN = 4
"""Of how many other processes it is told what they do while one has stalled."""
FAREWELL_S = 10.0
"""How long a failing process waits for the others to have seen why."""


class Failure(NamedTuple):
    """Which process failed, and how."""

    process: int
    host: str
    code: int
    """Exit code of every process of the run."""
    what: str
    has_stalled: bool = False
    """Whether it did not fail but came to no end: its stacks say where."""


class Beat(NamedTuple):
    """A sign of life."""

    number: int
    host: str
    order: tuple[int, int] = (0, 0)
    """Of `train.stage.Moment`."""
    what: str = ""
    """What the process does; "": nothing that is watched."""
    seconds: float = 0.0
    """For how long."""
    is_stalled: bool = False
    """Whether that is longer than it may take."""


def exit_code_of(error: BaseException) -> int:
    """2 for what a user can mend, 130 for Ctrl-C, 1 for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_USER_ERROR if isinstance(error, ValueError | OSError) else EXIT_BUG


def print_error(message: str) -> None:
    """Shows an error on standard error."""
    Console(stderr=True).print(Text("error: ", "bold red").append(message, "not bold default"), soft_wrap=True)


@contextlib.contextmanager
def fail_together(
    *, silent_s: float = SILENT_S, stage: Stage | None = None, stalled_after_s: float | None = None
) -> Iterator[None]:
    """Ends this process when any process of the run fails while inside, and all others when this one does.

    An error in here never comes out: it is printed, told to the others, and the process ends at once, because its
    other threads may wait for ever for processes that are gone. Leaving it waits until every process is ready to leave.
    A process alone raises its errors as ever. Either way one that stays in a `stage` for longer than `stalled_after_s`
    (None: any time) is named, and ends the run.
    """
    pace = Pace(stage or Stage(), stalled_after_s)
    if jax.process_count() == 1:
        with _watch_alone(pace):
            yield
        return
    watch = _Watch(silent_s, pace)
    watch.start()
    try:
        yield
        wait_for_all("end")
    except BaseException as error:
        watch.fail(error)
    watch.stop()
    jax.distributed.shutdown()


class Pace(NamedTuple):
    """What this process does, and how long it may take."""

    stage: Stage
    stalled_after_s: float | None

    def beat(self, number: int) -> Beat:
        """The process's sign of life at this moment."""
        host, moment = socket.gethostname(), self.stage.now
        if moment is None:
            return Beat(number, host)
        seconds = time.monotonic() - moment.since
        limit_s = self.stalled_after_s
        is_stalled = limit_s is not None and seconds > limit_s * moment.allowance
        return Beat(number, host, moment.order, moment.what, round(seconds, 1), is_stalled)


@contextlib.contextmanager
def _watch_alone(pace: Pace) -> Iterator[None]:
    """Ends this process, the only one of its run, when it stalls while inside."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(POLL_S):
            if (beat := pace.beat(0)).is_stalled:
                faulthandler.dump_traceback(all_threads=True)
                print_error(f"the process has stalled: it {_say_beat(beat)}. {ADVICE}")
                _exit(EXIT_BUG)

    watch = threading.Thread(target=look, name="polytune-watch", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


class _Watch(threading.Thread):
    """Gives signs of life, looks for failures of the others, and in process 0 for others' signs of life."""

    def __init__(self, silent_s: float, pace: Pace):
        super().__init__(name="polytune-watch", daemon=True)
        self._index, self._count = jax.process_index(), jax.process_count()
        self._store = store()
        self._silent_s = silent_s
        self._pace = pace
        self._ended = threading.Event()
        self._leaving = threading.Lock()
        self._beats = 0
        self._last_beats: dict[int, tuple[Beat, float]] = {}

    def stop(self) -> None:
        """To be called when every process has come to its end."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """The thread: until stopped, or until a failure ends the process."""
        while not self._ended.wait(POLL_S):
            try:
                self._beats += 1
                beat = json.dumps(self._pace.beat(self._beats))
                self._store.key_value_set(f"{ALIVE}{self._index}", beat, allow_overwrite=True)
                if self._index == 0 and (found := self._find_silent(self._silent_s) or self._find_stalled()):
                    self._post(found)
                failure = self._read_failure()
            except jax.errors.JaxRuntimeError as error:
                # Process 0 keeps the store: whatever it ended of, it cannot tell any more.
                failure = _unreachable(error)
            if failure is not None:
                self._leave(failure)

    def fail(self, error: BaseException) -> None:
        """Tells the others of this process's failure, prints it and ends the process; does not return."""
        try:
            failure = self._post(self._explain(error))
        except jax.errors.JaxRuntimeError as lost:
            failure = _unreachable(lost)
        self._leave(failure, error)

    def _explain(self, error: BaseException) -> Failure:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Maybe only the echo of another's end: a broken connection. That one is to be named.
            until = time.monotonic() + SUSPECT_S + 2 * POLL_S
            while time.monotonic() < until:
                if failure := self._read_failure():
                    return failure
                if gone := self._find_silent(SUSPECT_S):
                    return gone
                time.sleep(POLL_S)
        what = f"{type(error).__name__}: {str(error)[:2000]}"
        return Failure(self._index, socket.gethostname(), exit_code_of(error), what)

    def _post(self, failure: Failure) -> Failure:
        """The first failure of the run: this one, unless another was told before."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(FAILURE, json.dumps(failure))
        return self._read_failure() or failure

    def _read_failure(self) -> Failure | None:
        try:
            return Failure(*json.loads(self._store.key_value_try_get(FAILURE)))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _find_silent(self, limit_s: float) -> Failure | None:
        """A process that has given no sign of life for so long since it gave the first."""
        now = time.monotonic()
        for key, text in self._store.key_value_dir_get(ALIVE):
            process, beat = int(key.rpartition("/")[2]), Beat(*json.loads(text))
            last = self._last_beats.get(process)
            if last is None or last[0].number != beat.number:
                self._last_beats[process] = (beat, now)
            elif now - last[1] > limit_s:
                last_seen = f"; when last heard of, it {_say_beat(beat)}" if beat.what else ""
                what = f"no sign of life any more: killed, out of memory, stopped, or its host is gone{last_seen}"
                return Failure(process, beat.host, EXIT_BUG, what)
        return None

    def _find_stalled(self) -> Failure | None:
        """The process that the others wait for, once any has been at one thing for longer than it may take."""
        beats = {process: beat for process, (beat, _) in self._last_beats.items() if beat.what}
        if not any(beat.is_stalled for beat in beats.values()):
            return None
        process = min(beats, key=lambda process: (tuple(beats[process].order), process))
        beat = beats.pop(process)
        others = ", ".join(f"process {index} {other.what}" for index, other in sorted(beats.items())[:SHOWN])
        what = f"it has stalled: it {_say_beat(beat)}{f'; meanwhile {others}' if others else ''}. {ADVICE}"
        return Failure(process, beat.host, EXIT_BUG, what, has_stalled=True)

    def _leave(self, failure: Failure, error: BaseException | None = None) -> None:
        """Says what happened and ends the process, the last thing that any thread of it does."""
        with self._leaving:
            if failure.has_stalled and failure.process == self._index:
                faulthandler.dump_traceback(all_threads=True)
            if failure.process == self._index and error is not None:
                if failure.code != EXIT_USER_ERROR or os.environ.get("POLYTUNE_TRACEBACK"):
                    traceback.print_exception(error)
                print_error(f"process {self._index} of {self._count} failed: {error}")
            else:
                print_error(
                    f"process {failure.process} of {self._count}, on {failure.host}, failed; "
                    f"process {self._index} ends with it. It said: {failure.what}"
                )
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._store.key_value_set(f"{SEEN}{self._index}", "", allow_overwrite=True)
                # Who failed, and process 0, which keeps the store, stay until the others have read why.
                until = time.monotonic() + FAREWELL_S * (self._index in (0, failure.process))
                while len(self._store.key_value_dir_get(SEEN)) < self._count and time.monotonic() < until:
                    time.sleep(POLL_S / 5)
                if self._index == 0:  # JAX aborts a process that outlives the store
                    time.sleep(2 * POLL_S)
            _exit(failure.code)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say_beat(beat: Beat) -> str:
    return f"{beat.what}, for {beat.seconds:.0f} s by now" if beat.what else "does nothing that is watched"


def _unreachable(error: Exception) -> Failure:
    reason = str(error).splitlines()[0][:300]
    return Failure(0, "the coordinator's host", EXIT_BUG, f"it cannot be reached any more: {reason}")
