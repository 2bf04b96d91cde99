"""Measures the peak memory of preparing and of loading, for few and for many rows.

    python -m tests.bench.memory [--rows 10000 100000]

Each number is the VmHWM of a fresh process that does just that, in one process. Flat means: ten times the rows, about
the same peak. What grows is the table of examples, some sixty bytes a row.
"""

import argparse
import multiprocessing
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.config import DataConfig, PackingConfig, TokenizerConfig
from data.pipeline import make_batches
from data.prepare import prepare
from data.source_config import FileSource
from tests.bench.rows import write_messages, write_tokenizer


def read_peak() -> int:
    """Peak resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell a process's peak memory (no VmHWM)")


def do_nothing(_rows: Path, _folder: Path) -> None:
    """Only the imports."""


def do_prepare(rows: Path, folder: Path) -> None:
    """Rows to shards and a plan."""
    config = DataConfig(
        sources=(FileSource(name="rows", path=str(rows)),), packing=PackingConfig(row_length=2048), prepare_workers=0
    )
    prepare(
        config, TokenizerConfig(path=str(folder / "tokenizer")), steps=None, epochs=1, batch_rows=8, seed=0,
        run_dir=folder / "run", store=folder / "store",
    )  # fmt: skip


def do_load(_rows: Path, folder: Path) -> None:
    """Every batch of the epoch."""
    for _ in make_batches(folder / "run" / "plan", start_row=0, batch_rows=8):
        pass


def _serve(pipe, work, rows: Path, folder: Path) -> None:
    work(rows, folder)
    pipe.send(read_peak())


def measure(work, rows: Path, folder: Path) -> int:
    """Peak memory of a fresh process that does this work."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, rows, folder))
    process.start()
    theirs.close()
    peak = ours.recv()
    process.join()
    return peak


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description="peak memory of preparing and loading")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    table = Table("rows", "MB of JSON Lines", "imports", "prepare", "load")
    for count in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_messages(folder / "rows.jsonl", count)
            write_tokenizer(folder / "tokenizer", folder / "rows.jsonl")
            peaks = [measure(work, folder / "rows.jsonl", folder) for work in (do_nothing, do_prepare, do_load)]
            size = (folder / "rows.jsonl").stat().st_size
        table.add_row(f"{count:,}", f"{size / 1e6:.0f}", *(f"{peak / 1e6:.0f} MB" for peak in peaks))
    Console().print(table)


if __name__ == "__main__":
    main()
