"""The same few rows written in every format, for tests: by the formats' own libraries, never by polytune."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import zstandard
from array_record.python import array_record_module

from data.files import DataFile, find_files
from data.formats.reading import iter_chunks, read_chunk
from data.formats.rows import BadLine, Row

TEXTS = (
    "Habari ya asubuhi?",
    'she said "no", twice',
    "你好\n世界",
    "שלום; עולם",
    "a\u2028b\u0085c",
    "🙂‍↔️ x",
    "नमस्ते",
    "",
)


def make_rows(count: int = 24) -> list[dict[str, Any]]:
    """Rows of text alone, as every format can hold them; no two are alike."""
    return [{"q": f"{i}: {TEXTS[i % len(TEXTS)]}", "a": TEXTS[(i * 5 + 3) % len(TEXTS)] + str(i)} for i in range(count)]


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def _json_data(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({"version": "1", "data": rows}, ensure_ascii=False).encode()


def _table(rows: list[dict[str, Any]], separator: str) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, sink, row_group_size=max(1, len(rows) // 3), write_page_checksum=True)
    return sink.getvalue()


def _arrow_stream(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(rows) // 3))
    return sink.getvalue()


def _arrow_file(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(rows) // 3))
    return sink.getvalue()


def _feather(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), sink, compression="zstd")
    return sink.getvalue()


def compress_zstd(content: bytes) -> bytes:
    """With checksum, as the command `zstd` writes."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "x.jsonl": _jsonl,
    "x.jsonl.gz": lambda rows: gzip.compress(_jsonl(rows), mtime=0),
    "x.jsonl.zst": lambda rows: compress_zstd(_jsonl(rows)),
    "x.ndjson.bz2": lambda rows: bz2.compress(_jsonl(rows)),
    "x.jsonl.xz": lambda rows: lzma.compress(_jsonl(rows)),
    "x.json": _json,
    "data.json": _json_data,
    "x.json.gz": lambda rows: gzip.compress(_json(rows), mtime=0),
    "x.csv": lambda rows: _table(rows, ","),
    "x.csv.zst": lambda rows: compress_zstd(_table(rows, ",")),
    "x.tsv": lambda rows: _table(rows, "\t"),
    "x.parquet": _parquet,
    "stream.arrow": _arrow_stream,
    "file.arrow": _arrow_file,
    "x.feather": _feather,
}


def write_array_record(path: Path, records: list[bytes], options: str = "group_size:4") -> Path:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def write_file(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Writes rows in the format that a name (a key of WRITERS, or `x.array_record`) says."""
    path = folder / name
    if name == "x.array_record":
        return write_array_record(path, [json.dumps(row, ensure_ascii=False).encode() for row in rows])
    path.write_bytes(WRITERS[name](rows))
    return path


def read_file(path: Path | DataFile, format: str = "auto", split: str | None = None) -> list[Row | BadLine]:  # noqa: A002
    """All rows of a file, good and bad."""
    file = path if isinstance(path, DataFile) else find_files(path.name, path.parent, format=format)[0]
    return [row for chunk in iter_chunks(file, format, split=split) for row in read_chunk(chunk)]


def read_fields(path: Path | DataFile, format: str = "auto", split: str | None = None) -> list[dict[str, Any]]:  # noqa: A002
    """All rows of a file, none of which may be bad."""
    rows = read_file(path, format, split)
    assert not [row for row in rows if isinstance(row, BadLine)]
    return [row.fields for row in rows if isinstance(row, Row)]
