"""What every format reads: rows with their places, in chunks."""

from typing import Any, NamedTuple

import msgspec

from data.files import DataFile


class Row(NamedTuple):
    """One row and where it stands."""

    fields: dict[str, Any]
    file: str
    """`DataFile.name`"""
    line: int
    """The line in a text file, the number of the row in others; from 1."""


class BadLine(NamedTuple):
    """A row that cannot be read: no JSON, not UTF-8, a damaged record."""

    file: str
    line: int
    reason: str
    excerpt: str


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A run of rows of one file, small enough to send to another process, which can read it without the others.

    Where a chunk begins and ends depends on the file's content alone.
    """

    file: DataFile
    format: str
    first_row: int
    """Rows of the file before this chunk, from 0."""
    rows: int
    payload: bytes = b""
    """The rows themselves, for formats read from front to back; empty where the reader seeks."""
    place: tuple[int, ...] = ()
    """Where a reader that seeks finds the rows: row group, record batch ..."""
