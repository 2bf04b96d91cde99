"""What contenders work on: packed rows, as polytune trains them, or their examples padded, as the Trainer has them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batch import Batch, Role


class Step(NamedTuple):
    """What a contender's step gave."""

    loss: float
    """Mean over the batch's target tokens, before the update."""
    grad_norm: float
    """Of its gradient, before clipping."""
    seconds: float
    """Until the device had made the update."""


class Padded(NamedTuple):
    """A packed batch's examples, one a row, padded to the longest: N examples, W the longest's length."""

    tokens_NW: np.ndarray
    targets_NW: np.ndarray
    loss_weight_NW: np.ndarray
    present_NW: np.ndarray


def draw_batch(rng: np.random.Generator, *, rows: int, length: int, vocabulary: int) -> Batch:
    """Rows without padding, of examples whose lengths are spread evenly over 16 to a row's."""
    fields: dict[str, np.ndarray] = {name: np.zeros((rows, length), np.int32) for name in Batch._fields}
    fields["tokens_BT"] = rng.integers(0, vocabulary, (rows, length), dtype=np.int32)
    fields["targets_BT"] = np.roll(fields["tokens_BT"], -1, axis=1)
    fields["loss_weight_BT"] = np.zeros((rows, length), np.float32)
    fields["language_BT"] += 1
    fields["role_BT"] += int(Role.ASSISTANT)
    for row in range(rows):
        at, segment = 0, 0
        while at < length:
            size = min(int(rng.integers(16, length + 1)), length - at)
            segment += 1
            fields["segments_BT"][row, at : at + size] = segment
            fields["positions_BT"][row, at : at + size] = np.arange(size)
            fields["loss_weight_BT"][row, at + size // 2 : at + size - 1] = 1.0
            at += size
    return Batch(**fields)


def save_batches(batches: list[Batch], path: Path) -> None:
    """Writes batches of one shape."""
    np.savez(
        path,
        allow_pickle=False,
        **{name: np.stack([getattr(batch, name) for batch in batches]) for name in Batch._fields},
    )


def load_batches(path: Path) -> list[Batch]:
    """What `save_batches` wrote."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in Batch._fields}
    return [Batch(*fields) for fields in zip(*arrays.values(), strict=True)]


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """Its rows in so many microbatches."""
    split = (np.split(field_BT, parts) for field_BT in batch)
    return [Batch(*fields) for fields in zip(*split, strict=True)]


def pad_examples(batch: Batch) -> Padded | None:
    """The batch's examples, unpacked; None if it has none.

    A row of examples (5 6 7) and (8 9) gives rows (5 6 7) and (8 9 0).
    """
    places = [
        (row, np.flatnonzero(segments_T == segment))
        for row, segments_T in enumerate(batch.segments_BT)
        for segment in range(1, segments_T.max() + 1)
    ]
    if not places:
        return None
    shape = (len(places), max(len(at) for _, at in places))
    padded = Padded(np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, np.float32), np.zeros(shape, int))
    for example, (row, at) in enumerate(places):
        padded.tokens_NW[example, : len(at)] = batch.tokens_BT[row, at]
        padded.targets_NW[example, : len(at)] = batch.targets_BT[row, at]
        padded.loss_weight_NW[example, : len(at)] = batch.loss_weight_BT[row, at]
        padded.present_NW[example, : len(at)] = 1
    return padded


def count_positions(batch: Batch, *, packed: bool, microbatches: int) -> int:
    """What a forward pass runs over: the rows as they are, or each microbatch's examples padded to its longest."""
    if packed:
        return batch.segments_BT.size
    padded = map(pad_examples, split_rows(batch, microbatches))
    return sum(each.tokens_NW.size for each in padded if each is not None)
