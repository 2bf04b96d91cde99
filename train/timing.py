"""Where a step's time goes, read off a clock that nothing waits for."""

import os
import time
from pathlib import Path
from typing import Literal, NamedTuple

Part = Literal["data_wait_s", "dispatch_s", "device_s", "write_s"]


class Split(NamedTuple):
    """Seconds from the end of one step to the end of the next, by what the loop was about. They add up to all of it.

    The loop is a step ahead of the devices: in this time it writes the step before, and fetches and dispatches the
    step after.
    """

    data_wait_s: float = 0.0
    """Until the loader handed over a batch."""
    dispatch_s: float = 0.0
    """Describing a batch, putting it on the devices, handing them a step. Compiling is in here."""
    device_s: float = 0.0
    """Until the devices had finished the step: where they are busy, nearly all."""
    write_s: float = 0.0
    """Writing and showing a finished step."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self)


class StepClock:
    """Splits the time of the loop by step. It waits for nothing by itself.

    A batch that was there after 1 s, was dispatched after 1.5 s, and a step that was found done after 4 s: data wait 1,
    dispatch 0.5, device 2.5.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """What has been since the last lap belongs to no step: a save, say."""
        self._last = time.monotonic()
        self._seconds: dict[Part, float] = {}
        self._compiled = False

    def lap(self, part: Part, *, compiled: bool = False) -> None:
        """What was done since the last lap was this; `compiled`: with it a step's program was made."""
        now = time.monotonic()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now
        self._compiled |= compiled

    def cut(self) -> tuple[Split, bool]:
        """The laps since the last cut, and whether anything was compiled: to be called when a step is done."""
        split, compiled = Split(**self._seconds), self._compiled
        self._seconds, self._compiled = {}, False
        return split, compiled


def process_age_s() -> float | None:
    """Seconds since this process was started, what came before the first step included; None where not known."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except OSError:
        return None
    return uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")
