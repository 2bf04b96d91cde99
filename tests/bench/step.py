"""Times polytune's training step against the same model in Hugging Face transformers.

    python -m tests.bench.step

Every contender is a process of its own, starts from the same parameters and trains on the same examples; they
take turns, one step each, so that whatever else the machine does hits all of them. Before anything is timed,
losses and gradient norms of the first batch must agree: otherwise it would not be the same work.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data.batch import Batch
from launch.config import Recipe
from launch.recipe import load_recipe
from launch.runtime import keep_freed_memory, set_up_process
from tests.bench.workload import pad_examples, prepare_workload, read_batches

WARM_UP = 3
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3
"""Relative; both sides are float32 and differ only in the order of additions."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table and what makes its step."""

    name: str
    side: str
    options: dict[str, Any]
    positions: str
    """What its forward pass runs over: `packed` rows or `padded` examples."""


def list_contenders(start: Path, *, compiled: bool) -> list[Contender]:
    """The contenders; the first is the one that ratios are of."""
    contenders = [
        Contender(name="polytune", side="polytune", options={}, positions="packed"),
        Contender(
            name="polytune, logits everywhere", side="polytune", options={"everywhere": True},
            positions="packed",
        ),
        Contender(
            name="transformers, padded (Trainer's default)", side="transformers",
            options={"start": start, "packed": False}, positions="padded",
        ),
        Contender(
            name="transformers, our packed rows", side="transformers",
            options={"start": start, "packed": True}, positions="packed",
        ),
    ]  # fmt: skip
    if compiled:
        options = {"start": start, "packed": True, "compiled": True}
        name = "transformers, our packed rows, torch.compile"
        contenders.append(Contender(name=name, side="transformers", options=options, positions="packed"))
    return contenders


class Worker:
    """A contender's process. Commands are sent and answered one at a time, so only one process computes."""

    def __init__(self, contender: Contender, recipe: Recipe, run_dir: Path, steps: int, *, keep_memory: bool):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, contender, recipe, run_dir, steps, keep_memory)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.contender = contender
        self.description = self.ask("describe")

    def ask(self, method: str, *arguments: Any) -> Any:
        """The contender's answer; RuntimeError with its traceback when it fails."""
        self._pipe.send((method, arguments))
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            failed, answer = True, "its process died"
        if failed:
            raise RuntimeError(f"{self.contender.name}: {answer}")
        return answer

    def time_step(self, index: int) -> tuple[float, float, float]:
        """Loss and gradient norm of batch `index`, and the seconds its step took."""
        (loss, norm), seconds = self.ask("step", index)
        return loss, norm, seconds

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()


def serve(pipe, contender: Contender, recipe: Recipe, run_dir: Path, steps: int, keep_memory: bool) -> None:
    """A worker's main: builds the contender and answers commands until the pipe closes."""
    made = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if made is None:
                made = _make(contender, recipe, run_dir, steps, keep_memory=keep_memory)
            began = time.perf_counter()
            answer = getattr(made, method)(*arguments)
            seconds = time.perf_counter() - began
            pipe.send((False, (answer, seconds) if method == "step" else answer))
        except Exception:
            pipe.send((True, traceback.format_exc()))


def _make(contender: Contender, recipe: Recipe, run_dir: Path, steps: int, *, keep_memory: bool) -> Any:
    # Imported here: each side loads its own framework only, and none is loaded before the allocator is set.
    if contender.side == "polytune":
        if keep_memory:
            set_up_process()
        from tests.bench.polytune_side import PolytuneContender

        return PolytuneContender(recipe, run_dir, steps, **contender.options)
    if keep_memory:
        keep_freed_memory()
    from tests.bench.transformers_side import TransformersContender

    return TransformersContender(recipe, run_dir, steps, **contender.options)


def measure(workers: list[Worker], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and losses, (steps, contenders), of interleaved steps after the first batch was found to agree.

    Raises SystemExit when a contender's first loss or gradient norm is another one.
    """
    first = [worker.time_step(0) for worker in workers]
    for worker, (loss, norm, _) in zip(workers, first, strict=True):
        wrong_loss = abs(loss / first[0][0] - 1) > LOSS_TOLERANCE
        if wrong_loss or abs(norm / first[0][1] - 1) > NORM_TOLERANCE:
            raise SystemExit(
                f"not the same work: {worker.contender.name} has loss {loss:.6f}, gradient norm {norm:.6f}; "
                f"{workers[0].contender.name} {first[0][0]:.6f}, {first[0][1]:.6f}"
            )
    results = [[worker.time_step(index) for worker in workers] for index in range(1, WARM_UP + steps)]
    array = np.array(results)[WARM_UP - 1 :]
    return array[:, :, 2], array[:, :, 0]


def show(
    console: Console,
    workers: list[Worker],
    batches: list[Batch],
    seconds_SC: np.ndarray,
    losses_SC: np.ndarray,
) -> None:
    """Prints the table: medians over steps; ratios are of steps on the same batch, taken in turn."""
    timed = batches[WARM_UP:]
    real_S = np.array([(batch.segments_BT > 0).sum() for batch in timed])
    target_S = np.array([(batch.loss_weight_BT > 0).sum() for batch in timed])
    size = {
        "packed": statistics.median(batch.segments_BT.size for batch in timed),
        "padded": statistics.median(pad_examples(batch).tokens_NW.size for batch in timed),
    }
    table = Table(caption="ratio: polytune's real tokens/s over this row's; median (lowest to highest step)")
    for name in ("contender", "positions", "ms/step", "real tok/s", "target tok/s", "ratio", "last loss"):
        table.add_column(name, justify="left" if name == "contender" else "right")
    for column, worker in enumerate(workers):
        seconds_S = seconds_SC[:, column]
        ratio_S = seconds_S / seconds_SC[:, 0]
        table.add_row(
            worker.contender.name,
            f"{size[worker.contender.positions]:.0f}",
            f"{1e3 * np.median(seconds_S):.0f}",
            f"{np.median(real_S / seconds_S):,.0f}",
            f"{np.median(target_S / seconds_S):,.0f}",
            f"{np.median(ratio_S):.2f} ({ratio_S.min():.2f} to {ratio_S.max():.2f})" if column else "1",
            f"{losses_SC[-1, column]:.4f}",
        )
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, runs the benchmark, prints one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.step", description=__doc__)
    parser.add_argument("--recipe", default="demo", help="a shipped recipe or a YAML file (default: demo)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each contender (default: 20)")
    parser.add_argument(
        "--compile", action="store_true", help="also time torch.compile (needs a C++ compiler)"
    )
    parser.add_argument(
        "--plain-malloc", action="store_true", help="leave glibc's allocator alone, on both sides"
    )
    options = parser.parse_args(arguments)
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{' and '.join(missing)} not installed; the benchmark needs the optional extra: "
            "pip install -e .[bench] (install a CPU build of torch first if you have no GPU)"
        )
    # Rich guesses 80 columns when the output is a file; the table is wider.
    console = Console(width=None if sys.stdout.isatty() else 130)
    recipe = load_recipe(options.recipe)
    count = WARM_UP + options.steps
    with tempfile.TemporaryDirectory() as scratch:
        run_dir, start = Path(scratch) / "run", Path(scratch) / "start.npz"
        batches = read_batches(recipe, prepare_workload(recipe, run_dir), count)
        if len(batches) < count:
            raise SystemExit(f"--steps={options.steps} needs {count} steps; the recipe has {len(batches)}")
        workers: list[Worker] = []
        try:
            for contender in list_contenders(start, compiled=options.compile):
                worker = Worker(contender, recipe, run_dir, count, keep_memory=not options.plain_malloc)
                workers.append(worker)
                if not start.exists():
                    worker.ask("export", start, count)
            seconds_SC, losses_SC = measure(workers, options.steps)
        finally:
            for worker in workers:
                worker.stop()
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    versions = ", ".join(dict.fromkeys(worker.description for worker in workers))
    shape = f"{recipe.train.batch_rows} rows of {recipe.data.packing.row_length}"
    console.print(f"$ python -m tests.bench.step {given}".rstrip())
    console.print(f"{shape}, {options.steps} interleaved steps, {os.cpu_count()} cores, {versions}")
    show(console, workers, batches, seconds_SC, losses_SC)


if __name__ == "__main__":
    main()
