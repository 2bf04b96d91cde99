"""What a corpus holds and what tokenizers make of it, by source and language: exact, mergeable counts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from data.schema import DataError
from data.token_kinds import ByteKind

FORMAT = 1
LONGEST = 5
"""Longest rows kept by source, language and tokenizer."""


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that one tokenizer makes of contents; nothing that a chat template writes is among them."""

    prompt: int = 0
    """Of system, user and tool turns."""
    answer: int = 0
    """Of assistant turns, their thoughts and calls included. How many are trained is up to the source's loss policy."""
    text: int = 0
    """Of plain texts, which are no conversation."""
    unknown: int = 0
    """Of all: unknown tokens, each of which may stand for several characters."""
    spelled_in_bytes: int = 0
    """Of all: tokens that spell a byte, or (byte-level vocabularies) are no whole characters by themselves."""

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt + self.answer + self.text

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        ours, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return TokenCounts(**dict(zip(self.__struct_fields__, map(sum, zip(ours, theirs, strict=True)), strict=True)))


class LongRow(msgspec.Struct, frozen=True, kw_only=True):
    """One of the longest rows."""

    tokens: int
    """Of its contents, by the tokenizer whose list this is."""
    characters: int
    row: str
    """`Conversation.id`: file and line."""
    source: str
    language: str


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One source in one language; or the sum of several, with an empty source or language."""

    source: str
    language: str
    rows: int
    turns: int
    characters: int
    """Unicode code points of contents: a letter with two combining marks counts three."""
    size_bytes: int
    """Of contents in UTF-8."""
    words: int | None
    """As `data.words.count_words`; None where the script has no spaces between words, or none was counted."""
    tokens: tuple[TokenCounts, ...]
    """One per tokenizer."""
    longest: tuple[tuple[LongRow, ...], ...]
    """Per tokenizer its `LONGEST` longest rows, the longest first."""

    def per_byte(self, index: int) -> float | None:
        """Tokens of a tokenizer per UTF-8 byte."""
        return _divide(self.tokens[index].total, self.size_bytes)

    def per_character(self, index: int) -> float | None:
        """Tokens of a tokenizer per code point."""
        return _divide(self.tokens[index].total, self.characters)

    def per_word(self, index: int) -> float | None:
        """Tokens of a tokenizer per word (fertility, arXiv:2012.15613); None where words are not counted."""
        return None if self.words is None else _divide(self.tokens[index].total, self.words)

    def unknown_share(self, index: int) -> float | None:
        """Share of a tokenizer's tokens that are unknown."""
        return _divide(self.tokens[index].unknown, self.tokens[index].total)

    def byte_share(self, index: int) -> float | None:
        """Share of a tokenizer's tokens that spell bytes or parts of characters."""
        return _divide(self.tokens[index].spelled_in_bytes, self.tokens[index].total)

    def answer_share(self, index: int) -> float | None:
        """Share of a tokenizer's tokens that are of answers."""
        return _divide(self.tokens[index].answer, self.tokens[index].total)


class TokenizerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A tokenizer that counted."""

    name: str
    """Its path, or what the recipe does to make it."""
    hash: str
    vocab_size: int
    has_unknown: bool
    """Whether text can become an unknown token at all."""
    byte_kind: ByteKind


class CorpusStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a corpus. Those of its parts, merged in any order and grouping, are those of the whole."""

    format: int = FORMAT
    tokenizers: tuple[TokenizerFacts, ...]
    cells: tuple[Cell, ...] = ()
    """By source and language, in the order of their names."""

    def merge(self, other: "CorpusStatistics") -> "CorpusStatistics":
        """Returns the statistics of both parts together.

        Raises DataError if they are not by the same tokenizers, in the same order.
        """
        if self.tokenizers != other.tokenizers:
            ours, theirs = (", ".join(f"{t.name} {t.hash[:12]}" for t in part.tokenizers) for part in (self, other))
            raise DataError(f"statistics by {ours} and by {theirs} cannot be merged; count with the same tokenizers")
        cells = {(cell.source, cell.language): cell for cell in self.cells}
        for cell in other.cells:
            key = (cell.source, cell.language)
            cells[key] = _add(cells[key], cell) if key in cells else cell
        return msgspec.structs.replace(self, cells=tuple(cells[key] for key in sorted(cells)))

    def by_language(self) -> tuple[Cell, ...]:
        """Cells summed over sources, in the order of tags."""
        return _sum_by(self.cells, "language", clear={"source": ""})

    def by_source(self) -> tuple[Cell, ...]:
        """Cells summed over languages, in the order of names; words only of a source whose languages all have them."""
        return _sum_by(self.cells, "source", clear={"language": ""})

    def total(self) -> Cell:
        """Everything in one cell. Raises DataError if there is none."""
        if not self.cells:
            raise DataError("no row was counted; check data.sources")
        return add_cells(self.cells)


def add_cells(cells: Iterable[Cell], *, source: str = "", language: str = "") -> Cell:
    """The sum of at least one cell, called by the names given."""
    first, *rest = (msgspec.structs.replace(cell, source=source, language=language) for cell in cells)
    for cell in rest:
        first = _add(first, cell)
    return first


def order_longest(rows: Iterable[LongRow]) -> tuple[LongRow, ...]:
    """The `LONGEST` longest of some rows, ties in the order of their places."""
    ordered = sorted(rows, key=lambda row: (-row.tokens, row.source, row.language, row.row, row.characters))
    return tuple(ordered[:LONGEST])


def write_statistics(statistics: CorpusStatistics, path: Path) -> None:
    """Writes JSON that `read_statistics` reads: the counts, and by language the ratios that follow from them."""
    table: dict[str, Any] = msgspec.to_builtins(statistics)
    names = [tokenizer.name for tokenizer in statistics.tokenizers]
    table["about"] = ABOUT
    table["languages"] = [_describe(cell, names) for cell in statistics.by_language()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")


def read_statistics(path: Path) -> CorpusStatistics:
    """Returns what `write_statistics` wrote. Raises DataError if the file is missing, damaged or of another format."""
    try:
        statistics = msgspec.json.decode(path.read_bytes(), type=CorpusStatistics)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no statistics ({error}); write it again: polytune data stats RECIPE") from None
    if statistics.format != FORMAT:
        raise DataError(f"{path} has format {statistics.format}; this version reads {FORMAT}: write it again")
    count = len(statistics.tokenizers)
    if any(len(cell.tokens) != count or len(cell.longest) != count for cell in statistics.cells):
        raise DataError(f"{path} is damaged: a cell's counts are not by {count} tokenizers; write it again")
    return statistics


ABOUT = {
    "tokens": "of contents, thoughts and calls; of nothing else that a chat template writes (role names ...)",
    "characters": "Unicode code points, not grapheme clusters",
    "words": "runs of letters, digits and their marks; null for scripts without spaces between words",
    "spelled_in_bytes": "tokens <0xNN>, or in byte-level vocabularies tokens that are no whole characters",
    "unknown": "unknown tokens; each may stand for several characters",
}
"""What the numbers of the file mean, said in it."""


def _describe(cell: Cell, names: Sequence[str]) -> Mapping[str, Any]:
    ratios = [
        {
            "tokenizer": name,
            "tokens": cell.tokens[index].total,
            "per_byte": cell.per_byte(index),
            "per_character": cell.per_character(index),
            "per_word": cell.per_word(index),
            "unknown_share": cell.unknown_share(index),
            "byte_share": cell.byte_share(index),
            "answer_share": cell.answer_share(index),
        }
        for index, name in enumerate(names)
    ]
    plain = ("language", "rows", "turns", "characters", "size_bytes", "words")
    return {name: getattr(cell, name) for name in plain} | {"tokenizers": ratios}


def _sum_by(cells: Iterable[Cell], field: str, *, clear: Mapping[str, str]) -> tuple[Cell, ...]:
    sums: dict[str, Cell] = {}
    for cell in cells:
        key, part = getattr(cell, field), msgspec.structs.replace(cell, **clear)
        sums[key] = _add(sums[key], part) if key in sums else part
    return tuple(sums[key] for key in sorted(sums))


def _add(a: Cell, b: Cell) -> Cell:
    return Cell(
        source=a.source,
        language=a.language,
        rows=a.rows + b.rows,
        turns=a.turns + b.turns,
        characters=a.characters + b.characters,
        size_bytes=a.size_bytes + b.size_bytes,
        words=None if a.words is None or b.words is None else a.words + b.words,
        tokens=tuple(x + y for x, y in zip(a.tokens, b.tokens, strict=True)),
        longest=tuple(order_longest((*x, *y)) for x, y in zip(a.longest, b.longest, strict=True)),
    )


def _divide(amount: int, by: int) -> float | None:
    return amount / by if by else None
