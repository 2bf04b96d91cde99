"""Batches by global row index: grain over a plan, so that resuming is a seek and workers change nothing."""

from collections.abc import Generator, Sequence
from pathlib import Path

import grain
import numpy as np
from absl import flags

from data.batch import Batch, Role
from data.dataset import Dataset, read_dataset
from data.plan import Plan, read_plan
from data.schema import DataError


def make_batches(
    source: Path | str | tuple[Dataset, Plan],
    *,
    start_row: int,
    batch_rows: int,
    host_index: int = 0,
    host_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Generator[Batch, None, None]:
    """This host's share of the plan's batches from `start_row` on, up to its last row.

    Global batch k holds rows [start_row + k * batch_rows, ... + batch_rows); host h of n gets the h-th of n
    equal contiguous parts, so the hosts' parts laid end to end are the batch whatever n is. `source` is a
    plan folder or the dataset and plan themselves. `workers` loader processes (0: a thread of this one) and
    `prefetch` batches kept ready never change what comes. A failure while loading is raised where the batch
    is asked for. `close()` stops the loader early.

    Raises DataError at once for rows that are out of range or do not divide.
    """
    dataset, plan = source if isinstance(source, tuple) else _open(Path(source))
    _check_rows(plan, start_row=start_row, batch_rows=batch_rows, host_index=host_index, host_count=host_count)
    host_rows = batch_rows // host_count
    batches = BatchSource(
        dataset=dataset,
        plan=plan,
        first_row=start_row + host_index * host_rows,
        stride=batch_rows,
        rows=host_rows,
        count=(plan.rows - start_row) // batch_rows,
    )
    indexed = grain.MapDataset.source(batches)
    if not workers:
        # One thread: batches are made much faster than a step takes, and more would only fight over the GIL.
        reads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
        return _iterate(indexed.to_iter_dataset(reads))
    # grain 0.2.18 reads an absl flag that only programs run by absl have parsed: google/grain#1355.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    reads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-prefetch // workers))
    return _iterate(indexed.to_iter_dataset(reads).mp_prefetch(options))


class BatchSource:
    """Random access to one host's batches, for grain: element k starts `stride` rows after element k - 1."""

    def __init__(self, *, dataset: Dataset, plan: Plan, first_row: int, stride: int, rows: int, count: int):
        self.dataset = dataset
        self.plan = plan
        self.first_row = first_row
        self.stride = stride
        self.rows = rows
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        first = self.first_row + int(index) * self.stride
        return make_batch(self.dataset, self.plan, range(first, first + self.rows))


def make_batch(dataset: Dataset, plan: Plan, rows: Sequence[int]) -> Batch:
    """The plan's rows of these indices as one batch. Raises DataError for an index outside the plan."""
    if len(rows) and (min(rows) < 0 or max(rows) >= plan.rows):
        raise DataError(f"rows {min(rows)} to {max(rows)} asked for; the plan has rows 0 to {plan.rows - 1}")
    examples = [plan.row_examples[plan.row_offsets[row] : plan.row_offsets[row + 1]] for row in rows]
    return row_arrays(dataset, examples, plan.row_length)


def row_arrays(dataset: Dataset, rows: Sequence[Sequence[int] | np.ndarray], row_length: int) -> Batch:
    """Rows given as lists of example indices, laid out as `Batch` describes; example k of a row is segment k.

    Each example is one run of source positions (its ids but the last) and one run of places in the batch,
    both written out in full, so that every array is filled by a single gather. Targets, their roles and
    weights are the same gather one position later. Raises DataError if a row's examples do not fit.
    """
    counts = [len(row) for row in rows]
    chosen = np.concatenate([np.empty(0, np.int64), *(np.asarray(row, np.int64) for row in rows)])
    tokens = dataset.read(chosen)
    begin_at = tokens.offsets[:-1]
    lengths = np.diff(tokens.offsets) - 1
    row = np.repeat(np.arange(len(rows)), counts)
    filled = np.bincount(row, weights=lengths, minlength=len(rows))
    if np.any(filled > row_length):
        raise DataError(f"a row's examples fill {int(filled.max())} positions of {row_length}; plan them again")
    # Where each example starts among all examples laid end to end, and where its row does.
    ends = np.cumsum(lengths)
    starts = ends - lengths
    row_starts = np.concatenate(([0], np.cumsum(filled.astype(np.int64))))[row]
    position = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    token_at = np.repeat(begin_at, lengths) + position
    place = np.repeat(row * row_length + starts - row_starts, lengths) + position
    segment = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts).astype(np.int64) + 1
    source = np.repeat(dataset.source[chosen], lengths)
    shape = (len(rows), row_length)

    def fill(values: np.ndarray, padding: int, dtype: type = np.int32) -> np.ndarray:
        flat = np.full(shape[0] * shape[1], padding, dtype)
        flat[place] = values
        return flat.reshape(shape)

    return Batch(
        tokens_BT=fill(tokens.ids[token_at], dataset.facts.pad_id),
        targets_BT=fill(tokens.ids[token_at + 1], dataset.facts.pad_id),
        loss_weight_BT=fill(_weights(dataset, tokens.weight_codes[token_at + 1], source), 0, np.float32),
        segments_BT=fill(np.repeat(segment, lengths), 0),
        positions_BT=fill(position, 0),
        language_BT=fill(np.repeat(dataset.language[chosen], lengths), 0),
        role_BT=fill(tokens.roles[token_at + 1], int(Role.PAD)),
        source_BT=fill(source, 0),
    )


def _weights(dataset: Dataset, codes: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Loss weights of weight codes, given the source of each."""
    prompt = np.asarray(dataset.facts.prompt_weights, np.float32)
    return np.where(codes == 1, np.float32(1), np.where(codes == 2, prompt[source], np.float32(0)))


def _iterate(batches: grain.IterDataset) -> Generator[Batch, None, None]:
    iterator = iter(batches)
    try:
        for batch in iterator:
            # Loader processes hand over shared memory that is freed with the array: own a copy instead.
            yield Batch(*(np.array(array, subok=False) for array in batch)) if _is_shared(batch) else batch
    finally:
        iterator.close()


def _is_shared(batch: Batch) -> bool:
    return type(batch.tokens_BT) is not np.ndarray


def _open(directory: Path) -> tuple[Dataset, Plan]:
    return read_dataset(directory / "dataset"), read_plan(directory)


def _check_rows(plan: Plan, *, start_row: int, batch_rows: int, host_index: int, host_count: int) -> None:
    if not 0 <= start_row <= plan.rows:
        raise DataError(f"start_row {start_row} is outside the plan's {plan.rows} rows; plan more steps")
    if batch_rows < 1 or batch_rows % host_count or not 0 <= host_index < host_count:
        raise DataError(
            f"a batch of {batch_rows} rows for host {host_index} of {host_count}: the rows must divide "
            f"evenly and hosts count from 0; use a multiple of {host_count}"
        )
    left = plan.rows - start_row
    if left % batch_rows:
        raise DataError(
            f"{left} rows are left from row {start_row} on, no multiple of batch_rows={batch_rows}: "
            f"{left % batch_rows} of them would never be served; keep the batch size the plan was made for "
            f"({plan.summary['batch_rows']})"
        )
