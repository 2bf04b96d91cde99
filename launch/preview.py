"""`polytune preview`: what a recipe feeds the model, decoded, with roles and trained spans in colour."""

import tempfile
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.batch import Role
from data.languages import own_name, standardize
from data.pipeline import make_batch
from data.prepare import Prepared
from data.printable import isolate, make_printable
from launch.config import Recipe
from launch.origin import open_origin
from launch.plan_table import Share, share_by
from launch.preparing import prepare_recipe
from launch.preview_page import write_preview
from launch.preview_rows import PreviewRow, Segment, Span, take_apart
from launch.runtime import use_mesh
from model.parallel import MeshConfig

STYLES = {
    Role.PAD: "dim",
    Role.HEADER: "magenta",
    Role.SYSTEM: "yellow",
    Role.USER: "cyan",
    Role.ASSISTANT: "white",
    Role.TOOL: "blue",
    Role.TEXT: "bright_black",
}
TRAINED = "bold green"
WEIGHTED = "underline green"
"""Trained with another weight than 1."""
MOST_LANGUAGES = 48
LONGEST_PIECE = 2000
"""Characters of one token that are shown."""


def run_preview(recipe: Recipe, *, rows: int, language: str | None, html: str | None = None, console: Console) -> int:
    """Prints packed rows (those with `language`, if given) and totals of trained tokens; touches no run directory.

    With `html` the rows are written to that file as one page, and only what they add up to is printed.
    """
    with tempfile.TemporaryDirectory() as scratch, use_mesh(MeshConfig()):
        origin = open_origin(recipe)
        prepared = prepare_recipe(recipe, origin, run_dir=Path(scratch), console=console)
        chosen = choose_rows(prepared, rows=rows, language=language)
        batch = make_batch(prepared.dataset, prepared.plan, chosen)
        shown = take_apart(batch, chosen, prepared.tokenizer, prepared.dataset.facts)
        if html is None:
            print_rows(shown, console)
        _print_totals(prepared, console)
        if html is not None:
            write_preview(prepared, shown, Path(html), name=recipe.run.dir)
            console.print(Text(f"wrote {html}"), soft_wrap=True)
    return 0


def choose_rows(prepared: Prepared, *, rows: int, language: str | None) -> list[int]:
    """The first planned rows, or the first that hold an example of the language (any code of it: `sw`, `swh_Latn`).

    Raises ValueError if none does, for a code that is none, or for less than one row.
    """
    if rows < 1:
        raise ValueError(f"--rows {rows} shows nothing; give at least 1")
    plan, dataset = prepared.plan, prepared.dataset
    if language is None:
        return list(range(min(rows, plan.rows)))
    language = standardize(language)
    if language not in dataset.facts.languages:
        known = ", ".join(tag for tag in dataset.facts.languages if tag)
        raise ValueError(f"language {language!r} is not in this mixture; it has {known}")
    wanted = dataset.facts.languages.index(language)
    holds = np.flatnonzero(dataset.language[plan.row_examples] == wanted)
    if not len(holds):
        raise ValueError(f"no planned row holds {language!r}: its weight in this mixture is 0")
    found = np.unique(np.searchsorted(plan.row_offsets, holds, side="right") - 1)
    return [int(row) for row in found[:rows]]


def print_rows(rows: list[PreviewRow], console: Console) -> None:
    """Prints the legend, then for each row its layout to scale and its examples."""
    legend = Text("trained", TRAINED).append("  ").append("trained, weight not 1", WEIGHTED)
    for role, style in STYLES.items():
        legend.append("  ").append(role.name.lower(), style)
    console.print(legend)
    console.print(Text("layout: █ trained  ▓ weight not 1  ▒ not trained  · padding; colours change with the example"))
    for row in rows:
        console.rule(f"row {row.number}: {len(row.segments)} examples, {row.filled}/{row.length} positions")
        console.print(render_strip(row, console.width))
        for segment in row.segments:
            console.print(render_segment(segment))


def render_segment(segment: Segment) -> Text:
    """One packed example: its language, then its text coloured by role, trained spans in green.

    A span is shown as the tokens the model must predict; control tokens are shown as they are spelled.
    """
    line = Text().append(f"[{segment.language}] ", "bold")
    for span in segment.spans:
        shown = "".join(make_printable(piece.text, limit=LONGEST_PIECE) for piece in span.pieces)
        line.append(shown, _style_of(span))
    return line


def render_strip(row: PreviewRow, width: int) -> Text:
    """The layout of a row, to scale, in that many columns; a column is what most of its positions are."""
    state_T = np.zeros(row.length, np.int8)
    segment_T = np.zeros(row.length, np.int32)
    for index, segment in enumerate(row.segments, 1):
        weights = [span.weight for span in segment.spans for _ in range(span.tokens)]
        # A position's target is the token after it.
        kinds = [1 if weight == 0 else 3 if weight == 1 else 2 for weight in weights[1:]]
        state_T[segment.start : segment.start + segment.length] = kinds
        segment_T[segment.start : segment.start + segment.length] = index
    strip = Text()
    for column in range(min(width, row.length)):
        begin, end = (column * row.length) // width, ((column + 1) * row.length) // width
        if row.length <= width:
            begin, end = column, column + 1
        state = int(np.bincount(state_T[begin:end]).argmax())
        style = "dim" if state == 0 else "cyan" if segment_T[begin:end].max() % 2 else "yellow"
        strip.append("·▒▓█"[state], style)
    return strip


def _style_of(span: Span) -> str:
    return TRAINED if span.weight == 1 else WEIGHTED if span.weight > 0 else STYLES[span.role]


def _print_totals(prepared: Prepared, console: Console) -> None:
    shares = share_by(prepared.plan.summary["cells"], "language")
    console.rule("trained / all tokens by language")
    most = sorted(shares.items(), key=lambda item: (-item[1].target_tokens, item[0]))
    console.print(_total_table(most[:MOST_LANGUAGES]))
    if len(most) > MOST_LANGUAGES:
        console.print(Text(f"... and {len(most) - MOST_LANGUAGES} languages with less, all of them on the --html page"))
    trained, tokens = (sum(getattr(s, name) for s in shares.values()) for name in ("target_tokens", "tokens"))
    facts = prepared.dataset.facts
    console.print(
        Text(
            f"{len(shares)} languages: {trained:,} of {tokens:,} tokens trained ({trained / tokens:.0%}), once through "
            f"the data\nplan {prepared.plan.hash[:12]}  tokenizer {facts.tokenizer_hash[:12]}  template "
            f"{facts.template_hash[:12]}"
        )
    )


def _total_table(shares: list[tuple[str, Share]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("tag", "language"):
        table.add_column(head, no_wrap=True, max_width=20)
    for head in ("examples", "trained", "all tokens", "share"):
        table.add_column(head, justify="right", no_wrap=True)
    for tag, share in shares:
        numbers = (share.examples, share.target_tokens, share.tokens)
        share_text = f"{share.target_tokens / share.tokens:.0%}"
        table.add_row(Text(tag), Text(isolate(own_name(tag))), *(f"{number:,}" for number in numbers), share_text)
    return table
