"""The same rows in a file, or a folder, of every format: written by the formats' own libraries, never by polytune."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import zstandard
from array_record.python import array_record_module

Rows = Sequence[dict[str, Any]]


class Written(NamedTuple):
    """A file or folder below `root`, and the line that each row begins in."""

    path: str
    lines: list[int]
    rows: Rows
    """What was written: where the format cannot hold a row as it is, its values as text."""


def write_rows(root: Path, kind: str, rows: Rows) -> Written:
    """Writes rows in a format, a key of FORMATS."""
    path = FORMATS[kind]
    lines = list(range(1, len(rows) + 1))
    if kind == "array_record":
        writer = array_record_module.ArrayRecordWriter(str(root / path), "group_size:2")
        for row in rows:
            writer.write(spell(row))
        writer.close()
    elif kind == "hf_dataset":
        rows = _write_folder(root / path, rows)
    elif kind in ("csv", "tsv"):
        rows = [as_texts(row) for row in rows]
        content, lines = _write_table(rows, "," if kind == "csv" else "\t")
        (root / path).write_bytes(content)
    elif kind in COLUMNS:
        content, rows = _write_columns(rows, COLUMNS[kind])
        (root / path).write_bytes(content)
    else:
        (root / path).write_bytes(WRITERS[kind](rows))
    return Written(path, lines, rows)


FORMATS = {
    "jsonl": "x.jsonl", "gz": "x.jsonl.gz", "zst": "x.jsonl.zst", "json": "x.json", "csv": "x.csv", "tsv": "x.tsv",
    "parquet": "x.parquet", "arrow": "x.arrow", "array_record": "x.array_record", "hf_dataset": "x",
}  # fmt: skip
"""What each format's file is called."""


def spell(row: dict[str, Any]) -> bytes:
    """A row as JSON; a number of too many digits for Python to write as well."""
    return dump(row).encode()


def dump(value: Any) -> str:
    """JSON of a value, halves of surrogate pairs escaped."""
    text = json.dumps(_spell_out(value), ensure_ascii=False)
    text = text.replace('"@huge"', "1" * 5001)
    return "".join(f"\\u{ord(letter):04x}" if "\ud800" <= letter <= "\udfff" else letter for letter in text)


def _spell_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spell_out(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_spell_out(item) for item in value]
    return "@huge" if type(value) is int and value.bit_length() > 1000 else value


def as_text(value: Any) -> str | None:
    """A value as tables of text hold it: JSON of what is no text, nothing for null."""
    if value is None:
        return None
    text = value if isinstance(value, str) else dump(value)
    return text.encode("utf-8", errors="backslashreplace").decode()


def as_texts(row: dict[str, Any]) -> dict[str, Any]:
    """A row as tables of text hold it."""
    return {as_text(name): as_text(value) for name, value in row.items()}  # pyright: ignore[reportReturnType]


def _name_columns(rows: Rows) -> list[str]:
    """Every field of the rows that a table can have a column for."""
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name.strip() and "\0" not in name]


def _write_table(rows: Rows, separator: str) -> tuple[bytes, list[int]]:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, _name_columns(rows), delimiter=separator, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    lines = []
    for row in rows:
        lines.append(sink.getvalue().count("\n") + 1)
        writer.writerow(row)
    return sink.getvalue().encode(), lines


def _write_columns(rows: Rows, write: Callable[[pyarrow.Table], bytes]) -> tuple[bytes, Rows]:
    """A file of nested values where all rows agree on their types, else of texts; and the rows in it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return write(pyarrow.table({name: pyarrow.array([row.get(name) for row in rows]) for name in names})), rows
    except (pyarrow.ArrowException, ValueError, OverflowError, TypeError, RecursionError):
        texts = [as_texts(row) for row in rows]
        names = dict.fromkeys(name for row in texts for name in row)
        columns = {name: pyarrow.array([row.get(name) for row in texts], "string") for name in names}
        return write(pyarrow.table(columns)), texts


def _write_parquet(table: pyarrow.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, row_group_size=3, write_page_checksum=True)
    return sink.getvalue()


def _write_arrow(table: pyarrow.Table) -> bytes:
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


def _write_folder(folder: Path, rows: Rows) -> Rows:
    """As `Dataset.save_to_disk` lays it out."""
    folder.mkdir(exist_ok=True)
    content, rows = _write_columns(rows, _write_arrow)
    (folder / "data-00000-of-00001.arrow").write_bytes(content)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None, "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    return rows


def _write_lines(rows: Rows) -> bytes:
    return b"".join(spell(row) + b"\n" for row in rows)


WRITERS = {
    "jsonl": _write_lines,
    "gz": lambda rows: gzip.compress(_write_lines(rows), mtime=0),
    "zst": lambda rows: zstandard.ZstdCompressor(write_checksum=True).compress(_write_lines(rows)),
    "json": lambda rows: b"[" + b",\n".join(map(spell, rows)) + b"]\n",
}
COLUMNS = {"parquet": _write_parquet, "arrow": _write_arrow}
