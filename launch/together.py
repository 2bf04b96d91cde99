"""Several processes fail together: the first failure is told to all, named, and ends them all with its exit code."""

import contextlib
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
FAREWELL_S = 10.0
"""How long a failing process waits for the others to have seen why."""


class Failure(NamedTuple):
    """Which process failed, and how."""

    process: int
    host: str
    code: int
    """Exit code of every process of the run."""
    what: str


def exit_code_of(error: BaseException) -> int:
    """2 for what a user can mend, 130 for Ctrl-C, 1 for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_USER_ERROR if isinstance(error, ValueError | OSError) else EXIT_BUG


def print_error(message: str) -> None:
    """Shows an error on standard error."""
    Console(stderr=True).print(Text("error: ", "bold red").append(message, "not bold default"), soft_wrap=True)


@contextlib.contextmanager
def fail_together(*, silent_s: float = SILENT_S) -> Iterator[None]:
    """Ends this process when any process of the run fails while inside, and all others when this one does.

    An error in here never comes out: it is printed, told to the others, and the process ends at once, because its
    other threads may wait for ever for processes that are gone. Leaving it waits until every process is ready to leave.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(silent_s)
    watch.start()
    try:
        yield
        wait_for_all("end")
    except BaseException as error:
        watch.fail(error)
    watch.stop()
    jax.distributed.shutdown()


class _Watch(threading.Thread):
    """Gives signs of life, looks for failures of the others, and in process 0 for others' signs of life."""

    def __init__(self, silent_s: float):
        super().__init__(name="polytune-watch", daemon=True)
        self._index, self._count = jax.process_index(), jax.process_count()
        self._store = store()
        self._silent_s = silent_s
        self._ended = threading.Event()
        self._leaving = threading.Lock()
        self._beats = 0
        self._last_beats: dict[str, tuple[str, float]] = {}

    def stop(self) -> None:
        """To be called when every process has come to its end."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """The thread: until stopped, or until a failure ends the process."""
        while not self._ended.wait(POLL_S):
            try:
                self._beats += 1
                self._store.key_value_set(f"{ALIVE}{self._index}", str(self._beats), allow_overwrite=True)
                if self._index == 0 and (gone := self._find_silent(self._silent_s)) is not None:
                    self._post(_gone(gone))
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
                if (gone := self._find_silent(SUSPECT_S)) is not None:
                    return _gone(gone)
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

    def _find_silent(self, limit_s: float) -> int | None:
        """A process that has given no sign of life for so long since it gave the first."""
        now = time.monotonic()
        for key, beats in self._store.key_value_dir_get(ALIVE):
            last = self._last_beats.get(key)
            if last is None or last[0] != beats:
                self._last_beats[key] = (beats, now)
            elif now - last[1] > limit_s:
                return int(key.rpartition("/")[2])
        return None

    def _leave(self, failure: Failure, error: BaseException | None = None) -> None:
        """Says what happened and ends the process, the last thing that any thread of it does."""
        with self._leaving:
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
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(failure.code)


def _gone(process: int) -> Failure:
    what = "no sign of life any more: killed, out of memory, stopped, or its host is gone"
    return Failure(process, "a host that is silent", EXIT_BUG, what)


def _unreachable(error: Exception) -> Failure:
    reason = str(error).splitlines()[0][:300]
    return Failure(0, "the coordinator's host", EXIT_BUG, f"it cannot be reached any more: {reason}")
