"""Starts polytune's programs as a user does: in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

TINY_RECIPE = """
run: {dir: %(run_dir)s, seed: 3}
model: {num_layers: 2, dim: 32, num_heads: 4, num_kv_heads: 2, head_dim: 8, mlp_dim: 64}
tokenizer: {vocab_size: 500}
data:
  sources:
    - {kind: cldr, languages: [en, de, sw, ar], tasks: [weekday_after, month_number], facts: 4}
  packing: {row_length: 64, block_examples: 128}
optim: {learning_rate: 5e-3, warmup_steps: 5}
train: {steps: %(steps)d, batch_rows: 8, log_every: 20, trackers: []}
checkpoint: {save_every: %(save_every)d, keep_last: 2}
"""


def write_tiny_recipe(folder: Path, *, run_dir: Path, steps: int, save_every: int) -> Path:
    """A recipe that starts in seconds and makes hundreds of steps a second's fraction each."""
    path = folder / f"{run_dir.name}.yaml"
    path.write_text(TINY_RECIPE % {"run_dir": run_dir, "steps": steps, "save_every": save_every}, encoding="utf-8")
    return path


def environment(devices: int) -> dict[str, str]:
    """This process's environment, on that many simulated CPU devices."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "COLUMNS": "120"}


def polytune_command(*arguments: object) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "launch.cli", *map(str, arguments)]


def run_polytune(*arguments: object, devices: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a verb to its end; with `check`, a failure shows what it printed."""
    done = subprocess.run(
        polytune_command(*arguments), env=environment(devices), capture_output=True, text=True, timeout=300
    )
    if check and done.returncode:
        raise AssertionError(f"polytune {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done
