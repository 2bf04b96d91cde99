"""CSV and TSV: quoted fields as RFC 4180 has them, line feeds in them included, below a header row."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from data.files import DataFile
from data.formats.rows import Fault, Parser, Record, make_excerpt
from data.formats.text import ROW_BYTES_LIMIT, explain_size, read_blocks, split_lines
from data.schema import DataError

BLANK = "the line is blank; every line must be one row"


class _Grammar(NamedTuple):
    """How fields are found, given what stands between them."""

    fields: re.Pattern[bytes]
    """Whole fields and what stands between them, up to the end or to a quoted field that does not end here."""
    rest: re.Pattern[bytes]
    """The rest of a quoted field, as `fields` begins after it."""
    field: re.Pattern[str]
    """One field: quoted (1) with what wrongly follows the quote (2), or not quoted (3); then what ends it (4)."""


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What every row of a table is read by."""

    separator: str
    names: tuple[str, ...]


_QUOTED = '"[^"]*+(?:""[^"]*+)*+"'


def _make_grammar(separator: str) -> _Grammar:
    junk = f"[^{separator}]*+"
    field = f'(?:{_QUOTED}{junk}|[^"{separator}]{junk})?+'
    return _Grammar(
        fields=re.compile(f"{field}(?:{separator}{field})*+".encode()),
        rest=re.compile(f'[^"]*+(?:""[^"]*+)*+"{junk}(?:{separator}{field})*+'.encode()),
        field=re.compile(rf'(?:"([^"]*+(?:""[^"]*+)*+)"({junk})|({junk}))({separator}|\Z)'),
    )


_GRAMMARS = {separator: _make_grammar(separator) for separator in (",", "\t")}


def read_table(file: DataFile, separator: str) -> tuple[bytes, Iterator[Record]]:
    """Returns the header, as `make_table_parser` takes it, and a record a row, lazily; a row may be several lines.

    Raises DataError, also later on, if the header is blank, names a column twice or not at all or is not UTF-8, or if a
    quoted field never ends.
    """
    records = _split_rows(read_blocks(file), file.name, _GRAMMARS[separator])
    header = next(records, None)
    if header is None:
        return b"", iter(())
    names = _read_header(header, f"{file.name}:{header.line}", separator)
    return msgspec.msgpack.encode(_Head(separator, names)), records


def make_table_parser(head: bytes) -> Parser:
    """Returns what reads a record's content, one row of a table whose header is given: every value is text."""
    header = msgspec.msgpack.decode(head, type=_Head)
    grammar = _GRAMMARS[header.separator]

    def parse(content: bytes) -> list[dict[str, Any] | Fault]:
        try:
            values = _parse_fields(content, grammar)
            if len(values) != len(header.names):
                raise DataError(f"the row has {len(values)} fields, but the header has {len(header.names)}")
        except DataError as error:
            return [Fault(str(error), make_excerpt(content))]
        return [dict(zip(header.names, values, strict=True))]

    return parse


def _split_rows(blocks: Iterator[bytes], name: str, grammar: _Grammar) -> Iterator[Record]:
    line = blanks = 0
    lines = split_lines(blocks)
    for content, size in lines:
        line += 1
        if not content.strip(b" \r"):
            blanks += 1
            continue
        yield from (Record(at, b"", BLANK) for at in range(line - blanks, line))
        blanks, start = 0, line
        if size > ROW_BYTES_LIMIT:
            yield Record(start, content, explain_size(size))
            continue
        if b'"' in content and _ends_inside(grammar.fields, content):
            content, more = _join_lines(content, lines, f"{name}:{start}", grammar)
            line += more
        yield Record(start, content)


def _ends_inside(pattern: re.Pattern[bytes], content: bytes) -> bool:
    """Whether a row's line, or the part of it that `pattern` begins at, ends inside a quoted field."""
    match = pattern.match(content)
    return match is None or match.end() < len(content)


def _join_lines(first: bytes, lines: Iterator[tuple[bytes, int]], place: str, grammar: _Grammar) -> tuple[bytes, int]:
    """Returns a row that begins with a line, up to the line where its last quoted field ends; and how many follow."""
    pieces, total = [first], len(first)
    for content, size in lines:
        pieces.append(content)
        total += size + 1
        if total > ROW_BYTES_LIMIT:
            raise DataError(f"{place}: {explain_size(total)}; a quoted field of it may have no end")
        if not _ends_inside(grammar.rest, content):
            return b"\n".join(pieces), len(pieces) - 1
    raise DataError(
        f"{place}: a quoted field of the row that begins here never ends; double quotes inside, or copy the file again"
    )


def _read_header(header: Record, place: str, separator: str) -> tuple[str, ...]:
    try:
        if header.fault:
            raise DataError(header.fault)
        names = _parse_fields(header.content, _GRAMMARS[separator])
    except DataError as error:
        raise DataError(f"{place}: the header cannot be read: {error}") from None
    if not all(name.strip() for name in names):
        raise DataError(f"{place}: column {[bool(n.strip()) for n in names].index(False) + 1} has no name; give it one")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{place}: {count} columns are named {name!r}; give each its own name")
    return tuple(names)


def _parse_fields(content: bytes, grammar: _Grammar) -> list[str]:
    try:
        text = content.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start + 1} of the row ({error.reason})") from None
    if "\0" in text:
        raise DataError("the row holds a NUL byte")
    values: list[str] = []
    for match in grammar.field.finditer(text):
        quoted, junk, plain, end = match.groups()
        if junk:
            raise DataError(f"field {len(values) + 1} goes on after its closing quote; double the quotes inside it")
        values.append(plain if quoted is None else quoted.replace('""', '"'))
        if not end:
            break
    return values
