"""The preview as one HTML page: every token with its id, role and weight; nothing is loaded from anywhere."""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from markupsafe import escape as escape_html

import eval.report
from data.batch import Role
from data.prepare import Prepared
from data.printable import make_printable
from eval import bars
from eval.report_names import Language, describe_languages, format_percent, text_direction
from launch.plan_table import share_by
from launch.preview_rows import Piece, PreviewRow, Segment, Span

LONGEST_PIECE = 2000
"""Characters of one token that are shown."""
JOINERS = "\u200c\u200d"


class Turn(NamedTuple):
    """What one speaker says, with the scaffolding before it."""

    role: str
    direction: str
    """`rtl`, `ltr` or `auto`, by the letters of its contents."""
    body: Markup


class Example(NamedTuple):
    """One packed example as the page shows it."""

    number: int
    language: Language
    source: str
    tokens: int
    trained: int
    turns: tuple[Turn, ...]


class PageRow(NamedTuple):
    """One row as the page shows it."""

    row: PreviewRow
    strip: Markup
    examples: tuple[Example, ...]


class Total(NamedTuple):
    """Tokens of one language, once through the data."""

    language: Language
    examples: int
    trained: int
    tokens: int
    share: float
    share_text: str
    bar: Markup


def write_preview(prepared: Prepared, rows: Sequence[PreviewRow], path: Path, *, name: str) -> None:
    """Writes the page; `name` is what its title calls the recipe."""
    page = render_preview(prepared.plan.summary, rows, name=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def render_preview(summary: dict[str, Any], rows: Sequence[PreviewRow], *, name: str) -> str:
    """The page as text. `summary` is the plan's; its cells give the totals by language."""
    tags = {cell["language"] for cell in summary["cells"]} | {s.language for row in rows for s in row.segments}
    names = describe_languages(tags)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(eval.report.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("preview_page.html").render(
        name=make_printable(name, limit=200),
        summary=summary,
        rows=[_page_row(row, names) for row in rows],
        totals=_totals(summary["cells"], names),
        roles=[role.name.lower() for role in Role if role != Role.PAD],
        mark_shape=bars.mark_shape,
        direction=text_direction,
        percent=format_percent,
    )
    return page


def join_clusters(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces, those that begin with a mark or joiner put together with the one before: no letter is torn apart."""
    joined: list[Piece] = []
    for piece in pieces:
        clings = piece.text[:1] and (unicodedata.category(piece.text[0])[0] == "M" or piece.text[0] in JOINERS)
        if clings and joined and not joined[-1].is_control and not piece.is_control:
            before = joined.pop()
            piece = Piece(before.text + piece.text, before.ids + piece.ids, False)
        joined.append(piece)
    return joined


def _page_row(row: PreviewRow, names: dict[str, Language]) -> PageRow:
    examples = tuple(_example(number, segment, names) for number, segment in enumerate(row.segments, 1))
    return PageRow(row, _strip(row, names), examples)


def _example(number: int, segment: Segment, names: dict[str, Language]) -> Example:
    return Example(
        number=number,
        language=names[segment.language],
        source=make_printable(segment.source, limit=200),
        tokens=segment.length + 1,
        trained=sum(span.tokens for span in segment.spans if span.weight > 0),
        turns=tuple(_turns(segment)),
    )


def _turns(segment: Segment) -> list[Turn]:
    """Runs of spans of one speaker, with the scaffolding around them."""
    runs: list[list[Span]] = []
    opening: list[Span] = []
    for role, group in groupby(segment.spans, key=lambda span: span.role):
        spans = list(group)
        if role != Role.HEADER:
            runs.append([*opening, *spans])
            opening = []
        elif runs:
            closing, opening = split_header(spans, is_closed=runs[-1][-1].pieces[-1].is_control)
            runs[-1] += closing
        else:
            opening = spans
    if opening:
        runs.append(opening)
    turns, place = [], 1
    for run in runs:
        turns.append(_turn(run, place))
        place += sum(span.tokens for span in run)
    return turns


def split_header(spans: Sequence[Span], *, is_closed: bool) -> tuple[list[Span], list[Span]]:
    """Scaffolding between two turns, cut into what closes the first and what opens the second.

    White space closes, and so does the first control token where the turn has none of its own yet and more follows:
    `<|im_end|>`, line feed | `<|im_start|>`, `assistant`, line feed.
    """
    labelled = [(span, piece) for span in spans for piece in span.pieces]
    cut = _skip_space(labelled, 0)
    if not is_closed and cut < len(labelled) and labelled[cut][1].is_control:
        after = _skip_space(labelled, cut + 1)
        cut = after if after < len(labelled) else cut
    return _regroup(labelled[:cut]), _regroup(labelled[cut:])


def _skip_space(labelled: Sequence[tuple[Span, Piece]], start: int) -> int:
    while start < len(labelled) and not labelled[start][1].is_control and labelled[start][1].text.isspace():
        start += 1
    return start


def _regroup(labelled: Iterable[tuple[Span, Piece]]) -> list[Span]:
    groups = groupby(labelled, key=lambda item: item[0])
    return [span._replace(pieces=tuple(piece for _, piece in group)) for span, group in groups]


def _turn(spans: Sequence[Span], place: int) -> Turn:
    contents = [span for span in spans if span.role != Role.HEADER]
    said = "".join(piece.text for span in contents for piece in span.pieces if not piece.is_control)
    body = Markup("")
    for span in spans:
        body += _span(span, place)
        place += span.tokens
    role = contents[0].role if contents else Role.HEADER
    return Turn(role.name.lower(), text_direction(said[:LONGEST_PIECE]), body)


def _span(span: Span, place: int) -> Markup:
    kind = "trained" if span.weight == 1 else "weighted" if span.weight > 0 else "untrained"
    tokens = Markup("").join(_token(piece) for piece in join_clusters(span.pieces))
    # A header is written by the template, left to right whatever it stands before.
    tag = "bdi" if span.role == Role.HEADER else "span"
    return Markup('<{} class="{} {}" data-role="{}" data-weight="{:g}" data-at="{}">{}</{}>').format(
        tag, span.role.name.lower(), kind, span.role.name.lower(), span.weight, place, tokens, tag
    )


def _token(piece: Piece) -> Markup:
    ids = " ".join(map(str, piece.ids))
    if piece.is_control:
        return Markup('<b dir="ltr" data-id="{}">{}</b>').format(ids, make_printable(piece.text, limit=LONGEST_PIECE))
    text = escape_html(make_printable(piece.text, limit=LONGEST_PIECE)).replace("\n", Markup("<s></s>\n"))
    return Markup('<i data-id="{}">{}</i>').format(ids, text)


def _strip(row: PreviewRow, names: dict[str, Language]) -> Markup:
    """The layout of a row, to scale: one group of bars per example."""
    groups = []
    for number, segment in enumerate(row.segments, 1):
        language, at = names[segment.language], segment.start - 1
        ground = Markup('<rect class="ground" x="{}" width="{}" height="10"/>')
        rects = [ground.format(segment.start, segment.length)]
        for span in segment.spans:
            kind = "trained" if span.weight == 1 else "weighted" if span.weight > 0 else span.role.name.lower()
            begin, end = max(at, segment.start), at + span.tokens
            if end > begin:
                rects.append(
                    Markup('<rect class="{}" x="{}" width="{}" height="10"/>').format(kind, begin, end - begin)
                )
            at = end
        title = f"{number}. {language.english} ({language.tag}), {make_printable(segment.source, limit=80)}: "
        title += f"{segment.length} positions from {segment.start}"
        groups.append(
            Markup('<a href="#row-{}-{}"><title>{}</title>{}<path d="M{} 0v10"/></a>').format(
                row.number, number, title, Markup("").join(rects), segment.start
            )
        )
    return Markup('<svg class="layout" viewBox="0 0 {} 10" preserveAspectRatio="none" role="img">{}</svg>').format(
        row.length, Markup("").join(groups)
    )


def _totals(cells: Sequence[dict[str, Any]], names: dict[str, Language]) -> list[Total]:
    totals = []
    for tag, share in share_by(cells, "language").items():
        part = share.target_tokens / share.tokens if share.tokens else 0.0
        bar = bars.bar(part, scale=1)
        totals.append(
            Total(names[tag], share.examples, share.target_tokens, share.tokens, part, format_percent(part), bar)
        )
    return sorted(totals, key=lambda total: (-total.trained, total.language.tag))
