"""Old names for `data.files` and `data.formats`, until those who call them have moved; then this file goes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import data.files
from data.bad_rows import BadRows, note_bad, note_bad_line
from data.files import DataFile
from data.formats.reading import iter_chunks, read_chunk
from data.formats.rows import BadLine, Row

__all__ = ["Row", "find_files", "note_bad", "read_rows"]


def find_files(pattern: str | Sequence[str], root: Path) -> list[Path]:
    """Returns the local files of `data.files.find_files`."""
    return [Path(file.url) for file in data.files.find_files(pattern, root)]


def read_rows(files: list[Path], *, root: Path, source: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows of files in order; bad lines go to `bad_rows`. Raises DataError as `iter_chunks` does."""
    for path in files:
        for row in _read(data.files.find_files(str(path), root)[0]):
            bad_rows.read[source] += 1
            if isinstance(row, BadLine):
                note_bad_line(bad_rows, row, source=source)
            else:
                yield row


def _read(file: DataFile) -> Iterator[Row | BadLine]:
    for chunk in iter_chunks(file, "auto"):
        yield from read_chunk(chunk)
