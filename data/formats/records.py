"""ArrayRecord files: their records, in order."""

import contextlib
from collections.abc import Iterator
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data.files import DataFile
from data.formats.rows import Record
from data.formats.text import KEPT_BYTES, ROW_BYTES_LIMIT, explain_size
from data.schema import DataError
from data.storage import local_copy

DAMAGE = (RuntimeError, ValueError, IndexError, OSError, MemoryError)
"""What the reader raises for files that are damaged."""


def read_array_record(file: DataFile) -> Iterator[Record]:
    """Yields the records of a file. Raises DataError, naming the record, if it is cut or damaged."""
    with local_copy(file.url) as path:
        yield from read_records(path, file.name)


def read_records(
    path: str, name: str, *, skip: int = 0, take: int | None = None, line: int = 1, promised: int | None = None
) -> Iterator[Record]:
    """Yields records of a local file from `skip` on, `take` of them or all; the first is `line`.

    Raises DataError if it is cut or damaged, or has not as many records as `promised`.
    """
    with _open(path, name) as reader:
        total = reader.num_records()
        if promised not in (None, total):
            raise DataError(f"{name} has {total} records, but the data set says {promised}; prepare or copy it again")
        stop = total if take is None else skip + take
        for index in range(skip, stop):
            try:
                if index == skip:
                    reader.seek(skip)
                content = reader.read()
            except DAMAGE as error:
                raise _damaged(name, f" at record {index + 1}", error) from None
            if len(content) > ROW_BYTES_LIMIT:
                yield Record(line + index - skip, content[:KEPT_BYTES], explain_size(len(content)))
            else:
                yield Record(line + index - skip, content)


@contextlib.contextmanager
def _open(path: str, name: str) -> Iterator[Any]:
    try:
        reader = array_record_module.ArrayRecordReader(path)
    except DAMAGE as error:
        raise _damaged(name, "", error) from None
    try:
        # What has no whole footer opens as if it held no records.
        if not reader.ok():
            raise _damaged(name, "", "its footer is not whole")
        yield reader
    finally:
        # Closing tells once more what was wrong.
        with contextlib.suppress(*DAMAGE):
            reader.close()


def _damaged(name: str, place: str, error: object) -> DataError:
    return DataError(f"{name} is cut or damaged{place}, or is no ArrayRecord file ({error}); copy or write it again")
