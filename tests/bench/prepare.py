"""Times `prepare` against TRL's tokenise-and-pack on the same rows with the same tokenizer and template.

    python -m tests.bench.prepare [--rows N] [--messages FILE --tokenizer FOLDER]

Each side is a process of its own that reads JSON Lines and ends with packed rows on disk; they take turns, so that
whatever else the machine does hits both. Imports and TRL's model are outside the clock; both sides may use as many
processes as there are cores. Tokens and trained tokens must agree, or it would not be the same work.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.rows import write_messages, write_tokenizer
from tests.bench.trl_side import Prepared, prepare_with_trl

ROW_LENGTH = 2048


def prepare_with_polytune(rows: Path, tokenizer: Path, folder: Path, *, row_length: int, processes: int) -> Prepared:
    """`data.prepare.prepare` from nothing: tokens in shards, plan on disk."""
    from data.config import DataConfig, PackingConfig, TokenizerConfig
    from data.prepare import prepare
    from data.source_config import FileSource

    config = DataConfig(
        sources=(FileSource(name="rows", path=str(rows)),),
        packing=PackingConfig(row_length=row_length),
        prepare_workers=processes,
    )
    began = time.perf_counter()
    dataset, plan, _, _ = prepare(
        config, TokenizerConfig(path=str(tokenizer)), steps=None, epochs=1, batch_rows=1, seed=0,
        run_dir=folder / "run", store=folder / "store",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    positions = int(dataset.positions[plan.row_examples].sum())
    # An example of n ids fills n - 1 positions here; TRL keeps all n.
    tokens = positions + len(plan.row_examples)
    trained = int(dataset.targets[plan.row_examples].sum())
    return Prepared(seconds, len(dataset), tokens, trained, plan.rows, positions / (plan.rows * row_length), "")


SIDES = {"polytune": prepare_with_polytune, "TRL": prepare_with_trl, "TRL as it comes": prepare_with_trl}
"""The last with `dataset_num_proc` unset, as SFTConfig has it: one process."""


def _serve(pipe, side: str, rows: Path, tokenizer: Path, processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        most = 1 if side == "TRL as it comes" else processes
        pipe.send(SIDES[side](rows, tokenizer, Path(folder), row_length=ROW_LENGTH, processes=most))


def run_side(side: str, rows: Path, tokenizer: Path, processes: int) -> Prepared:
    """The result of one side, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, side, rows, tokenizer, processes))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        sys.exit(f"{side} failed; its traceback is above")
    finally:
        process.join()


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description="prepare against TRL's tokenise-and-pack")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=Path, help="JSON Lines of messages and language (default: made here)")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json (default: trained here)")
    options = parser.parse_args()
    processes = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        rows, tokenizer = options.messages or Path(scratch) / "rows.jsonl", options.tokenizer or Path(scratch) / "t"
        if options.messages is None:
            write_messages(rows, options.rows)
        if options.tokenizer is None:
            write_tokenizer(tokenizer, rows)
        found: dict[str, list[Prepared]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                found[side].append(run_side(side, rows, tokenizer, processes))
        size = rows.stat().st_size
    _print(found, size=size, processes=processes)


def _print(found: dict[str, list[Prepared]], *, size: int, processes: int) -> None:
    ours, theirs = found["polytune"][0], found["TRL"][0]
    if ours.trained != theirs.trained:
        sys.exit(f"not the same work: polytune trains {ours.trained} tokens, TRL {theirs.trained}")
    console = Console()
    console.print(
        f"{ours.examples:,} rows, {size / 1e6:.1f} MB, {ours.tokens:,} tokens, {ours.trained:,} of them trained; rows "
        f"of {ROW_LENGTH}; {processes} processes a side; {len(found['TRL'])} turns; trl {theirs.version}"
    )
    table = Table("side", "s (median)", "tokens/s", "ratio of times", "rows made", "full")
    for side, results in found.items():
        seconds = statistics.median(result.seconds for result in results)
        ratios = [one.seconds / base.seconds for one, base in zip(results, found["polytune"], strict=True)]
        table.add_row(
            side, f"{seconds:.1f}", f"{results[0].tokens / seconds:,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{results[0].rows:,}",
            f"{results[0].fullness:.2%}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
