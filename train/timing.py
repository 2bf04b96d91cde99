"""Where a step's time goes, read off a clock that nothing waits for."""

import os
import time
from pathlib import Path
from typing import Literal, NamedTuple

Part = Literal["data_wait_s", "dispatch_s", "device_s", "write_s"]


class Split(NamedTuple):
    """Seconds of one turn of the loop by what it was about; together the turn, but for what is between them."""

    data_wait_s: float = 0.0
    """Until the loader handed over the batch."""
    dispatch_s: float = 0.0
    """Describing the batch, putting it on the devices, handing them the step. Compiling is in here."""
    device_s: float = 0.0
    """Until the devices had finished a step: the one before, while this one already waits for its turn."""
    write_s: float = 0.0
    """Writing and showing a finished step, while the devices work on the next."""


class Turn:
    """One turn of the loop. A turn waits for the devices once, as it would without being timed.

    A batch that was there after 1 s, was dispatched after 1.5 s, and the devices done after 4 s: data wait 1, dispatch
    0.5, device 2.5.
    """

    def __init__(self):
        self.began = self._last = time.monotonic()
        self.compiled = False
        """Whether the step's program was made in this turn."""
        self._seconds: dict[Part, float] = {}

    def lap(self, part: Part) -> None:
        """What was done since the last lap was this."""
        now = time.monotonic()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def split(self) -> Split:
        """The laps so far."""
        return Split(**self._seconds)


def process_age_s() -> float | None:
    """Seconds since this process was started, what came before the first step included; None where not known."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except OSError:
        return None
    return uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")
