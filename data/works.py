"""Pieces of work for `prepare`: runs of rows, each of which becomes one shard, in whatever process."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from data.bad_rows import BadRow
from data.formats.rows import Chunk
from data.schema import Conversation

WORK_BYTES = 2 << 20
WORK_ROWS = 10_000
"""A piece of work ends with the chunk that reaches either: soon, so that all processes have their share to the end."""
SMALL_PIECES, MOST_GROWTH = 256, 16
"""A source that would give more pieces than this has larger ones, up to so many times, so that a terabyte makes tens of
thousands of shards and not half a million."""


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


def group_chunks(source: int, chunks: Iterable[Chunk], size: int) -> Iterator[Work]:
    """Yields pieces of work of consecutive chunks, files that are small together; `size` is that of all files in bytes.

    How large pieces are depends on the source alone and goes by powers of two: a source that grows a little, or another
    one beside it, leaves the shards that are there as they are.
    """
    growth = min(1 << (size // (WORK_BYTES * SMALL_PIECES)).bit_length(), MOST_GROWTH)
    waiting: list[Chunk] = []
    held = rows = 0
    for chunk in chunks:
        waiting.append(chunk)
        held, rows = held + len(chunk.payload), rows + chunk.rows
        if held >= growth * WORK_BYTES or rows >= growth * WORK_ROWS:
            yield Work(source=source, chunks=tuple(waiting))
            waiting, held, rows = [], 0, 0
    if waiting:
        yield Work(source=source, chunks=tuple(waiting))


def group_conversations(source: int, conversations: Sequence[Conversation], facts: LoadedFacts) -> Iterator[Work]:
    """Yields pieces of work of conversations that are loaded already."""
    for first in range(0, max(len(conversations), 1), WORK_ROWS):
        part = tuple(conversations[first : first + WORK_ROWS])
        yield Work(source=source, conversations=part, facts=facts if first == 0 else None)
