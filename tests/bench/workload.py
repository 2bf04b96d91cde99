"""What contenders work on: the recipe's own first batches, packed as polytune trains them, or padded."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batch import Batch
from data.pipeline import make_batches
from data.prepare import Prepared, prepare
from launch.config import Recipe


class Padded(NamedTuple):
    """A packed batch's examples, one a row, padded to the longest: N examples, W the longest's length."""

    tokens_NW: np.ndarray
    targets_NW: np.ndarray
    loss_weight_NW: np.ndarray
    present_NW: np.ndarray


def prepare_workload(recipe: Recipe, run_dir: Path) -> Prepared:
    """The recipe's dataset, plan and tokenizer, built at the first call and read back by the contenders."""
    return prepare(
        recipe.data, recipe.tokenizer, steps=recipe.train.steps, batch_rows=recipe.train.batch_rows,
        seed=recipe.run.seed, run_dir=run_dir, store=run_dir / "store",
    )  # fmt: skip


def read_batches(recipe: Recipe, prepared: Prepared, count: int) -> list[Batch]:
    """The first batches of the run."""
    batches = make_batches((prepared.dataset, prepared.plan), start_row=0, batch_rows=recipe.train.batch_rows)
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def pad_examples(batch: Batch) -> Padded:
    """The batch's examples, unpacked."""
    places = [
        (row, np.flatnonzero(segments_T == segment))
        for row, segments_T in enumerate(batch.segments_BT)
        for segment in range(1, segments_T.max() + 1)
    ]
    shape = (len(places), max(len(at) for _, at in places))
    padded = Padded(np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, np.float32), np.zeros(shape, int))
    for example, (row, at) in enumerate(places):
        padded.tokens_NW[example, : len(at)] = batch.tokens_BT[row, at]
        padded.targets_NW[example, : len(at)] = batch.targets_BT[row, at]
        padded.loss_weight_NW[example, : len(at)] = batch.loss_weight_BT[row, at]
        padded.present_NW[example, : len(at)] = 1
    return padded
