"""The barrier of Orbax's background threads, where a process whose part of a save has failed tells the others why."""

import sys
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from train.hosts import PREFIX, store


class SaveBarrier:
    """Where the processes meet in the course of the saves of one checkpointer, until one of them has failed.

    Left to itself Orbax has all processes wait for one another for up to 20 minutes once one has failed, that one too,
    and then says that they waited. Here it tells the others at once. What they wait for elsewhere in Orbax by then they
    go on waiting for, in threads that nobody needs any more: barriers of another name keep the saves of the next
    checkpointer apart from those.
    """

    def __init__(self, name: str, explain: Callable[[BaseException], str]):
        self.problem: str | None = None
        """Why this process could not write its part, from the moment it knows."""
        self._name = f"{PREFIX}{name}"
        self._explain = explain

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits for all processes; if it is called with an error on its way out, tells of it and waits for none.

        Orbax comes here while it clears up after an error, whatever it was, before anyone gets to see it.
        """
        if (error := sys.exception()) is None:
            store().wait_at_barrier(f"{self._name}/{key}", timeout_ms)
        elif self.problem is None:
            self.problem = self._explain(error)
            store().key_value_set(f"{self._name}/failed/{jax.process_index()}", "", allow_overwrite=True)

    def has_failed(self) -> bool:
        """Whether any process has told of an error. Who it was, and why, is agreed on by `train.hosts.agree`."""
        try:
            return bool(store().key_value_dir_get(f"{self._name}/failed/"))
        except jax.errors.JaxRuntimeError:
            return False  # the process that keeps the store is gone, which is the business of `launch.together`


def use_barrier(context: ocp.Context, barrier: SaveBarrier) -> None:
    """Makes checkpointers opened with this context meet at this barrier, if there are several processes."""
    if jax.process_count() == 1:
        return
    options: Any = context.asynchronous  # it lacks the field that Orbax's older options, which it makes, have
    made = options.v0()
    # Functions are not copied with the context, as an object would be.
    made.barrier_sync_fn = lambda *, key, timeout_ms: barrier(key=key, timeout_ms=timeout_ms)
    options.v0 = lambda: made
