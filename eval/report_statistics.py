"""What the data holds and what tokenizers make of it, from the counts that `prepare` stored with the run."""

from collections.abc import Mapping

import msgspec
from markupsafe import Markup

from data.statistics import Cell, CorpusStatistics, order_longest
from eval import bars
from eval.bars import Number
from eval.report_names import Language, describe_language, format_count, format_percent, visible

LOST = 0.01
"""Share of unknown tokens from which on a language's text counts as lost."""
NO_NUMBER = "–"
SHOWN = 200
"""Characters shown of a name."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A number of the table: what it is sorted by, and how it is written."""

    value: Number | None
    text: str


class TokenizerColumns(msgspec.Struct, frozen=True, kw_only=True):
    """One tokenizer: what the columns that it gets are called."""

    name: str
    hash: str
    vocab_size: int
    heads: tuple[str, ...]


class StatisticsRow(msgspec.Struct, frozen=True, kw_only=True):
    """One language."""

    language: Language
    size: tuple[Figure, ...]
    """Rows, characters, bytes, words."""
    tokens: tuple[tuple[Figure, ...], ...]
    """By tokenizer, as its heads say."""
    bar: Markup
    """Tokens per byte of the first tokenizer."""
    is_lost: bool
    """Whether the first tokenizer turns a good part of the text into unknown tokens."""


class LongestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One of the longest rows by a tokenizer."""

    tokenizer: str
    tokens: str
    characters: str
    language: Language
    place: str


class StatisticsSection(msgspec.Struct, frozen=True, kw_only=True):
    """The section of the report."""

    tokenizers: tuple[TokenizerColumns, ...]
    rows: tuple[StatisticsRow, ...]
    """Those that cost most first."""
    longest: tuple[LongestRow, ...]
    total: str


def statistics_section(statistics: CorpusStatistics | None, names: Mapping[str, Language]) -> StatisticsSection | None:
    """The section, or None where nothing was counted."""
    if statistics is None or not statistics.cells or not statistics.tokenizers:
        return None
    whole, languages = statistics.total(), statistics.by_language()
    scale = max([cell.per_byte(0) or 0.0 for cell in languages])
    order = sorted(languages, key=_cost, reverse=True)
    return StatisticsSection(
        tokenizers=tuple(
            TokenizerColumns(
                name=visible(facts.name, limit=SHOWN),
                hash=facts.hash[:12],
                vocab_size=facts.vocab_size,
                heads=("Tokens", "/byte", "/character", "/word", "Bytes", "Unknown", "Answers"),
            )
            for facts in statistics.tokenizers
        ),
        rows=tuple(_row(cell, statistics, names, scale=scale) for cell in order),
        longest=_longest(statistics, names),
        total=f"{whole.rows:,} rows, {whole.turns:,} turns, {format_count(whole.characters)} characters, "
        f"{format_count(whole.size_bytes)} bytes",
    )


def _cost(cell: Cell) -> tuple[float, float, str]:
    """Unknown tokens are cheap and lose the text, so they count first."""
    lost = cell.unknown_share(0) or 0.0
    return (lost if lost >= LOST else 0.0, cell.per_byte(0) or 0.0, cell.language)


def _row(cell: Cell, statistics: CorpusStatistics, names: Mapping[str, Language], *, scale: Number) -> StatisticsRow:
    is_lost = (cell.unknown_share(0) or 0.0) >= LOST
    size = (cell.rows, cell.characters, cell.size_bytes, cell.words)
    return StatisticsRow(
        language=names.get(cell.language) or describe_language(cell.language),
        size=tuple(Figure(value=amount, text=format_count(amount)) for amount in size),
        tokens=tuple(_figures(cell, index, statistics) for index in range(len(statistics.tokenizers))),
        bar=bars.bar(cell.per_byte(0) or 0.0, scale=scale, style="worst" if is_lost else "plain"),
        is_lost=is_lost,
    )


def _figures(cell: Cell, index: int, statistics: CorpusStatistics) -> tuple[Figure, ...]:
    facts, total = statistics.tokenizers[index], cell.tokens[index].total
    ratios = (cell.per_byte(index), cell.per_character(index), cell.per_word(index))
    spelled = cell.byte_share(index) if facts.byte_kind != "none" else None
    unknown = cell.unknown_share(index) if facts.has_unknown else None
    return (
        Figure(value=total, text=format_count(total)),
        *(Figure(value=ratio, text=NO_NUMBER if ratio is None else f"{ratio:.3g}") for ratio in ratios),
        *(
            Figure(value=share, text=NO_NUMBER if share is None else format_percent(share))
            for share in (spelled, unknown, cell.answer_share(index))
        ),
    )


def _longest(statistics: CorpusStatistics, names: Mapping[str, Language]) -> tuple[LongestRow, ...]:
    return tuple(
        LongestRow(
            tokenizer=visible(facts.name, limit=SHOWN),
            tokens=f"{row.tokens:,}",
            characters=f"{row.characters:,}",
            language=names.get(row.language) or describe_language(row.language),
            place=visible(f"{row.row} ({row.source})", limit=SHOWN),
        )
        for index, facts in enumerate(statistics.tokenizers)
        for row in order_longest(row for cell in statistics.cells for row in cell.longest[index])
    )
