"""Every benchmark that needs no torch runs to its table, at sizes that say nothing: they rot by names, unnoticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "attention": ("--lengths 64 --steps 1 --cores 1", ["dense", "blockwise"]),
    "loss_head": (
        "--vocabularies 64 --rows 1 --positions 16 --dim 16 --chunks 8 --steps 1 --cores 1",
        ["full", "chunked", "chunked, 8"],
    ),
    "memory": ("--rows 60", ["60"]),
    "loader": ("--rows 1500 --rounds 1", ["0 (a thread)", "1", "2"]),
    "plan_rows": ("--repeats 1 --planned 2000", ["0", "5,000,000", "10,000,000"]),
    "checkpoint": ("--models demo --saves 1 --restarts 1", ["demo"]),
}
"""Arguments, and what the rows of the table are called."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_to_its_table(name):
    arguments, rows = RUNS[name]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{name}", *arguments.split()], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "200"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    found = {cell for row in cells for cell in row[:2]}
    assert found.issuperset(rows), done.stdout
    assert all(any(cell.strip(".,0123456789 ") != cell for cell in row) for row in cells), "a row without a number"
