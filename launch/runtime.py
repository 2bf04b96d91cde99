"""Process-wide settings of a program: logging noise, the compilation cache, the mesh, the run directory's lock."""

import contextlib
import ctypes
import fcntl
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from launch.config import RecipeError
from model.parallel import MeshConfig, make_mesh


def cache_dir() -> Path:
    """Where compiled programs are kept between processes: `POLYTUNE_CACHE` or `~/.cache/polytune`."""
    return Path(os.environ.get("POLYTUNE_CACHE") or Path.home() / ".cache" / "polytune")


ACCELERATOR_PLUGINS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin")
THREADS_A_DEVICE = 4
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def set_up_process(*, keep_memory: bool = True) -> None:
    """Quiet loggers, kept memory, a persistent compilation cache; to be called once, first in a program's main.

    `keep_memory=False` for programs that hold a large model once and compute little: kept memory is never given back.
    """
    give_devices_threads()
    if keep_memory:
        keep_freed_memory()
    logging.getLogger("jax._src.compiler").setLevel(logging.ERROR)
    # What they log as errors they raise too, where it is told of in one line instead of hundreds.
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def give_devices_threads() -> None:
    """Gives XLA several threads for each simulated CPU device, whatever the number of cores.

    A device waits for the others with a thread in hand, and may wait in several places at once: the order of exchanges
    that do not depend on one another is not fixed. With one thread a device, two devices that each wait for the other
    somewhere else wait for ever (seen with two devices on two cores). To be called before the first computation.
    """
    devices = int(os.environ.get("JAX_NUM_CPU_DEVICES") or 1)
    if is_cpu_only() and devices > 1:
        os.environ.setdefault("NPROC", str(max(os.cpu_count() or 1, THREADS_A_DEVICE * devices)))


def keep_freed_memory() -> None:
    """Makes glibc keep the memory a step frees for the next one, instead of giving it back to the system.

    XLA on a CPU allocates its scratch memory anew each step; by default the kernel maps, clears and unmaps every
    page of it each time, at more than half the price of a small model's arithmetic (docs/benchmarks.md). The
    process's memory stays at its peak. Works only before the first JAX computation: after it, threads have arenas
    of their own. Does nothing where the C library is not glibc, or where an accelerator does the arithmetic and
    the host's memory is better given back.
    """
    if not is_cpu_only():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(parameter, value)


def is_cpu_only() -> bool:
    """True if JAX will run on the CPU: told so, or no plugin for anything else is installed. Starts no backend."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ACCELERATOR_PLUGINS)


@contextlib.contextmanager
def use_mesh(config: MeshConfig) -> Iterator[jax.sharding.Mesh]:
    """Enters the mesh of the config over all devices present; a preset has been resolved by now."""
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
        yield mesh


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Holds the run directory, made if absent. Released however the process ends.

    Raises RecipeError when another process is training in it, or when it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = (run_dir / ".lock").open("a+")
    except OSError as error:
        raise RecipeError(f"run.dir {run_dir} cannot be written ({error}); choose another run.dir") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecipeError(
                f"another process is training in {run_dir}; wait for it, stop it, or use another run.dir"
            ) from None
        yield
