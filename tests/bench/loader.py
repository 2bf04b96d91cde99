"""Times batches read from prepared shards, by number of loader processes.

    python -m tests.bench.loader [--rows N]

Batches of 8 rows of 2048 from a shuffled plan, so examples come from all over the shards. Nothing is computed on them:
this is what the loader could feed. `real tokens` are positions that are not padding.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.config import DataConfig, PackingConfig, TokenizerConfig
from data.pipeline import make_batches
from data.prepare import Prepared, prepare
from data.source_config import FileSource
from tests.bench.rows import write_messages, write_tokenizer

ROW_LENGTH, BATCH_ROWS = 2048, 8


def prepare_rows(folder: Path, count: int) -> Prepared:
    """That many rows, tokenised and planned for one epoch."""
    rows = folder / "rows.jsonl"
    write_messages(rows, count)
    write_tokenizer(folder / "tokenizer", rows)
    config = DataConfig(
        sources=(FileSource(name="rows", path=str(rows)),), packing=PackingConfig(row_length=ROW_LENGTH)
    )
    return prepare(
        config, TokenizerConfig(path=str(folder / "tokenizer")), steps=None, epochs=1, batch_rows=BATCH_ROWS, seed=0,
        run_dir=folder / "run", store=folder / "store",
    )  # fmt: skip


def time_loader(prepared: Prepared, workers: int, batches: int) -> float:
    """Real tokens a second, the first batches (starting processes, opening shards) left out."""
    stream = make_batches((prepared.dataset, prepared.plan), start_row=0, batch_rows=BATCH_ROWS, workers=workers)
    for _ in itertools.islice(stream, 8):
        pass
    tokens, began = 0, time.perf_counter()
    for batch in itertools.islice(stream, batches):
        tokens += int((batch.segments_BT > 0).sum())
    seconds = time.perf_counter() - began
    stream.close()
    return tokens / seconds


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description="batches from prepared shards")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_rows(Path(folder), options.rows)
        batches = prepared.plan.rows // BATCH_ROWS - 16
        speeds: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for _ in range(options.rounds):
            for workers, found in speeds.items():
                found.append(time_loader(prepared, workers, batches))
        shards = len(prepared.dataset.facts.shards.keys) if prepared.dataset.facts.shards else 0
        examples = len(prepared.dataset)
    console = Console()
    console.print(
        f"{examples:,} examples in {shards} shards; {batches} batches of {BATCH_ROWS} x {ROW_LENGTH}; "
        f"{os.cpu_count()} cores; {options.rounds} turns"
    )
    table = Table("loader processes", "real tokens/s (median)", "slowest", "fastest")
    for workers, found in speeds.items():
        name = str(workers) if workers else "0 (a thread)"
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(found), min(found), max(found))))
    console.print(table)


if __name__ == "__main__":
    main()
