"""What machine and versions a run saw: `polytune env`, checkpoint meta and the run card share it."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

PACKAGES = (
    "polytune", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "tensorflow-datasets",
    "numpy", "babel", "langcodes", "msgspec",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Version of Python and of each package that could change a result."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def git_state() -> dict[str, str | bool] | None:
    """Commit of the source tree polytune runs from and whether it has changes; None outside a repository."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def describe_devices() -> str:
    """For example `1 x cpu (TFRT_CPU)`."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"


def describe_environment() -> str:
    """A block to paste into a bug report: system, memory, devices, versions, JAX settings."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    git = git_state()
    lines = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "memory": f"{memory_gib:.1f} GiB",
        "devices": describe_devices(),
        "processes": f"{jax.process_count()}",
        "source": f"{git['commit']}{' with changes' if git['dirty'] else ''}" if git else "installed package",
        **library_versions(),
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith(("JAX_", "XLA_", "POLYTUNE_"))},
    }
    width = max(map(len, lines))
    return (
        "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
        + f"\nexecutable  {Path(sys.executable).name}"
    )
