"""How much memory the devices of this process hold, and have held at most."""

import resource
import sys
from pathlib import Path
from typing import NamedTuple

import jax


class MemoryUse(NamedTuple):
    """Bytes in use of one device; where devices keep no books (CPU), of the process that computes for them."""

    of: str
    """`tpu:0`, `cuda:1`; `process`: resident memory of this process."""
    in_use: int
    peak: int
    """Since the process began."""
    limit: int | None
    """What a program may use; None: not known."""


def read_memory() -> list[MemoryUse]:
    """One entry a device of this process. Reads counters: no device is waited for."""
    found = []
    for device in jax.local_devices():
        stats = device.memory_stats()
        if stats is None:
            return [_process_memory()]
        use = (stats["bytes_in_use"], stats["peak_bytes_in_use"], stats.get("bytes_limit"))
        found.append(MemoryUse(f"{device.platform}:{device.id}", *use))
    return found


def _process_memory() -> MemoryUse:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return MemoryUse("process", peak, peak, None)
    return MemoryUse("process", pages * resource.getpagesize(), peak, None)
