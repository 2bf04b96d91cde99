"""`polytune compare RUN_A RUN_B`: what differs between two runs, and their numbers side by side."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.languages import own_name
from data.printable import isolate
from eval.run_files import RunFiles, read_run
from eval.summary import RunSummary, summarise
from launch.config import RecipeError
from launch.recipe import flatten, parse_yaml, recipe_tree
from launch.stored_recipe import describe_filled_in, read_stored

COMPARED = (
    "recipe_name", "plan_hash", "tokenizer_hash", "template_hash", "devices", "mesh", "processes", "loss_head",
    "versions", "git", "step", "model",
)  # fmt: skip
"""Keys of a run card that say what a run was. The others say how it went, and are numbers of the summary."""
OF_A_PLACE = ("recipe.run.dir",)
"""Keys of a recipe that differ between any two runs, and mean nothing."""
MISSING = "–"
MOST_LANGUAGES, MOST_CHARACTERS = 24, 48


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A fact of which the runs have unlike values; None: one has none."""

    key: str
    a: Any
    b: Any


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs: their names, what differs, and the numbers of each."""

    a: str
    b: str
    differences: list[Difference]
    notes: list[str]
    """Why some numbers cannot be held against each other."""
    summary_a: RunSummary
    summary_b: RunSummary


def run_compare(run_a: str, run_b: str, *, json_file: str | None, console: Console) -> int:
    """Prints what differs and the numbers side by side; `json_file` gets all of it, exactly."""
    runs = [read_run(Path(run)) for run in (run_a, run_b)]
    for run, files in zip((run_a, run_b), runs, strict=True):
        if not files.card and not files.recipe_text:
            raise ValueError(f"{run} holds no run: no run_card.json, no recipe.yaml; give run directories")
    compared = compare(*runs)
    print_comparison(compared, console)
    if json_file is not None:
        path = Path(json_file)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(msgspec.to_builtins(compared), indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def compare(a: RunFiles, b: RunFiles) -> Comparison:
    """What differs between two runs and what came of them. Any part of a run may be missing."""
    facts_a, facts_b = facts_of(a), facts_of(b)
    differences = [
        Difference(key=key, a=facts_a.get(key), b=facts_b.get(key))
        for key in sorted({*facts_a, *facts_b})
        if facts_a.get(key) != facts_b.get(key)
    ]
    keys = {difference.key for difference in differences}
    notes = [f"{run.name}: {note}" for run in (a, b) for note in [read_recipe(run)[1]] if note is not None]
    if "tokenizer_hash" in keys:
        notes.append("the tokenizers differ: losses are per token, and say nothing about which run is better")
    elif "template_hash" in keys:
        notes.append("the chat templates differ: losses are of other tokens, and hard to hold against each other")
    return Comparison(
        a=a.name, b=b.name, differences=differences, notes=notes, summary_a=summarise(a), summary_b=summarise(b)
    )


def read_recipe(run: RunFiles) -> tuple[Any, str | None]:
    """The run's recipe as plain values, None where there is none; and what to know of one of another version.

    What one of an earlier version lacks has its default, as in a resumed run; one with fields that this version does
    not have is taken as it is written.
    """
    if not run.recipe_text:
        return None, None
    name = f"recipe.yaml of {run.name}"
    try:
        stored = read_stored(run.recipe_text, name)
    except RecipeError as error:
        return parse_yaml(run.recipe_text, name), f"taken as written, without defaults: {error}"
    return recipe_tree(stored.recipe), describe_filled_in(stored.filled_in) if stored.filled_in else None


def facts_of(run: RunFiles) -> dict[str, Any]:
    """What a run was, as one table from dotted keys: its recipe, every default filled in, and its card's facts."""
    card = run.card or {}
    kept = {key: card[key] for key in COMPARED if key in card}
    recipe, _ = read_recipe(run)
    found = flatten(kept if recipe is None else {"recipe": recipe, **kept})
    # The card has the model with its vocabulary filled in, and that of a folder that a recipe only names.
    told_twice = ("recipe.model.",) if "model" in kept else ()
    return {key: value for key, value in found.items() if key not in OF_A_PLACE and not key.startswith(told_twice)}


def print_comparison(compared: Comparison, console: Console) -> None:
    """Tables of differences, numbers and losses by language."""
    heads = name_apart(compared.a, compared.b)
    if compared.differences:
        table = _table("What differs", ("", *heads), justify="left")
        for item in compared.differences:
            table.add_row(item.key, _short(item.a), _short(item.b))
        console.print(table)
    else:
        console.print("nothing differs: recipe, plan, tokenizer, versions, devices and code are the same")
    for note in compared.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)
    a, b = compared.summary_a, compared.summary_b
    _print_numbers("Numbers", heads, a.numbers, b.numbers, console)
    _print_numbers("Skipped steps and failed saves", heads, _faults(a, b), _faults(b, a), console)
    _print_numbers("Scores, macro averages of the newest evaluation", heads, a.scores, b.scores, console)
    for title, of_a, of_b in (
        ("Training loss by language, last tenth", a.loss_by_language, b.loss_by_language),
        ("Held-out loss by language", a.held_out_by_language, b.held_out_by_language),
    ):
        _print_numbers(title, heads, _by_change(of_a, of_b), of_b, console, are_languages=True)


def name_apart(a: str, b: str) -> tuple[str, str]:
    """Names as heads of columns; runs of the same name are A and B."""
    return (a, b) if a != b else (f"A: {a}", f"B: {b}")


def _faults(run: RunSummary, other: RunSummary) -> dict[str, float]:
    """Of one run, with a zero for what occurred in the other alone; empty where its records tell nothing at all."""
    return dict.fromkeys([*run.faults, *other.faults], 0.0) | run.faults if run.numbers else {}


def _by_change(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float | None]:
    """Languages of either run, the one that got worst first."""

    def change(tag: str) -> float:
        return b[tag] - a[tag] if tag in a and tag in b else float("-inf")

    return {tag: a.get(tag) for tag in sorted({*a, *b}, key=lambda tag: (-change(tag), tag))}


def _print_numbers(
    title: str,
    heads: tuple[str, str],
    a: Mapping[str, float | None],
    b: Mapping[str, float],
    console: Console,
    *,
    are_languages: bool = False,
) -> None:
    names = list(dict.fromkeys([*a, *b]))
    if not names:
        return
    table = _table(title, ("", *heads, "B - A"), justify="right")
    for name in names[: MOST_LANGUAGES if are_languages else None]:
        of_a, of_b = a.get(name), b.get(name)
        difference = MISSING if of_a is None or of_b is None else _change(of_b - of_a)
        shown = f"{name}  {isolate(own_name(name))}" if are_languages else name
        table.add_row(shown, _number(of_a), _number(of_b), difference)
    console.print(table)
    if are_languages and len(names) > MOST_LANGUAGES:
        console.print(f"{len(names) - MOST_LANGUAGES} more languages; --json FILE has them all", highlight=False)


def _table(title: str, heads: tuple[str, ...], *, justify: Any) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column(heads[0], overflow="fold")
    for head in heads[1:]:
        table.add_column(Text(head), justify=justify, overflow="fold")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _change(value: float) -> str:
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def _short(value: Any) -> str:
    if value is None:
        return MISSING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
