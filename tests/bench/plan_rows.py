"""Times the first batch at row 0 and far into a plan of more than ten million rows.

    python -m tests.bench.plan_rows [--rows 12000000]

The plan is synthetic and on disk, as a run's is; each time is that of a fresh process, from opening the folder to the
first batch, and starts take turns. Then the planner itself: a million rows of about ten examples.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data.config import PackingConfig
from data.mixture import Cell, Mixed
from data.pipeline import make_batches
from data.stages import Stage
from data.stream import Supply, stream_rows
from tests.data.toy_dataset import make_dataset, store_dataset

ROW_LENGTH, BATCH_ROWS, EXAMPLES_PER_ROW = 512, 8, 4
STARTS = (0, 5_000_000, 10_000_000)
CHUNK = 1 << 20


def write_run(directory: Path, rows: int) -> None:
    """A dataset of 10,000 examples and a plan of so many rows over it."""
    examples, length = 10_000, ROW_LENGTH // EXAMPLES_PER_ROW
    row = ([n % 1000 for n in range(length + 1)], [4] * (length + 1), [0] + [1] * length, 1, 1)
    store_dataset(make_dataset([row] * examples), directory / "dataset", directory / "store")
    offsets = np.lib.format.open_memmap(directory / "row_offsets.npy", "w+", np.int64, (rows + 1,))
    planned = np.lib.format.open_memmap(directory / "row_examples.npy", "w+", np.int32, (rows * EXAMPLES_PER_ROW,))
    for begin in range(0, rows + 1, CHUNK):
        end = min(begin + CHUNK, rows + 1)
        offsets[begin:end] = np.arange(begin, end) * EXAMPLES_PER_ROW
    for begin in range(0, len(planned), CHUNK):
        end = min(begin + CHUNK, len(planned))
        planned[begin:end] = np.arange(begin, end) * 7919 % examples
    offsets.flush()
    planned.flush()
    summary = {"rows": rows, "row_length": ROW_LENGTH, "batch_rows": BATCH_ROWS, "hash": "synthetic"}
    (directory / "plan.json").write_text(json.dumps(summary), encoding="utf-8")


def time_first_batch(directory: Path, start_row: int) -> float:
    """Seconds from opening the folder to the first batch."""
    began = time.perf_counter()
    batches = make_batches(directory, start_row=start_row, batch_rows=BATCH_ROWS)
    next(batches)
    seconds = time.perf_counter() - began
    batches.close()
    return seconds


def time_planner(rows: int) -> float:
    """Seconds to plan so many rows of ten examples, over 200,000 examples in 200 cells."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(160), 0.7, 200_000), 4, 2048).astype(np.int64)
    cell_N = np.sort(np.random.default_rng(1).zipf(1.3, len(lengths)) % 200)
    cells = [Cell("s", f"l{index}", int(count), 1, 1) for index, count in enumerate(np.bincount(cell_N))]
    shares_C = np.bincount(cell_N) ** 0.5
    stage = Stage(0, rows, Mixed(shares_C / shares_C.sum(), np.arange(len(cells))), cells, "examples")
    supply = Supply(lengths, cell_N, [(cell.source, cell.language) for cell in cells])
    began = time.perf_counter()
    assert (
        sum(len(block.counts) for block in stream_rows(supply, [stage], PackingConfig(row_length=2048), seed=0)) == rows
    )
    return time.perf_counter() - began


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=12_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--planned", type=int, default=1_000_000)
    parser.add_argument(
        "--one", nargs=2, metavar=("FOLDER", "ROW"), help="time one start in this process, and print it"
    )
    options = parser.parse_args()
    if options.one:
        print(time_first_batch(Path(options.one[0]), int(options.one[1])))
        return
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        write_run(Path(scratch), options.rows)
        command = [sys.executable, "-m", "tests.bench.plan_rows", "--one", scratch]
        times: dict[int, list[float]] = {start: [] for start in STARTS}
        for _ in range(options.repeats):
            for start in STARTS:
                ran = subprocess.run([*command, str(start)], capture_output=True, text=True, check=True)
                times[start].append(float(ran.stdout))
    table = Table("first row", "first batch, ms (median)", "least", "most", "times row 0")
    zero = statistics.median(times[0])
    for start, seconds in times.items():
        median = statistics.median(seconds)
        table.add_row(
            f"{start:,}", f"{1e3 * median:.1f}", f"{1e3 * min(seconds):.1f}", f"{1e3 * max(seconds):.1f}",
            f"{median / zero:.2f}",
        )  # fmt: skip
    console.print(f"a plan of {options.rows:,} rows, {BATCH_ROWS} rows a batch, {options.repeats} fresh processes each")
    console.print(table)
    seconds = time_planner(options.planned)
    console.print(
        f"planning {options.planned:,} rows of 2,048: {seconds:.1f} s, {options.planned / seconds:,.0f} rows/s"
    )


if __name__ == "__main__":
    main()
