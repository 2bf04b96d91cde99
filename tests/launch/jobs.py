"""Jobs of several processes for tests: small, bounded in time, and gone when a test ends."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

LIMIT_S = 150.0
"""After which a job that hangs fails its test."""

RECIPE = """
run: {dir: %(run_dir)s, seed: 3}
model: {num_layers: 1, dim: 16, num_heads: 2, num_kv_heads: 2, head_dim: 8, mlp_dim: 32}
tokenizer: {vocab_size: 500}
data:
  sources:
    - {kind: cldr, languages: [en, de, sw, ar], tasks: [weekday_after, month_number], facts: 4}
  packing: {row_length: 32, block_examples: 128}
optim: {learning_rate: 5e-3, warmup_steps: 2, eps: 1e-3}
train: {steps: %(steps)d, batch_rows: 8, log_every: 5, trackers: []}
checkpoint: {save_every: %(save_every)d, keep_last: 2, keep_every: %(save_every)d}
"""
BATCH_ROWS = 8


def write_recipe(folder: Path, *, steps: int, save_every: int) -> Path:
    """A recipe whose model is tiny and whose every program compiles in moments."""
    path = folder / "recipe.yaml"
    values = {"run_dir": folder / "run", "steps": steps, "save_every": save_every}
    path.write_text(RECIPE % values, encoding="utf-8")
    return path


def local_command(recipe: Path, processes: int, *overrides: str, fault: str | None = None) -> list[str]:
    """`polytune launch local`, or the same with a fault in one process (see `tests.launch.faulty_train`)."""
    program = ["tests.launch.faulty_train", fault] if fault else ["launch.cli"]
    options = ["launch", "local", "--processes", str(processes), str(recipe), *overrides]
    return [sys.executable, "-m", *program, *options]


@contextlib.contextmanager
def start_job(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """The job's launcher, its output readable; it and its processes are killed when the block ends."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "COLUMNS": "160"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)  # its processes die with it
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def run_job(command: Sequence[str], *, code: int = 0) -> str:
    """The output of a job that ends with this code; another, or none in time, fails with what it printed."""
    with start_job(command) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{command} hangs:\n{process.communicate()[0]}") from None
    assert process.returncode == code, f"{command} ended with {process.returncode}, not {code}:\n{output}"
    return output
