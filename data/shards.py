"""Encoded examples on disk: ArrayRecord shards, one record an example, with a table of lengths beside each.

A shard is named by the hash of all it was made from, and is there as soon as its table is: the records are put in
place first, the table last, each on disk before its rename. So what a killed process or machine leaves behind is never
taken for a shard, and what it had finished is found again by the next one.
"""

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import msgspec
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data.bad_rows import BadRow
from data.cleaning.report import CleaningReport
from data.schema import DataError
from data.token_store import records_path, table_path

FORMAT = 1
# One record a chunk, not compressed: ids hardly shrink, and random access would pay for it (docs/benchmarks.md).
WRITER_OPTIONS = "group_size:1,uncompressed"
COLUMNS = {
    "positions": np.int32,
    "targets": np.int32,
    "language": np.int16,
    "task": np.int16,
    "content_bytes": np.int64,
    "characters": np.int64,
    "file": np.int32,
    "line": np.int64,
}
"""What the table of a shard says of each example. `language`, `task` and `file` index the tables of its facts."""


class Overlong(msgspec.Struct, frozen=True, kw_only=True):
    """Examples of a language that a row had no room for, as `data.packing.overlong` treats them."""

    language: str
    dropped: int = 0
    """Left out altogether, or with `split` turns left out."""
    cut: int = 0
    """Kept less some of their turns (`truncate`), or in several parts (`split`)."""
    shortest: int = 0
    """Positions the shortest of those dropped needs; 0 for none."""


class ShardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a shard that is not an array."""

    format: int = FORMAT
    key: str
    source: str
    examples: int
    tokens: int
    """Ids of all examples."""
    id_bytes: int
    """Of an id in a record: 2 or 4."""
    largest_id: int
    digest: str
    """sha256 over the records, in order."""
    languages: tuple[str, ...]
    tasks: tuple[str, ...]
    files: tuple[str, ...]
    read: int
    """Rows read, good and bad."""
    left_out: dict[str, int] = {}
    """Rows left out on purpose, by reason."""
    bad_rows: tuple[BadRow, ...] = ()
    overlong: tuple[Overlong, ...] = ()
    cleaning: CleaningReport
    """What cleaning left out."""


class ShardTable(NamedTuple):
    """A shard's facts and its columns, N rows each."""

    facts: ShardFacts
    columns: dict[str, np.ndarray]
    signatures: np.ndarray
    """uint8, N x S; S is 0 unless duplicates are looked for."""


def has_shard(store: Path, key: str) -> bool:
    """Whether the shard is there, complete."""
    return table_path(store, key).exists()


def write_shard(
    store: Path, facts: ShardFacts, records: Sequence[bytes], columns: dict[str, np.ndarray], signatures: np.ndarray
) -> None:
    """Writes a shard, records first. Two processes that write the same one leave one of two equal ones.

    Raises DataError where the store cannot be written.
    """
    place = records_path(store, facts.key)
    scratch = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(scratch), WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
        size_bytes = _flush(scratch)
        os.replace(scratch, place)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"{name}_N": np.asarray(columns[name], dtype) for name, dtype in COLUMNS.items()}
        arrays |= {"facts": np.frombuffer(msgspec.json.encode(facts), np.uint8), "signatures": signatures}
        np.savez(buffer, **arrays, size_bytes=np.int64(size_bytes))
        scratch.write_bytes(buffer.getvalue())
        _flush(scratch)
        os.replace(scratch, table_path(store, facts.key))
    except (OSError, RuntimeError, ValueError) as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise DataError(f"cannot write prepared data to {store} ({error}); set data.store to another folder") from error


def read_shard(store: Path, key: str) -> ShardTable:
    """The facts and columns of a shard. Raises DataError where it is missing or damaged."""
    path = table_path(store, key)
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            facts = msgspec.json.decode(arrays["facts"].tobytes(), type=ShardFacts)
            columns = {name: arrays[f"{name}_N"] for name in COLUMNS}
            signatures, size_bytes = arrays["signatures"], int(arrays["size_bytes"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, msgspec.MsgspecError) as error:
        raise DataError(f"{path} is no complete table of a shard ({error}); delete it and prepare again") from error
    whole = facts.format == FORMAT and facts.key == key and _size_of(records_path(store, key)) == size_bytes
    if not whole or any(len(column) != facts.examples for column in columns.values()):
        raise DataError(f"{path} is damaged, or its records are missing or cut; delete it and prepare again")
    return ShardTable(facts, columns, signatures)


def _flush(path: Path) -> int:
    """Brings a file's content to the disk, where a rename alone may arrive before it; its size in bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def digest_records(records: Sequence[bytes]) -> str:
    """sha256 over records, each with its length."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(len(record).to_bytes(8, "little"))
        digest.update(record)
    return digest.hexdigest()
