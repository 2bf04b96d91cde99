"""Tokens of encoded examples: how a record holds them, and random access to the records of many shards."""

import errno
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data.encoded import Encoded
from data.schema import DataError

READER_OPTIONS = "readahead_buffer_size:0"
MOST_OPEN = 8192
"""Shards kept open by a process, where the system lets it; the least recently used is closed first. Opening one anew
for every few examples is ten times slower."""
SPARE_FILES = 128
"""Files that the rest of a process may need."""
ROLE_BITS = 3


class Tokens(NamedTuple):
    """Examples end to end; example i is `[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    """int32"""
    roles: np.ndarray
    """uint8, `data.batch.Role`"""
    weight_codes: np.ndarray
    """uint8: 0 untrained, 1 trained in full, 2 the source's `loss.prompt_weight`."""
    offsets: np.ndarray
    """int64, one more than there are examples."""


class TokenStore(Protocol):
    """Random access to the tokens of examples. Picklable."""

    def read(self, records: np.ndarray) -> Tokens:
        """Returns the tokens of these records, in this order, repeats included."""
        ...


def records_path(store: Path, key: str) -> Path:
    """Where the records of a shard are."""
    return store / key[:2] / f"{key}.array_record"


def table_path(store: Path, key: str) -> Path:
    """Where the table of a shard is: the last thing written of it."""
    return store / key[:2] / f"{key}.npz"


def weight_codes(weights: np.ndarray) -> np.ndarray:
    """Codes of loss weights, of which an example has at most two besides 0: 1, and its source's weight of prompts."""
    return np.where(weights == 0, 0, np.where(weights == 1, 1, 2)).astype(np.uint8)


def record_type(id_bytes: int) -> np.dtype:
    """One token in a record: its id, and a byte of role and weight code."""
    return np.dtype([("id", "<u2" if id_bytes == 2 else "<u4"), ("label", "u1")])


def id_bytes_for(vocab_size: int) -> int:
    """How many bytes an id takes."""
    return 2 if vocab_size <= 1 << 16 else 4


def encode_record(encoded: Encoded, id_bytes: int) -> bytes:
    """Returns an example as the bytes of a record."""
    tokens = np.empty(len(encoded.ids), record_type(id_bytes))
    tokens["id"] = encoded.ids
    tokens["label"] = encoded.roles.astype(np.uint8) | (weight_codes(encoded.weights) << ROLE_BITS)
    return tokens.tobytes()


class ShardStore:
    """The records of some shards, numbered on through all of them in their order."""

    def __init__(self, store: Path, keys: Sequence[str], counts: Sequence[int], id_bytes: int):
        self.store, self.keys, self.counts, self.id_bytes = store, tuple(keys), tuple(counts), id_bytes
        self._starts = np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64)))
        self._open: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()
        self._most_open = count_openable()

    def __reduce__(self):
        return ShardStore, (self.store, self.keys, self.counts, self.id_bytes)

    def read(self, records: np.ndarray) -> Tokens:
        """Returns the tokens of these records, in this order.

        Raises DataError naming the shard where it is gone or damaged.
        """
        records = np.asarray(records, np.int64)
        shard_N = np.searchsorted(self._starts, records, side="right") - 1
        found: list[bytes] = [b""] * len(records)
        order = np.argsort(shard_N, kind="stable")
        shards, first = np.unique(shard_N[order], return_index=True)
        for shard, members in zip(shards.tolist(), np.split(order, first[1:]), strict=bool(len(records))):
            inside = (records[members] - self._starts[shard]).tolist()
            for place, record in zip(members.tolist(), self._read_shard(shard, inside), strict=True):
                found[place] = record
        return split_tokens(b"".join(found), [len(record) for record in found], self.id_bytes)

    def _read_shard(self, shard: int, inside: list[int]) -> Sequence[bytes]:
        try:
            with self._lock:
                return self._reader(shard).read(inside)
        except OSError as error:
            path = records_path(self.store, self.keys[shard])
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise DataError(f"{path}: {error.strerror}; raise the limit of open files (ulimit -n)") from error
            raise DataError(f"{path} cannot be read ({error.strerror}); prepare again, which makes it anew") from error
        except (RuntimeError, IndexError, ValueError) as error:
            path = records_path(self.store, self.keys[shard])
            table = table_path(self.store, self.keys[shard])
            raise DataError(
                f"{path} cannot be read ({error}); delete {table} and prepare again: the same recipe makes it anew"
            ) from error

    def _reader(self, shard: int) -> ArrayRecordReader:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = records_path(self.store, self.keys[shard])
        if len(self._open) >= self._most_open:
            self._open.popitem(last=False)[1].close()
        # A file that cannot be opened looks like an empty one to the reader: the system's own word comes first.
        with path.open("rb"):
            reader = ArrayRecordReader(str(path), READER_OPTIONS)
        if reader.num_records() != self.counts[shard]:
            raise ValueError(f"it has {reader.num_records()} records instead of {self.counts[shard]}")
        self._open[shard] = reader
        return reader


def count_openable() -> int:
    """How many shards this process may keep open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, limit - SPARE_FILES))


def split_tokens(content: bytes, sizes: Sequence[int], id_bytes: int) -> Tokens:
    """Returns the tokens of records laid end to end, given the bytes of each."""
    kind = record_type(id_bytes)
    tokens = np.frombuffer(content, kind)
    offsets = np.concatenate(([0], np.cumsum(np.array(sizes, np.int64) // kind.itemsize)))
    labels = tokens["label"]
    return Tokens(tokens["id"].astype(np.int32), labels & ((1 << ROLE_BITS) - 1), labels >> ROLE_BITS, offsets)
