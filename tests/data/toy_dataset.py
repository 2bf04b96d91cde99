"""Datasets in memory for tests, from tables of ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from data.cleaning.report import CleaningReport
from data.dataset import ARRAYS, Dataset, DatasetFacts, ShardList, hash_dataset, write_dataset
from data.encoded import Encoded
from data.shards import COLUMNS, ShardFacts, digest_records, write_shard
from data.token_store import Tokens, encode_record, split_tokens


class MemoryStore:
    """Records that are in memory."""

    def __init__(self, records: Sequence[bytes]):
        self.records = list(records)

    def read(self, records: np.ndarray) -> Tokens:
        found = [self.records[record] for record in np.asarray(records).tolist()]
        return split_tokens(b"".join(found), [len(record) for record in found], 4)


def store_dataset(dataset: Dataset, directory: Path, store: Path) -> None:
    """Writes a dataset of `make_dataset` to disk, its records into a shard of a store."""
    records = dataset.store.records
    facts = ShardFacts(
        key="toy", source="a", examples=len(records), tokens=0, id_bytes=4, largest_id=0,
        digest=digest_records(records), languages=(), tasks=(), files=(), read=0,
        cleaning=CleaningReport(max_listed=0),
    )  # fmt: skip
    columns = {name: np.zeros(len(records), kind) for name, kind in COLUMNS.items()}
    write_shard(store, facts, records, columns, np.zeros((len(records), 0), np.uint8))
    shards = ShardList(id_bytes=4, keys=("toy",), counts=(len(records),), digests=(facts.digest,))
    stored = msgspec.structs.replace(dataset, facts=msgspec.structs.replace(dataset.facts, shards=shards))
    write_dataset(stored, directory, store=store)


class ToyExample(NamedTuple):
    """Ids, the role and loss weight of each, and indices into the dataset's tables of languages and sources."""

    ids: Sequence[int]
    roles: Sequence[int]
    weights: Sequence[float]
    language: int
    source: int


def make_dataset(
    examples: Sequence[ToyExample | tuple],
    *,
    languages: tuple[str, ...] = ("", "en", "sw"),
    sources: tuple[str, ...] = ("", "a", "b", "c"),
    pad_id: int = 0,
    content_bytes: int = 7,
    characters: int = 5,
    **facts,
) -> Dataset:
    """The dataset of these examples. A weight other than 0 and 1 becomes its source's weight of prompts."""
    rows = [ToyExample(*example) for example in examples]
    prompt_weights = [0.0] * len(sources)
    for row in rows:
        for weight in set(row.weights) - {0, 1}:
            assert prompt_weights[row.source] in (0, weight), "a source has one weight of prompts"
            prompt_weights[row.source] = float(np.float32(weight))
    records = [
        encode_record(
            Encoded(
                np.array(row.ids, np.int32),
                np.array(row.roles, np.int8),
                np.array(row.weights, np.float32),
                np.full(len(row.ids), -1, np.int16),
            ),
            4,
        )
        for row in rows
    ]
    columns = {
        "positions": [len(row.ids) - 1 for row in rows],
        "targets": [int(np.count_nonzero(np.array(row.weights)[1:])) for row in rows],
        "language": [row.language for row in rows],
        "source": [row.source for row in rows],
        "task": [0] * len(rows),
        "content_bytes": [content_bytes] * len(rows),
        "characters": [characters] * len(rows),
        "record": range(len(rows)),
        "file": [0] * len(rows),
        "line": range(1, len(rows) + 1),
    }
    dataset = Dataset(
        **{name: np.array(list(columns[name]), kind) for name, kind in ARRAYS.items()},
        facts=DatasetFacts(
            languages=languages, sources=sources, tasks=("",), files=("rows",), pad_id=pad_id,
            prompt_weights=tuple(prompt_weights), tokenizer_hash="t", template_hash="c",
            largest_id=max(max(row.ids) for row in rows), **facts,
        ),
        store=MemoryStore(records),
    )  # fmt: skip
    return msgspec.structs.replace(dataset, facts=msgspec.structs.replace(dataset.facts, hash=hash_dataset(dataset)))
