"""What a process that trains is doing right now, for whoever watches over it."""

import time
from typing import NamedTuple

LONG = 4.0
"""How much longer than anything else compiling, and reading a checkpoint, may take."""


class Moment(NamedTuple):
    """One thing a process does. The process with the least `order` is the one that the others wait for."""

    order: tuple[int, int]
    """The step it works for, and how far it is with it."""
    what: str
    since: float
    """By the monotonic clock."""
    allowance: float = 1.0
    """Times the usual limit that it may take."""


class Stage:
    """The present moment of a process; None before it begins to train and after its end.

    Written by the loop, read by another thread: a moment is replaced as a whole.
    """

    def __init__(self):
        self.now: Moment | None = None

    def begins(self, newest: int | None) -> None:
        """The state of this step is restored, or made."""
        self._enter((0, 0), "makes its first state" if newest is None else f"restores step {newest}", LONG)

    def loads(self, step: int) -> None:
        """The batch of this step is waited for."""
        self._enter((step, 0), f"loads the batch of step {step}")

    def dispatches(self, step: int, *, compiles: bool) -> None:
        """The step is handed to the devices, after it has been compiled if it is new."""
        what = f"compiles step {step}" if compiles else f"dispatches step {step}"
        self._enter((step, 1), what, LONG if compiles else 1.0)

    def computes(self, step: int, *, ahead: int) -> None:
        """This step is waited for, all steps up to `ahead` having been dispatched."""
        self._enter((ahead, 2), f"computes step {step}")

    def writes(self, step: int, *, ahead: int) -> None:
        """The metrics of this step are written and shown."""
        self._enter((ahead, 3), f"writes the metrics of step {step}")

    def looks(self, step: int) -> None:
        """The held-out rows are looked at with the state of this step; the first time that is compiled."""
        self._enter((step, 4), f"looks at held-out rows after step {step}", LONG)

    def saves(self, step: int) -> None:
        """The state of this step is saved, after a save before it has ended."""
        self._enter((step, 5), f"saves step {step}")

    def ends(self) -> None:
        """No step is at work any more."""
        self.now = None

    def _enter(self, order: tuple[int, int], what: str, allowance: float = 1.0) -> None:
        self.now = Moment(order, what, time.monotonic(), allowance)
