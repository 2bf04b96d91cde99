"""`polytune preview`: what a recipe feeds the model, decoded, with roles and trained spans in colour."""

import tempfile
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from data.batch import Batch, Role
from data.pipeline import make_batch
from data.prepare import Prepared, prepare
from data.tokenizer import Tokenizer
from launch.config import Recipe
from launch.origin import open_origin
from launch.plan_table import share_by
from launch.runtime import use_mesh
from model.parallel import MeshConfig

STYLES = {
    Role.PAD: "dim",
    Role.HEADER: "magenta",
    Role.SYSTEM: "yellow",
    Role.USER: "cyan",
    Role.ASSISTANT: "white",
    Role.TOOL: "blue",
}
TRAINED = "bold green"


def run_preview(recipe: Recipe, *, rows: int, language: str | None, console: Console) -> int:
    """Prints packed rows (those with `language`, if given) and totals of trained tokens; touches no run directory."""
    with tempfile.TemporaryDirectory() as scratch, use_mesh(MeshConfig()):
        origin = open_origin(recipe)
        prepared = prepare_recipe(recipe, origin, run_dir=Path(scratch), console=console)
        chosen = choose_rows(prepared, rows=rows, language=language)
        batch = make_batch(prepared.dataset, prepared.plan, chosen)
        legend = Text("trained", TRAINED)
        for role, style in STYLES.items():
            legend.append("  ").append(role.name.lower(), style)
        console.print(legend)
        for i, row in enumerate(chosen):
            filled = int((batch.segments_BT[i] > 0).sum())
            console.rule(
                f"row {row}: {batch.segments_BT[i].max()} examples, {filled}/{prepared.plan.row_length} positions"
            )
            for line in render_row(batch, i, prepared.tokenizer, prepared.dataset.facts.languages):
                console.print(line)
        _print_totals(prepared, console)
    return 0


def choose_rows(prepared: Prepared, *, rows: int, language: str | None) -> list[int]:
    """The first planned rows, or the first that hold an example of the language; ValueError if none does."""
    plan, dataset = prepared.plan, prepared.dataset
    if language is None:
        return list(range(min(rows, plan.rows)))
    if language not in dataset.facts.languages:
        known = ", ".join(tag for tag in dataset.facts.languages if tag)
        raise ValueError(f"language {language!r} is not in this mixture; it has {known}")
    wanted = dataset.facts.languages.index(language)
    holds = np.flatnonzero(dataset.language[plan.row_examples] == wanted)
    if not len(holds):
        raise ValueError(f"no planned row holds {language!r}: its weight in this mixture is 0")
    found = np.unique(np.searchsorted(plan.row_offsets, holds, side="right") - 1)
    return [int(row) for row in found[:rows]]


def render_row(batch: Batch, i: int, tokenizer: Tokenizer, languages: tuple[str, ...]) -> list[Text]:
    """One line per packed example: its language, then its text coloured by role, trained spans in green.

    A span is shown as the tokens the model must predict; control tokens are shown as they are spelled.
    """
    lines = []
    for segment in range(1, int(batch.segments_BT[i].max()) + 1):
        at = np.flatnonzero(batch.segments_BT[i] == segment)
        line = Text(f"[{languages[batch.language_BT[i, at[0]]]}] ", "bold")
        line.append(_decode_span([int(batch.tokens_BT[i, at[0]])], tokenizer), STYLES[Role.HEADER])
        labelled = [
            (
                int(batch.targets_BT[i, t]),
                Role(int(batch.role_BT[i, t])),
                bool(batch.loss_weight_BT[i, t] > 0),
            )
            for t in at
        ]
        for (role, is_trained), span in groupby(labelled, key=lambda item: item[1:]):
            line.append(
                _decode_span([token for token, *_ in span], tokenizer),
                TRAINED if is_trained else STYLES[role],
            )
        lines.append(line)
    return lines


def _decode_span(ids: list[int], tokenizer: Tokenizer) -> str:
    spelled = {token: name for name, token in tokenizer.control_ids.items()}
    parts = []
    for is_control, tokens in groupby(ids, key=tokenizer.is_control):
        group = list(tokens)
        parts.append("".join(spelled[token] for token in group) if is_control else tokenizer.decode(group))
    return "".join(parts)


def _print_totals(prepared: Prepared, console: Console) -> None:
    shares = share_by(prepared.plan.summary["cells"], "language")
    console.rule("trained / all tokens by language")
    console.print(
        "  ".join(
            f"{tag} {s.target_tokens:,}/{s.tokens:,} ({s.target_tokens / s.tokens:.0%})" for tag, s in shares.items()
        ),
        highlight=False,
    )
    facts = prepared.dataset.facts
    console.print(
        f"plan {prepared.plan.hash[:12]}  tokenizer {facts.tokenizer_hash[:12]}  template {facts.template_hash[:12]}"
    )
