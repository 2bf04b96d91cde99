"""What became of the rows of each source: bad ones with their reasons, and those left out on purpose."""

import collections
import json
from pathlib import Path
from typing import Literal

import msgspec

from data.formats.rows import EXCERPT_CHARACTERS, BadLine, Row
from data.schema import DataError


class BadRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row that could not be used."""

    source: str
    file: str
    line: int
    reason: str
    language: str = ""
    """Standardised tag, where the row got far enough to have one."""
    excerpt: str = ""
    """The row's beginning."""


class BadRows:
    """What loading left out. With policy `error` the first bad row raises; with `skip` it is kept here."""

    def __init__(self, policy: Literal["error", "skip"] = "error") -> None:
        self.policy = policy
        self.rows: list[BadRow] = []
        self.read: collections.Counter[str] = collections.Counter()
        """Rows read, good and bad, by source."""
        self.left_out: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        """Rows left out on purpose, by source and reason (`where`, `limit`, ...)."""

    def add(self, row: BadRow) -> None:
        """Keeps a bad row, or raises DataError naming its file and line if the policy is `error`."""
        if self.policy == "error":
            raise DataError(f"{row.file}:{row.line}: {row.reason}; fix it, or set data.bad_rows to skip")
        self.rows.append(row)

    def by_language(self) -> dict[str, int]:
        """Bad rows of each language, most first; `""` counts those too broken to have one."""
        return dict(collections.Counter(row.language for row in self.rows).most_common())

    def by_source(self) -> dict[str, int]:
        """Bad rows of each source, most first."""
        return dict(collections.Counter(row.source for row in self.rows).most_common())

    def check_dropped(self, max_dropped: float) -> None:
        """Raises DataError if more than a share of any source's rows were bad."""
        for source, bad in self.by_source().items():
            first = next(row for row in self.rows if row.source == source)
            if bad > max_dropped * self.read[source]:
                raise DataError(
                    f"source {source!r}: {bad} of {self.read[source]} rows are bad, more than "
                    f"data.max_dropped {max_dropped:g}; the first: {first.file}:{first.line}: {first.reason}"
                )


def note_bad(bad_rows: BadRows, row: Row, *, source: str, reason: str, language: str = "") -> None:
    """Adds a row that was read but cannot be used. Raises DataError if the policy is `error`."""
    text = json.dumps(row.fields, ensure_ascii=False, default=repr)[:EXCERPT_CHARACTERS]
    excerpt = text.encode("utf-8", errors="replace").decode()
    bad_rows.add(BadRow(source=source, file=row.file, line=row.line, reason=reason, language=language, excerpt=excerpt))


def note_bad_line(bad_rows: BadRows, line: BadLine, *, source: str) -> None:
    """Adds a row that could not be read. Raises DataError if the policy is `error`."""
    bad_rows.add(BadRow(source=source, file=line.file, line=line.line, reason=line.reason, excerpt=line.excerpt))


def write_bad_rows(bad_rows: BadRows, path: Path) -> None:
    """Writes one JSON object per bad row, in the order met; an empty file when there was none."""
    encode = msgspec.json.Encoder().encode
    path.write_bytes(b"".join(encode(row) + b"\n" for row in bad_rows.rows))
