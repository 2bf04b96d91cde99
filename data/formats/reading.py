"""Files to chunks, in one process and in order; chunks to rows, in any process and order."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from data.files import FOLDER_FORMATS, DataFile, detect_format, find_folder_format
from data.formats.json_rows import make_json_parser, read_json_array, read_json_lines
from data.formats.rows import BadLine, Chunk, Parser, Payload, Record, Row, make_excerpt
from data.formats.tables import make_table_parser, read_table
from data.schema import DataError
from data.source_config import Format

CHUNK_ROWS = 2000
CHUNK_BYTES = 4 << 20
"""A chunk holds at most so many rows and bytes, whichever comes first; a row that is larger is a chunk by itself."""


class Contents(NamedTuple):
    """What a file holds, found while the records are asked for."""

    file: DataFile
    """Of a folder with splits: the split."""
    head: bytes
    records: Iterator[Record]


class Reader(NamedTuple):
    """How one format is read."""

    open: Callable[[DataFile, str | None], Contents]
    make_parser: Callable[[bytes], Parser]
    """From the head to what turns a record's content into rows."""


def iter_chunks(file: DataFile, format: Format, *, split: str | None = None) -> Iterator[Chunk]:  # noqa: A002
    """Yields a file's rows in chunks, front to back, in memory that does not grow with the file.

    `split` is for folders that have some. Raises DataError, naming the file, if it has no rows, is damaged, or if its
    format, for `auto`, is not told by its name. What is told as a bad row instead: see `data.formats.rows`.
    """
    if format == "auto":
        format = _detect(file)  # noqa: A001
    if split is not None and format not in FOLDER_FORMATS:
        raise DataError(f"{file.name}: split {split!r} is asked for, but {format} files have no splits; leave it out")
    contents = READERS[format].open(file, split)
    chunks = _pack(contents, format)
    first = next(chunks, None)
    if first is None:
        raise DataError(f"{contents.file.name} is empty; give it rows or take it out of data.sources")
    yield first
    yield from chunks


def read_chunk(chunk: Chunk) -> Iterator[Row | BadLine]:
    """Yields the rows of a chunk in order, each once, as a row or as a bad line. Needs nothing but the chunk."""
    payload = msgspec.msgpack.decode(chunk.payload, type=Payload)
    parse = READERS[chunk.format].make_parser(payload.head)
    name = chunk.file.name
    for record in payload.records:
        if record.fault:
            yield BadLine(name, record.line, record.fault, make_excerpt(record.content))
            continue
        for line, row in enumerate(parse(record.content), start=record.line):
            if isinstance(row, dict):
                yield Row(row, name, line)
            else:
                yield BadLine(name, line, row.reason, row.excerpt)


def _detect(file: DataFile) -> Format:
    if not file.url.endswith("/"):
        return detect_format(file.name)
    found = find_folder_format(file.url)
    if found is None:
        raise DataError(f"{file.name} is a folder that neither `datasets` nor TFDS wrote; name the files in it")
    return found


def _pack(contents: Contents, format: str) -> Iterator[Chunk]:  # noqa: A002
    held: list[Record] = []
    first = rows = size = 0

    def pack() -> Chunk:
        payload = msgspec.msgpack.encode(Payload(contents.head, tuple(held)))
        return Chunk(file=contents.file, format=format, first_row=first, rows=rows, payload=payload)

    for record in contents.records:
        if held and (rows + record.rows > CHUNK_ROWS or size + len(record.content) > CHUNK_BYTES):
            yield pack()
            first += rows
            held, rows, size = [], 0, 0
        held.append(record)
        rows += record.rows
        size += len(record.content)
    if held:
        yield pack()


def _open_json_lines(file: DataFile, split: str | None) -> Contents:
    del split
    return Contents(file, b"", read_json_lines(file))


def _open_json(file: DataFile, split: str | None) -> Contents:
    del split
    return Contents(file, b"", read_json_array(file))


def _open_csv(file: DataFile, split: str | None) -> Contents:
    del split
    return Contents(file, *read_table(file, ","))


def _open_tsv(file: DataFile, split: str | None) -> Contents:
    del split
    return Contents(file, *read_table(file, "\t"))


# What reads the formats below is imported where it is needed: most recipes read text alone.


def _open_parquet(file: DataFile, split: str | None) -> Contents:
    from data.formats.columns import read_parquet

    del split
    return Contents(file, b"", read_parquet(file))


def _open_arrow(file: DataFile, split: str | None) -> Contents:
    from data.formats.columns import read_arrow

    del split
    return Contents(file, b"", read_arrow(file))


def _open_array_record(file: DataFile, split: str | None) -> Contents:
    from data.formats.records import read_array_record

    del split
    return Contents(file, b"", read_array_record(file))


def _open_hf_dataset(file: DataFile, split: str | None) -> Contents:
    from data.formats.folders import read_hf_dataset

    file, records = read_hf_dataset(file, split)
    return Contents(file, b"", records)


def _open_tfds(file: DataFile, split: str | None) -> Contents:
    from data.formats.folders import read_tfds

    return Contents(*read_tfds(file, split))


def _make_columns_parser(head: bytes) -> Parser:
    from data.formats.columns import parse_columns

    del head
    return parse_columns


def _make_examples_parser(head: bytes) -> Parser:
    from data.formats.folders import make_examples_parser

    return make_examples_parser(head)


READERS: dict[str, Reader] = {
    "jsonl": Reader(_open_json_lines, make_json_parser),
    "json": Reader(_open_json, make_json_parser),
    "csv": Reader(_open_csv, make_table_parser),
    "tsv": Reader(_open_tsv, make_table_parser),
    "parquet": Reader(_open_parquet, _make_columns_parser),
    "arrow": Reader(_open_arrow, _make_columns_parser),
    "array_record": Reader(_open_array_record, make_json_parser),
    "hf_dataset": Reader(_open_hf_dataset, _make_columns_parser),
    "tfds": Reader(_open_tfds, _make_examples_parser),
}
