"""Times what checkpoints cost a run: how long a save holds up training, a restore, a restart to the first step.

    python -m tests.bench.checkpoint [--models demo 40M] [--saves 5] [--restarts 3]

The real program is run and killed (`polytune train`, fresh processes), and its `metrics.jsonl` is read: how long the
loop stood still for each save, beside the median step; a checkpoint is whole once its checksums are written (their
file's time). A restart is timed from outside, from starting the process to the record of its first step, data and
compiled programs being there; of it, `start` is all until the restore and what follows up to the loop (Python and
imports, the plan, verifying the checkpoint), `restore` reading the state, `compile` dispatching the first step, its
program found in the cache, `step` the rest.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from model.checksums import FILE
from train.metrics import read_metrics

MODELS = {
    "demo": ("checkpoint.save_every=40",),
    "40M": (
        "checkpoint.save_every=6", "model.num_layers=12", "model.dim=512", "model.num_heads=8",
        "model.num_kv_heads=4", "model.head_dim=64", "model.mlp_dim=1536", "compute.scan_unroll=1",
    ),
}  # fmt: skip
"""What a model changes of the demo's recipe. A save is whole before the next one is due."""
STEPS = 2000
"""Of the plan; no run comes so far."""
LIMIT_S = 1200.0


class Saved(NamedTuple):
    """What the saves of a run took, in seconds."""

    size_bytes: int
    steps: list[float]
    """Those that neither compiled nor had a save written beside them."""
    beside: list[float]
    """Those a save was written beside."""
    blocked: list[float]
    whole: list[float]
    """From the beginning of a save until its checksums were there."""


class Restart(NamedTuple):
    """A process that resumed, in seconds: until its first step was recorded, and what that is made of."""

    total: float
    start: float
    restore: float
    compile: float
    step: float


@contextlib.contextmanager
def training(run_dir: Path, overrides: tuple[str, ...], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`polytune train` in a process of its own, killed at the end."""
    command = [sys.executable, "-m", "launch.cli", "train", "demo", f"run.dir={run_dir}", *overrides]
    with (run_dir.parent / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen[str], run_dir: Path, found: Callable[[], Any]) -> Any:
    """What `found` gives once it is something. Raises SystemExit when the program ends or takes too long."""
    until = time.monotonic() + LIMIT_S
    while not (answer := found()):
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit((run_dir.parent / "log").read_text(encoding="utf-8")[-3000:])
        time.sleep(0.05)
    return answer


def records_of(run_dir: Path, kind: str, *, attempt: int) -> list[dict[str, Any]]:
    """The records of one process of the run."""
    return [record for record in read_metrics(run_dir) if (record["kind"], record["attempt"]) == (kind, attempt)]


def time_saves(run_dir: Path, overrides: tuple[str, ...], environment: dict[str, str], *, saves: int) -> Saved:
    """Trains until so many saves are whole; that of step 0, which waits for nothing to train, is not counted."""

    def last_whole() -> bool:
        done = records_of(run_dir, "save", attempt=1)
        return len(done) > saves and (run_dir / "checkpoints" / str(done[saves]["step"]) / FILE).exists()

    with training(run_dir, overrides, environment) as process:
        wait_for(process, run_dir, last_whole)
    counted = records_of(run_dir, "save", attempt=1)[1 : saves + 1]
    folders = [run_dir / "checkpoints" / str(save["step"]) for save in counted]
    begun = [save["time"] - save["seconds"] for save in counted]
    spans = [(began, (folder / FILE).stat().st_mtime) for began, folder in zip(begun, folders, strict=True)]
    steps, beside = [], []
    for record in records_of(run_dir, "step", attempt=1):
        if record.get("compiled"):
            continue
        end, lasted = record["time"], record["step_s"]
        is_beside = any(began < end and end - lasted < whole for began, whole in spans)
        (beside if is_beside else steps).append(lasted)
    files = [file for file in folders[-1].rglob("*") if file.is_file()]
    return Saved(
        size_bytes=sum(file.stat().st_size for file in files), steps=steps, beside=beside,
        blocked=[save["seconds"] for save in counted], whole=[whole - began for began, whole in spans],
    )  # fmt: skip


def time_restart(run_dir: Path, overrides: tuple[str, ...], environment: dict[str, str]) -> Restart:
    """Starts the killed run again, until its first step is recorded."""
    attempt = 1 + sum(record["kind"] == "start" for record in read_metrics(run_dir))
    began = time.time()
    with training(run_dir, overrides, environment) as process:
        first = wait_for(process, run_dir, lambda: records_of(run_dir, "step", attempt=attempt))[0]
    (start,) = records_of(run_dir, "start", attempt=attempt)
    total, restore, dispatch = first["time"] - began, start["restore_s"], first["dispatch_s"]
    ready = start["time"] - began
    return Restart(total, ready - restore, restore, dispatch, total - ready - dispatch)


def milliseconds(seconds: list[float]) -> str:
    """Median and range."""
    if not seconds:
        return "–"
    median, least, most = (1e3 * each for each in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{median:,.0f} ({least:,.0f} to {most:,.0f})"


def row_of(model: str, saved: Saved, restarts: list[Restart]) -> list[str]:
    """A row of the table; a restart is told by its medians, part by part."""
    step = statistics.median(saved.steps)
    parts = [f"{statistics.median(part):.2f}" for part in zip(*restarts, strict=True)]
    beside = f"{statistics.median(saved.beside) / step:.2f}" if saved.beside else "–"
    return [
        model, f"{saved.size_bytes / 1e6:,.0f}", f"{1e3 * step:,.0f}", milliseconds(saved.blocked),
        f"{statistics.median(saved.blocked) / step:.2f}", milliseconds(saved.whole), beside, *parts,
    ]  # fmt: skip


def run(options: argparse.Namespace, scratch: Path) -> list[list[str]]:
    """The table's rows."""
    environment = {**os.environ, "POLYTUNE_CACHE": str(scratch / "cache"), "COLUMNS": "120"}
    rows = []
    for model in options.models:
        # All are kept: a deletion would fall into the time of a save.
        keeping = f"checkpoint.keep_last={options.saves + 2}"
        overrides = (*MODELS[model], f"train.steps={STEPS}", "train.trackers=[]", keeping)
        run_dir = scratch / model
        saved = time_saves(run_dir, overrides, environment, saves=options.saves)
        # The first compiles what only a resumed run needs.
        restarts = [time_restart(run_dir, overrides, environment) for _ in range(options.restarts + 1)][1:]
        rows.append(row_of(model, saved, restarts))
    return rows


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.checkpoint", description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--saves", type=int, default=5, help="timed saves (default: 5)")
    add("--restarts", type=int, default=3, help="timed restarts (default: 3)")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(" ".join(["$ python -m tests.bench.checkpoint", *sys.argv[1:]]))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        rows = run(options, Path(scratch))
    table = Table(
        "model", "MB", "ms/step", "save blocks, ms", "in steps", "whole after, ms", "step beside",
        "restart, s", "start", "restore", "compile", "step",
    )  # fmt: skip
    for row in rows:
        table.add_row(*row)
    console.print(
        f"{options.saves} saves and {options.restarts} restarts of each; {os.cpu_count()} cores, load average"
        f" {load:.1f} to {os.getloadavg()[0]:.1f}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
