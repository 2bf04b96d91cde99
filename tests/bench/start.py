"""What every contender of the step benchmark starts from: weights as a Hugging Face folder, rows, learning rates.

Read by both sides; `start_writer` makes it.
"""

from pathlib import Path

import msgspec

from data.batch import Batch
from model.config import ModelConfig
from tests.bench.workload import load_batches

START_FILE, ROWS_FILE, MODEL_FOLDER = "start.json", "rows.npz", "model"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What both sides know besides weights and rows."""

    model: ModelConfig
    languages: int
    """Size of the language table."""
    sources: int
    most_trained: int
    """Largest number of trained positions in any row (K)."""
    steps: int
    """Of the run that the schedule belongs to."""
    rates: tuple[float, ...]
    """Learning rate of each step that is made."""


def read_start(folder: Path) -> tuple[Start, list[Batch]]:
    """What `write_start` wrote, the model aside."""
    return msgspec.json.decode((folder / START_FILE).read_bytes(), type=Start), load_batches(folder / ROWS_FILE)
