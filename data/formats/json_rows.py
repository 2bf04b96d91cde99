"""JSON: one object a line, or one array of objects in a file; and one object as a row."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data.files import DataFile
from data.formats.rows import Fault, Parser, Record, make_excerpt
from data.formats.text import KEPT_BYTES, ROW_BYTES_LIMIT, explain_size, read_blocks, split_lines
from data.schema import DataError

NESTING_LIMIT = 100
"""Deepest nesting that is read. What Python can take depends on the version, and on how deep the program already is."""
DEPTH_LIMIT = 100_000
"""Nesting in a file's array at which its end is not looked for any more: what follows would be as senseless."""

BLANK = "the line is blank; every line must be one JSON object"


def read_json_lines(file: DataFile) -> Iterator[Record]:
    """Yields a record a line. Blank lines at the end of the file are passed over; others are bad."""
    return split_rows(read_blocks(file), blank=BLANK)


def split_rows(blocks: Iterator[bytes], *, blank: str) -> Iterator[Record]:
    """Yields a record a line, bad where the line is over the limit, or blank though others follow."""
    line = blanks = 0
    for content, size in split_lines(blocks):
        line += 1
        if not content or content.isspace():
            blanks += 1
            continue
        yield from (Record(at, b"", blank) for at in range(line - blanks, line))
        blanks = 0
        yield Record(line, content, explain_size(size) if size > ROW_BYTES_LIMIT else "")


def read_json_array(file: DataFile) -> Iterator[Record]:
    """Yields a record an element of the file's array, or of the array `data` of its object.

    Elements are found by their brackets and strings alone, so one that is no JSON costs none of the others. Raises
    DataError if the array stops, if something is between its elements or after it, or if there is none.
    """
    cursor = _Cursor(read_blocks(file), file.name)
    first = cursor.peek()
    if first == b"[":
        yield from _read_elements(cursor)
    elif first == b"{":
        yield from _read_data(cursor)
    elif first:
        raise cursor.error(f"begins with {first!r}, not with an array of objects; set `format` if it is something else")
    if cursor.peek():
        raise cursor.error(
            "something follows the end of the JSON; if the file holds one object a line, set format: jsonl"
        )


def make_json_parser(head: bytes) -> Parser:
    """Returns what reads a record's content, UTF-8 JSON, as a row."""
    del head
    return parse_json


def parse_json(content: bytes) -> list[dict[str, Any] | Fault]:
    """Returns the row that a JSON object is, or why it is none."""
    try:
        return [_parse_object(content)]
    except DataError as error:
        return [Fault(str(error), make_excerpt(content))]


def _parse_object(content: bytes) -> dict[str, Any]:
    try:
        row = _DECODER.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start + 1} of the row ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"JSON that cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"the row is a JSON {type(row).__name__}, not an object with fields")
    if content.count(b"[") + content.count(b"{") > NESTING_LIMIT and _is_deep(row):
        raise DataError(f"JSON that cannot be read: it is nested more than {NESTING_LIMIT} deep")
    return row


def _is_deep(row: dict[str, Any]) -> bool:
    """Whether a row is nested beyond the limit."""
    level: list[Any] = [row]
    for _ in range(NESTING_LIMIT):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
    return bool(level)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises DataError where `json` would silently keep the last of two values."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise DataError(f"the key {twice!r} occurs twice in one object")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object)

# Everything up to a bracket, or to a string that does not end here.
_RUN = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+', re.DOTALL)
# The rest of a string, up to its quote or a backslash that ends the block.
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb"[^,:\[\]{}\s]*+")
_BLANKS = re.compile(rb"[ \t\r\n]*+")


class _Cursor:
    """A place in a JSON text that is read block by block."""

    def __init__(self, blocks: Iterator[bytes], name: str) -> None:
        self._blocks = blocks
        self._name = name
        self._block = b""
        self._at = 0
        self._counted = 0
        self._line = 1
        self._pieces: list[bytes] = []
        self._size = 0

    def line(self) -> int:
        """Line of the place, from 1."""
        self._line += self._block.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def error(self, reason: str) -> DataError:
        """Names the file and the line of the place."""
        return DataError(f"{self._name}:{self.line()}: {reason}")

    def peek(self) -> bytes:
        """The next byte that is not blank, `b""` at the end."""
        while True:
            self._at = _end(_BLANKS, self._block, self._at)
            if self._at < len(self._block):
                return self._block[self._at : self._at + 1]
            if not self._fill():
                return b""

    def skip(self) -> None:
        """Passes over the byte that `peek` showed."""
        self._at += 1

    def take(self) -> tuple[bytes, int, bool]:
        """The value that begins where `peek` stopped (of a long one the beginning), its size, and whether it ends."""
        self._pieces, self._size = [], 0
        first = self._block[self._at : self._at + 1]
        if first == b'"':
            self._keep(self._at + 1)
            ended = self._pass_string()
        else:
            ended = self._pass_nested() if first in (b"[", b"{") else self._pass_scalar()
        return b"".join(self._pieces), self._size, ended

    def _pass_scalar(self) -> bool:
        while True:
            self._keep(_end(_SCALAR, self._block, self._at))
            if self._at < len(self._block):
                return True
            if not self._fill():
                return False

    def _pass_nested(self) -> bool:
        """Passes over an array or object."""
        depth, end = 0, self._at
        while True:
            end = _end(_RUN, self._block, end)
            character = self._block[end : end + 1]
            end += len(character)
            if character and character != b'"':
                depth += 1 if character in b"[{" else -1
                if depth == 0:
                    self._keep(end)
                    return True
                if depth > DEPTH_LIMIT:
                    raise self.error(f"a row is nested more than {DEPTH_LIMIT:,} deep; the file is no data, or damaged")
                continue
            # Kept by stretches: bracket by bracket, a row of nothing else would fill the memory.
            self._keep(end)
            if not (self._pass_string() if character else self._fill()):
                return False
            end = self._at

    def _pass_string(self) -> bool:
        """Passes over the rest of a string whose end is in a later block."""
        while True:
            self._keep(_end(_STRING, self._block, self._at))
            if self._block[self._at : self._at + 1] == b'"':
                self._keep(self._at + 1)
                return True
            if not self._fill():
                return False

    def _keep(self, end: int) -> None:
        """Moves on to `end`, keeping what lies before it."""
        self._size += end - self._at
        self._pieces.append(self._block[self._at : end])
        if self._size > ROW_BYTES_LIMIT:
            self._pieces = [b"".join(self._pieces)[:KEPT_BYTES]]
        self._at = end

    def _fill(self) -> bool:
        """Reads on, keeping what of this block is not passed yet: a backslash at most."""
        self.line()
        block = next(self._blocks, None)
        if block is None:
            return False
        self._block = self._block[self._at :] + block
        self._at = self._counted = 0
        return True


def _end(pattern: re.Pattern[bytes], block: bytes, start: int) -> int:
    match = pattern.match(block, start)
    assert match is not None, "every pattern here matches nothing too"
    return match.end()


def _read_elements(cursor: _Cursor) -> Iterator[Record]:
    cursor.skip()
    if cursor.peek() == b"]":
        cursor.skip()
        return
    while True:
        if cursor.peek() in b",]":
            raise cursor.error("a row of the JSON array is missing before `,` or `]`, or the file is cut")
        line = cursor.line()
        content, size, ended = cursor.take()
        if not ended:
            raise cursor.error(f"the file ends inside the row that begins in line {line}; it is cut, copy it again")
        yield Record(line, content, explain_size(size) if size > ROW_BYTES_LIMIT else "")
        separator = cursor.peek()
        if separator not in (b",", b"]"):
            found = f"{separator!r} stands" if separator else "the file ends"
            raise cursor.error(f"{found} where `,` or `]` should follow the row that begins in line {line}")
        cursor.skip()
        if separator == b"]":
            return


def _read_data(cursor: _Cursor) -> Iterator[Record]:
    """Yields the elements of an object's array `data`. Members beside it must be single values, about the file."""
    cursor.skip()
    found, others = False, list[str]()
    while cursor.peek() != b"}":
        key, _, ended = cursor.take()
        if not ended or not key.startswith(b'"') or cursor.peek() != b":":
            raise cursor.error("not JSON: a name and `:` should stand here")
        cursor.skip()
        value = cursor.peek()
        if key == b'"data"' and value == b"[" and not found:
            found = True
            yield from _read_elements(cursor)
        else:
            others += [key.decode("utf-8", errors="replace")] if value in b"[{" else []
            if not cursor.take()[2]:
                raise cursor.error("the file ends inside an object; it is cut, copy it again")
        if cursor.peek() not in (b",", b"}"):
            raise cursor.error("not JSON: `,` or `}` should stand here")
        if cursor.peek() == b",":
            cursor.skip()
    cursor.skip()
    if cursor.peek() == b"{":
        raise cursor.error("the file holds one object after the other; set format: jsonl")
    if not found:
        raise cursor.error("the file is one object without an array `data`; put its rows into an array")
    if others:
        raise cursor.error(
            f"beside `data` the object has {', '.join(others)}; keep one array of rows, and take out the rest"
        )
