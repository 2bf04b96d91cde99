"""Reading JSON Lines files, row by row, with the place of everything that is wrong."""

import codecs
import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.bad_rows import EXCERPT_CHARACTERS, BadRow, BadRows
from data.formats.rows import Row
from data.schema import DataError


def find_files(pattern: str, root: Path) -> list[Path]:
    """Returns the files of a path or glob below root, sorted. Raises DataError if there is none."""
    path = root / pattern
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    files = [file for file in files if file.is_file()]
    if not files:
        folder = f"it is a folder, so add a pattern: {pattern.rstrip('/')}/*.jsonl"
        raise DataError(f"no file matches {path}; {folder if path.is_dir() else 'check it and data.root'}")
    return files


def read_rows(files: list[Path], *, root: Path, source: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the rows of files in order; what is no JSON object goes to `bad_rows`.

    Lines end at LF only, so U+2028 and its like stay inside a text. A byte order mark is passed over, empty
    lines at the end of a file too. Raises DataError for a file that is empty or cannot be read.
    """
    for path in files:
        name = _name(path, root)
        for line, raw in enumerate(_read_lines(path), start=1):
            bad_rows.read[source] += 1
            try:
                yield Row(_parse_row(raw), name, line)
            except DataError as error:
                excerpt = raw[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
                _add(bad_rows, excerpt, source=source, file=name, line=line, reason=str(error))


def note_bad(bad_rows: BadRows, row: Row, *, source: str, reason: str, language: str = "") -> None:
    """Adds a row that was read but cannot be used. Raises DataError if the policy is `error`."""
    excerpt = json.dumps(row.fields, ensure_ascii=False, default=repr).encode("utf-8", errors="replace").decode()
    _add(bad_rows, excerpt, source=source, file=row.file, line=row.line, reason=reason, language=language)


def _add(bad_rows: BadRows, excerpt: str, **facts: Any) -> None:
    bad_rows.add(BadRow(excerpt=excerpt[:EXCERPT_CHARACTERS], **facts))


def _read_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    content = content.removeprefix(codecs.BOM_UTF8).rstrip(b" \t\r\n")
    if not content:
        raise DataError(f"{path} is empty; give it rows or take it out of data.sources")
    return content.split(b"\n")


def _parse_row(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        raise DataError("the line is blank; every line must be one JSON object")
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start + 1} of the line ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"JSON that cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"the row is a JSON {type(row).__name__}, not an object with fields")
    return row


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
