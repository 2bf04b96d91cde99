"""Parquet and Arrow: columns cut into runs of rows, and rows out of them as plain values."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from data.files import DataFile
from data.formats.rows import EXCERPT_CHARACTERS, Fault, Record
from data.formats.text import ROW_BYTES_LIMIT, explain_size
from data.formats.values import to_plain
from data.schema import DataError
from data.storage import is_remote, naming, open_url

BATCH_ROWS = 2000
BATCH_BYTES = 4 << 20
READ_BYTES = 1 << 20
"""Of each column at a time: without it pyarrow holds the columns of a whole row group."""

DAMAGE = Exception
"""What reading a damaged file raises: pyarrow has many classes, and those of a remote store pass through it."""

# Eight bytes that end a stream of record batches; what was written before 2019 has the last four alone.
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(file: DataFile) -> Iterator[Record]:
    """Yields runs of rows, row group by row group, and bad rows apart. Pages' checksums are checked, if there are any.

    Raises DataError, naming the row group, for a file that is cut or damaged.
    """
    with _open(file) as source:
        try:
            reader = pyarrow.parquet.ParquetFile(
                source, page_checksum_verification=True, pre_buffer=False, buffer_size=READ_BYTES
            )
            names, groups, promised = reader.schema_arrow.names, reader.num_row_groups, reader.metadata.num_rows
        except DAMAGE as error:
            raise _damaged(file, "", error) from None
        _check_names(names, file.name)
        line = 1
        for group in range(groups):
            for batch in _read_row_group(reader, group, file):
                yield from _cut(batch, line)
                line += batch.num_rows
        if line - 1 != promised:
            raise _damaged(file, "", f"{line - 1} rows of {promised} are there")


def read_arrow(file: DataFile, line: int = 1) -> Iterator[Record]:
    """Yields runs of rows of an Arrow IPC file (Feather) or stream, and bad rows apart; the first row is `line`.

    Memory holds one record batch of the file. Raises DataError, naming the record batch, for a file that is cut or
    damaged; a stream must have its end mark.
    """
    with _open(file) as source:
        with naming(file.name):
            is_file = source.read(6) == b"ARROW1"
        for batch in _read_file(source, file) if is_file else _read_stream(source, file):
            yield from _cut(batch, line)
            line += batch.num_rows


def parse_columns(content: bytes) -> list[dict[str, Any] | Fault]:
    """Returns the rows of a record's content, an Arrow stream, as plain values."""
    rows: list[dict[str, Any] | Fault] = []
    for batch in pyarrow.ipc.open_stream(content):
        try:
            rows += [to_plain(row) for row in batch.to_pylist(maps_as_pydicts="strict")]
        except (ValueError, KeyError, OverflowError, pyarrow.ArrowException):
            rows += [_parse_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    return rows


def _parse_row(batch: pyarrow.RecordBatch) -> dict[str, Any] | Fault:
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            [row[name]] = (to_plain(value) for value in column.to_pylist(maps_as_pydicts="strict"))
        except (ValueError, KeyError, OverflowError, pyarrow.ArrowException) as error:
            excerpt = json.dumps(row, ensure_ascii=False, default=str)
            return Fault(
                f"column {name!r} cannot be read as text or plain values: {error}", excerpt[:EXCERPT_CHARACTERS]
            )
    return row


def _open(file: DataFile) -> Any:
    """A file as pyarrow reads it."""
    if is_remote(file.url):
        return pyarrow.PythonFile(open_url(file.url), mode="r")
    with naming(file.name):
        return pyarrow.OSFile(file.url)


def _read_row_group(reader: pyarrow.parquet.ParquetFile, group: int, file: DataFile) -> Iterator[pyarrow.RecordBatch]:
    place = f" in row group {group}"
    rows = 0
    try:
        promised = reader.metadata.row_group(group).num_rows
        for batch in reader.iter_batches(BATCH_ROWS, row_groups=[group]):
            rows += batch.num_rows
            yield batch
    except DAMAGE as error:
        raise _damaged(file, place, error) from None
    if rows != promised:
        raise _damaged(file, place, f"{rows} rows of {promised} are there")


def _read_file(source: Any, file: DataFile) -> Iterator[pyarrow.RecordBatch]:
    try:
        source.seek(0)
        reader = pyarrow.ipc.open_file(source)
        names, batches = reader.schema.names, reader.num_record_batches
    except DAMAGE as error:
        raise _damaged(file, "", error) from None
    _check_names(names, file.name)
    for index in range(batches):
        try:
            batch = reader.get_batch(index)
        except DAMAGE as error:
            raise _damaged(file, f" in record batch {index}", error) from None
        yield batch


def _read_stream(source: Any, file: DataFile) -> Iterator[pyarrow.RecordBatch]:
    try:
        source.seek(0)
        mark = END_OF_STREAM if source.read(4) == END_OF_STREAM[:4] else END_OF_STREAM[4:]
        source.seek(0)
        reader = pyarrow.ipc.open_stream(source)
    except DAMAGE as error:
        raise _damaged(file, "", error) from None
    _check_names(reader.schema.names, file.name)
    index = 0
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            break
        except DAMAGE as error:
            raise _damaged(file, f" in record batch {index}", error) from None
        yield batch
        index += 1
    _check_end(source, mark, file)


def _check_end(source: Any, mark: bytes, file: DataFile) -> None:
    """A stream that was cut between two record batches looks like a shorter one, but for its missing end mark."""
    end = source.tell()
    source.seek(end - len(mark))
    if source.read(len(mark)) != mark:
        raise DataError(f"{file.name} is cut, or its writer was not closed: the stream has no end mark; write it again")
    if source.read(1):
        raise DataError(
            f"{file.name}: something follows the end of the Arrow stream at byte {end}; write one stream a file"
        )


def _check_names(names: list[str], file: str) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count != 1:
        what = f"{count} columns are named {name!r}; give each its own name" if count else "there are no columns"
        raise DataError(f"{file}: {what}")


def _damaged(file: DataFile, place: str, error: object) -> DataError:
    return DataError(f"{file.name} is cut or damaged{place} ({error}); copy or write it again")


def _cut(batch: pyarrow.RecordBatch, line: int) -> Iterator[Record]:
    """Yields a batch in runs within the limits."""
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield from _keep_valid(batch.slice(start, BATCH_ROWS), line + start)


def _keep_valid(batch: pyarrow.RecordBatch, line: int) -> Iterator[Record]:
    """Yields a run; where a value in it is invalid, halves of it, down to the bad row: no other is lost."""
    fault, rows = _find_fault(batch), batch.num_rows
    if not fault:
        yield from _keep_small(_decode_dictionaries(batch), line)
    elif rows == 1:
        yield Record(line, b"", f"a value is damaged: {fault}")
    else:
        yield from _keep_valid(batch.slice(0, rows // 2), line)
        yield from _keep_valid(batch.slice(rows // 2), line + rows // 2)


def _keep_small(batch: pyarrow.RecordBatch, line: int) -> Iterator[Record]:
    rows = batch.num_rows
    if rows > 1 and batch.nbytes > BATCH_BYTES:
        yield from _keep_small(batch.slice(0, rows // 2), line)
        yield from _keep_small(batch.slice(rows // 2), line + rows // 2)
    elif batch.nbytes > ROW_BYTES_LIMIT:
        yield Record(line, b"", explain_size(batch.nbytes))
    else:
        yield Record(line, _serialise(batch), rows=rows)


def _find_fault(batch: pyarrow.RecordBatch) -> str:
    """Why a batch must not be read: offsets that point outside, text that is no UTF-8; `""` if it may be."""
    try:
        batch.validate(full=True)
    except DAMAGE as error:
        return str(error)
    return ""


def _decode_dictionaries(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Columns of indices into values, as pandas' categories are, become columns of values: cut, each has its own."""
    columns = [
        column.dictionary_decode() if isinstance(column, pyarrow.DictionaryArray) else column
        for column in batch.columns
    ]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _serialise(batch: pyarrow.RecordBatch) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
