"""Times polytune's training step against the same model in Hugging Face transformers.

    python -m tests.bench.step

Every contender is a process of its own, starts from the same parameters and trains on the same examples; they
take turns, one step each, so that whatever else the machine does hits all of them. Before anything is timed,
losses and gradient norms of the first batch must agree: otherwise it would not be the same work.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data.batch import Batch
from launch.recipe import load_recipe
from tests.bench.worker import Contender, Machine, Worker
from tests.bench.workload import pad_examples, prepare_workload, read_batches

WARM_UP = 3
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3
"""Relative; both sides are float32 and differ only in the order of additions."""


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
    for name in (
        "contender",
        "positions",
        "ms/step",
        "fastest",
        "real tok/s",
        "target tok/s",
        "ratio",
        "last loss",
    ):
        table.add_column(name, justify="left" if name == "contender" else "right")
    for column, worker in enumerate(workers):
        seconds_S = seconds_SC[:, column]
        ratio_S = seconds_S / seconds_SC[:, 0]
        table.add_row(
            worker.contender.name,
            f"{size[worker.contender.positions]:.0f}",
            f"{1e3 * np.median(seconds_S):.0f}",
            f"{1e3 * seconds_S.min():.0f}",
            f"{np.median(real_S / seconds_S):,.0f}",
            f"{np.median(target_S / seconds_S):,.0f}",
            f"{np.median(ratio_S):.2f} ({ratio_S.min():.2f} to {ratio_S.max():.2f})" if column else "1",
            f"{losses_SC[-1, column]:.4f}",
        )
    console.print(table)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises SystemExit when it is wrong or what the benchmark needs is not installed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.step", description=__doc__)
    add = parser.add_argument
    add("--recipe", default="demo", help="a shipped recipe or a YAML file (default: demo)")
    add("--steps", type=int, default=20, help="timed steps of each contender (default: 20)")
    add("--cores", type=int, default=os.cpu_count(), help="cores that each may use (default: all)")
    add("--compile", action="store_true", help="also time torch.compile (needs a C++ compiler)")
    add("--plain-malloc", action="store_true", help="leave glibc's allocator as it is, on both sides")
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    options = parser.parse_args(arguments)
    if missing:
        raise SystemExit(
            f"{' and '.join(missing)} not installed; the benchmark needs the optional extra: "
            "pip install -e .[bench] (install a CPU build of torch first if you have no GPU)"
        )
    return options


def run(options: argparse.Namespace, scratch: Path, console: Console) -> None:
    """Prepares the data, starts the contenders, measures them and prints the table."""
    recipe = load_recipe(options.recipe)
    machine = Machine(cores=options.cores, keep_memory=not options.plain_malloc)
    run_dir, start, count = scratch / "run", scratch / "start.npz", WARM_UP + options.steps
    batches = read_batches(recipe, prepare_workload(recipe, run_dir), count)
    if len(batches) < count:
        raise SystemExit(f"--steps={options.steps} needs {count} steps; the recipe has {len(batches)}")
    workers: list[Worker] = []
    try:
        for contender in list_contenders(start, compiled=options.compile):
            workers.append(Worker(contender, recipe, run_dir, count, machine))
            if not start.exists():
                workers[0].ask("export", start, count)
        load = os.getloadavg()[0]
        seconds_SC, losses_SC = measure(workers, options.steps)
    finally:
        for worker in workers:
            worker.stop()
    facts = [
        f"{recipe.train.batch_rows} rows of {recipe.data.packing.row_length}",
        f"{options.steps} interleaved steps",
        f"{options.cores} of {os.cpu_count()} cores",
        f"load average {load:.1f} to {os.getloadavg()[0]:.1f}",
        *dict.fromkeys(worker.description for worker in workers),
    ]
    console.print(", ".join(facts))
    show(console, workers, batches, seconds_SC, losses_SC)


def main() -> None:
    """Runs the benchmark of the command line."""
    options = parse_options(None)
    # Rich guesses 80 columns when the output is a file; the table is wider.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(" ".join(["$ python -m tests.bench.step", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch), console)


if __name__ == "__main__":
    main()
