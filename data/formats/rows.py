"""What every format reads: rows with their places, in chunks.

What is wrong with data is told in one of two ways. A `BadLine` is one row that cannot be read although those around it
can: the recipe's policy decides whether it stops the run or is counted. A `DataError` is a file whose remaining rows
cannot be found or trusted: it is cut, its compressed stream or its structure is damaged, it is in another encoding or
format. It stops the run whatever the policy, for a shorter file must never pass as a whole one.

| damage | told as |
|---|---|
| a line, element or record that is no JSON object, is not UTF-8, repeats a key, is over 64 MiB | BadLine |
| a table's row with another number of fields, text after a closing quote, NUL bytes | BadLine |
| a column's value that is no text in a Parquet or Arrow row (invalid UTF-8, bytes) | BadLine |
| a truncated or damaged gzip, zstd, bzip2, xz stream; something else after its end | DataError |
| a JSON array that stops or lacks a comma; a quoted field that never ends | DataError |
| a header that is empty, repeats a name, or is not UTF-8 | DataError |
| UTF-16, or a file of another format than its name says | DataError |
| a truncated or damaged Parquet, Arrow or ArrayRecord file; a Parquet page whose checksum is wrong | DataError |

Plain text, uncompressed Arrow, and Parquet pages without checksums hold nothing by which a flipped bit inside a value
could be noticed; it is read as it stands. Nor does Parquet's footer: a bit of it may rename a column, as in the header
of a text table, and a field that goes unread is told in a notice. Gzip, xz, bzip2, zstd with checksums (the default of
its command) and ArrayRecord notice every one. Nor can a text that is cut be told from a shorter one where a row ends,
or in the last field of a table's last row. Compress texts, and a cut never goes unnoticed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from data.files import DataFile

EXCERPT_CHARACTERS = 200
"""How much of a bad row is kept."""


class Row(NamedTuple):
    """One row and where it stands."""

    fields: dict[str, Any]
    file: str
    """`DataFile.name`, with the split's name after a slash where a folder holds splits."""
    line: int
    """The line in a text file where the row begins, the number of the row in others; from 1."""


class BadLine(NamedTuple):
    """A row that cannot be read: no JSON, not UTF-8, a damaged record."""

    file: str
    line: int
    reason: str
    excerpt: str


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A run of rows of one file, small enough to send to another process, which needs nothing else to read it.

    Where a chunk begins and ends depends on the file's content alone.
    """

    file: DataFile
    format: str
    first_row: int
    """Rows of the file before this chunk, from 0."""
    rows: int
    payload: bytes = b""
    """The rows themselves, as a `Payload`."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One row before it is parsed, or in formats of columns a run of rows."""

    line: int
    """As `Row.line`, of the first row."""
    content: bytes
    """Of a row with a fault: its beginning."""
    fault: str = ""
    """Why it cannot be read, where that is known before it is parsed."""
    rows: int = 1


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """What a chunk carries."""

    head: bytes
    """What every row of the file is read by: a table's header, the features of a TFDS data set."""
    records: tuple[Record, ...]


class Fault(NamedTuple):
    """Why a row cannot be read, and its beginning."""

    reason: str
    excerpt: str


Parser = Callable[[bytes], list[dict[str, Any] | Fault]]
"""What turns a record's content into rows, or faults in their places."""


def make_excerpt(content: bytes) -> str:
    """Returns the beginning of a row that may be damaged, as text."""
    return content[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")[:EXCERPT_CHARACTERS]
