"""What `polytune data stats` prints: a line per tokenizer, the languages that cost most, the longest rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.languages import own_name
from data.printable import isolate, make_printable
from data.schema import DataError
from data.statistics import LONGEST, Cell, CorpusStatistics, TokenizerFacts, order_longest
from eval.report_names import format_count

MOST_LANGUAGES = 24
WIDE = 100
"""Columns of a console from which on there is room for more."""
LOST = 0.01
"""Share of unknown tokens from which on a language counts as lost text, however few tokens it takes."""
NO_NUMBER = "–"
TAG, SHORTEST_NAME, LONGEST_NAME = 10, 8, 14
"""Widths of the columns of tags and of names."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Column(NamedTuple):
    """A column of numbers by language."""

    head: str
    width: int
    show: Callable[[Cell], str]


def print_statistics(statistics: CorpusStatistics, console: Console, *, file: str | None) -> None:
    """Prints tables no wider than the console; what they leave out is in `file`, or can be written with --json.

    Raises DataError for statistics of nothing.
    """
    whole, languages = statistics.total(), statistics.by_language()
    numbers = (
        f"{whole.rows:,} rows, {whole.turns:,} turns, {len(languages)} languages, "
        f"{format_count(whole.characters)} characters (code points), {format_count(whole.size_bytes)} bytes (UTF-8)"
    )
    console.print(Text(numbers, "bold"))
    for index, facts in enumerate(statistics.tokenizers):
        name = make_printable(facts.name, limit=400)
        console.print(Text(f"{_letter(index, statistics.tokenizers)}{name}, vocabulary {facts.vocab_size:,}"))
    console.print(_tokenizer_table(statistics, languages))
    _print_note(
        console,
        "tokens of contents alone, none of the chat template's; /word: over languages that put spaces between words; "
        "bytes%: tokens that spell a byte or part of a character; unk%: tokens that stand for text that is lost"
        + ("; fallback: both together" if len(statistics.tokenizers) > 1 else ""),
    )
    worst = sorted(languages, key=lambda cell: _cost(cell, 0), reverse=True)
    console.print(_language_table(statistics.tokenizers, worst[:MOST_LANGUAGES], width=console.width))
    if len(worst) > MOST_LANGUAGES:
        more = f"and {len(worst) - MOST_LANGUAGES} more languages"
        where = f"all in {make_printable(file)}" if file else "--json FILE writes all of them"
        console.print(Text(f"... {more}, {where}", "bold"))
    first = f" of {LETTERS[0]}" if len(statistics.tokenizers) > 1 else ""
    _print_note(
        console,
        f"worst first: languages that lose {LOST:.0%} or more of their tokens{first} to the unknown one, then by "
        "tokens per byte; scripts differ in bytes per character, so compare within a script; "
        f"{NO_NUMBER}: the script puts no spaces between words",
    )
    console.print(_longest_table(statistics, console.width))


def _print_note(console: Console, note: str) -> None:
    console.print(Text(note, "dim"), highlight=False)


def _tokenizer_table(statistics: CorpusStatistics, languages: Sequence[Cell]) -> Table:
    several = len(statistics.tokenizers) > 1
    table = _new_table(*([""] if several else []))
    for head in ("tokens", "/byte", "/char", "/word", "bytes%", "unk%", "answers", "worst language"):
        table.add_column(head, justify="right", no_wrap=True)
    whole = statistics.total()
    for index, facts in enumerate(statistics.tokenizers):
        table.add_row(
            *([LETTERS[index % 26]] if several else []),
            format_count(whole.tokens[index].total),
            _ratio(whole.per_byte(index)),
            _ratio(whole.per_character(index)),
            _ratio(_tokens_per_word(languages, index)),
            _share(whole.byte_share(index)) if facts.byte_kind != "none" else NO_NUMBER,
            _share(whole.unknown_share(index)) if facts.has_unknown else NO_NUMBER,
            _share(whole.answer_share(index)),
            _worst(languages, index),
        )
    return table


def _language_table(tokenizers: Sequence[TokenizerFacts], cells: Sequence[Cell], *, width: int) -> Table:
    gap = 1 if width < WIDE or len(tokenizers) > 1 else 2
    columns = _choose_columns(tokenizers, width - 1 - (TAG + gap) - (SHORTEST_NAME + gap), gap)
    name = width - 1 - (TAG + gap) - gap - sum(column.width + gap for column in columns)
    table = _new_table("tag", "language")
    table.padding = (0, gap - 1, 0, 0)
    table.columns[0].max_width, table.columns[1].max_width = TAG, max(SHORTEST_NAME, min(LONGEST_NAME, name))
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True, min_width=column.width)
    for cell in cells:
        table.add_row(Text(cell.language), Text(_own_name(cell.language)), *(column.show(cell) for column in columns))
    return table


def _choose_columns(tokenizers: Sequence[TokenizerFacts], width: int, gap: int) -> list[Column]:
    """The most columns that fit into a width; every tokenizer keeps its tokens per byte."""
    rows = Column("rows", 6, lambda cell: format_count(cell.rows))
    if len(tokenizers) == 1:
        size = Column("bytes", 6, lambda cell: format_count(cell.size_bytes))
        choices = [[rows, size, *_detailed(tokenizers[0])], [rows, *_detailed(tokenizers[0])]]
    else:
        kinds = (("/byte", "/char", "/word", "fallback"), ("/byte", "/word", "fallback"), ("/byte", "fallback"))
        choices = [
            [rows, *(column for index in range(len(tokenizers)) for column in _compare(index, shown))]
            for shown in (*kinds, ("/byte",))
        ]
    fitting = (chosen for chosen in choices if sum(column.width + gap for column in chosen) <= width)
    return next(fitting, choices[-1])


def _detailed(facts: TokenizerFacts) -> list[Column]:
    columns = [
        Column("tokens", 6, lambda cell: format_count(cell.tokens[0].total)),
        Column("/byte", 5, lambda cell: _ratio(cell.per_byte(0))),
        Column("/char", 5, lambda cell: _ratio(cell.per_character(0))),
        Column("/word", 5, lambda cell: _ratio(cell.per_word(0))),
    ]
    if facts.byte_kind != "none":
        columns.append(Column("bytes%", 6, lambda cell: _share(cell.byte_share(0))))
    if facts.has_unknown:
        columns.append(Column("unk%", 6, lambda cell: _share(cell.unknown_share(0))))
    return [*columns, Column("answer", 6, lambda cell: _share(cell.answer_share(0)))]


def _compare(index: int, kinds: Sequence[str]) -> list[Column]:
    shows: dict[str, Callable[[Cell], str]] = {
        "/byte": lambda cell: _ratio(cell.per_byte(index)),
        "/char": lambda cell: _ratio(cell.per_character(index)),
        "/word": lambda cell: _ratio(cell.per_word(index)),
        "fallback": lambda cell: _share(_fallback(cell, index)),
    }
    return [Column(f"{LETTERS[index % 26]}\n{kind}", max(5, len(kind)), shows[kind]) for kind in kinds]


def _longest_table(statistics: CorpusStatistics, width: int) -> Table:
    several = len(statistics.tokenizers) > 1
    table = _new_table(*(("", "tokens") if several else ("tokens",)))
    table.columns[-1].justify = "right"
    table.add_column("characters", justify="right", no_wrap=True)
    table.add_column("language", no_wrap=True)
    table.add_column("longest rows", overflow="fold", max_width=max(20, width - 36))
    for index in range(len(statistics.tokenizers)):
        for row in order_longest(row for cell in statistics.cells for row in cell.longest[index])[:LONGEST]:
            cells = [f"{row.tokens:,}", f"{row.characters:,}", Text(row.language)]
            name = Text(make_printable(f"{row.row}  ({row.source})", limit=400))
            table.add_row(*([LETTERS[index % 26]] if several else []), *cells, name)
    return table


def _new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True, max_width=14)
    return table


def _letter(index: int, tokenizers: Sequence[TokenizerFacts]) -> str:
    return f"{LETTERS[index % 26]}  " if len(tokenizers) > 1 else ""


def _own_name(tag: str) -> str:
    try:
        return isolate(own_name(tag))
    except DataError:
        return tag


def _tokens_per_word(languages: Sequence[Cell], index: int) -> float | None:
    counted = [cell for cell in languages if cell.words]
    words = sum(cell.words or 0 for cell in counted)
    return sum(cell.tokens[index].total for cell in counted) / words if words else None


def _cost(cell: Cell, index: int) -> tuple[float, float, str]:
    """Unknown tokens are cheap and lose the text, so they count first."""
    lost = cell.unknown_share(index) or 0.0
    return (lost if lost >= LOST else 0.0, cell.per_byte(index) or 0.0, cell.language)


def _worst(languages: Sequence[Cell], index: int) -> str:
    worst = max(languages, key=lambda cell: _cost(cell, index))
    lost = worst.unknown_share(index) or 0.0
    return (
        f"{worst.language} {_share(lost)} unknown"
        if lost >= LOST
        else f"{worst.language} {_ratio(worst.per_byte(index))}"
    )


def _fallback(cell: Cell, index: int) -> float | None:
    counts = cell.tokens[index]
    return (counts.unknown + counts.spelled_in_bytes) / counts.total if counts.total else None


def _ratio(value: float | None) -> str:
    if value is None:
        return NO_NUMBER
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _share(value: float | None) -> str:
    if value is None:
        return NO_NUMBER
    return "<0.1%" if 0 < value < 0.001 else f"{value:.1%}"
