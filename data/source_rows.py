"""The rows of a source, whatever files and formats they are in."""

from collections.abc import Iterable, Iterator
from itertools import islice
from os import PathLike

from data.bad_rows import BadRows, note_bad_line
from data.files import DataFile, find_files
from data.formats.reading import iter_chunks, read_chunk
from data.formats.rows import BadLine, Chunk, Row
from data.source_config import FileSource


def find_source_files(source: FileSource, root: str | PathLike[str]) -> list[DataFile]:
    """Returns the files of a source, sorted by name, each once. Raises DataError if a path has none."""
    return find_files(source.path, root, format=source.format)


def iter_source_chunks(source: FileSource, files: Iterable[DataFile]) -> Iterator[Chunk]:
    """Yields the rows of these files in chunks, in order. Raises DataError naming a file that is damaged or empty."""
    for file in files:
        yield from iter_chunks(file, source.format, split=source.split)


def read_rows(source: FileSource, files: Iterable[DataFile], *, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows of these files in order; those that cannot be read go to `bad_rows`. Raises as it does."""
    for chunk in iter_source_chunks(source, files):
        for row in read_chunk(chunk):
            bad_rows.read[source.name] += 1
            if isinstance(row, BadLine):
                note_bad_line(bad_rows, row, source=source.name)
            else:
                yield row


def sample_rows(source: FileSource, files: Iterable[DataFile], count: int) -> list[Row]:
    """Returns the first rows that can be read."""
    return list(islice(read_rows(source, files, bad_rows=BadRows("skip")), count))
