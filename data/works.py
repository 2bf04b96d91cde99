"""Pieces of work for `prepare`: runs of rows, each of which becomes one shard, in whatever process."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from data.bad_rows import BadRow
from data.formats.rows import Chunk
from data.schema import Conversation

WORK_BYTES = 8 << 20
WORK_ROWS = 10_000
"""A piece of work ends with the chunk that reaches either."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one source that become one shard: chunks of files, or conversations that are here already."""

    source: int
    """Index into the recipe's sources."""
    chunks: tuple[Chunk, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    facts: "LoadedFacts | None" = None
    """What loading those conversations left out, with the first piece of them."""

    @property
    def rows(self) -> int:
        """Rows, or conversations where they are here already."""
        return len(self.conversations) + sum(chunk.rows for chunk in self.chunks)


class LoadedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a source that is loaded as a whole (trees, embedded data) left out while it was."""

    read: int
    bad_rows: tuple[BadRow, ...]
    left_out: dict[str, int]


class Progress(NamedTuple):
    """How far preparing has come, for whoever shows it."""

    source: str
    rows: int
    """Rows of all sources read so far."""
    tokens: int
    reused: int
    """Shards that were there already, of those so far."""
    shards: int


def group_chunks(source: int, chunks: Iterable[Chunk]) -> Iterator[Work]:
    """Yields pieces of work of consecutive chunks, files that are small together."""
    waiting: list[Chunk] = []
    size = rows = 0
    for chunk in chunks:
        waiting.append(chunk)
        size, rows = size + len(chunk.payload), rows + chunk.rows
        if size >= WORK_BYTES or rows >= WORK_ROWS:
            yield Work(source=source, chunks=tuple(waiting))
            waiting, size, rows = [], 0, 0
    if waiting:
        yield Work(source=source, chunks=tuple(waiting))


def group_conversations(source: int, conversations: Sequence[Conversation], facts: LoadedFacts) -> Iterator[Work]:
    """Yields pieces of work of conversations that are loaded already."""
    for first in range(0, max(len(conversations), 1), WORK_ROWS):
        part = tuple(conversations[first : first + WORK_ROWS])
        yield Work(source=source, conversations=part, facts=facts if first == 0 else None)
