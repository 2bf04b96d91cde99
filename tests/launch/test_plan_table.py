import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from toy import AXES, TOY, mesh_of

from launch.plan_table import MOST_ROWS, print_plan, share_by
from model.config import ComputeConfig
from train.step import StepSpec


def make_cell(source, language, *, examples=10, wanted=0.25, realised=0.2, planned=20):
    return {
        "source": source,
        "language": language,
        "script": "Latn",
        "examples": examples,
        "tokens": examples * 7,
        "target_tokens": examples * 3,
        "wanted_share": wanted,
        "realised_share": realised,
        "planned_examples": planned,
    }


CELLS = [
    make_cell("cldr", "sw"),
    make_cell("cldr", "ar", examples=30, wanted=0.5, realised=0.6, planned=15),
    make_cell("qa[x]", "sw", examples=2, planned=1),
]


def print_text(cells, **changed):
    summary = {
        "cells": cells,
        "unit": "target_tokens",
        "rows": 1234,
        "row_length": 64,
        "padding": 0.0312,
        "dropped": {},
        "bad_rows": {},
        **changed,
    }
    spec = StepSpec(model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=3, most_trained=24, microbatches=2)
    console = Console(file=io.StringIO(), width=160)
    print_plan(summary, SimpleNamespace(spec=spec), mesh_of((4, 2)), console)
    return console.file.getvalue()


def test_shares_are_sums_over_cells():
    by_language = share_by(CELLS, "language")
    assert list(by_language) == ["ar", "sw"]
    assert tuple(by_language["sw"]) == (12, 84, 36, 0.5, 0.4, 21)
    assert tuple(share_by(CELLS, "source")["cldr"]) == (40, 280, 120, 0.75, 0.8, 35)


def test_epochs_are_visits_per_example_not_a_mean_of_epochs():
    """Swahili: 21 visits of 12 examples; the mean over its two sources would be (2 + 0.5) / 2."""
    assert share_by(CELLS, "language")["sw"].epochs == pytest.approx(21 / 12)


def test_the_plan_says_what_will_be_trained_and_how():
    text = print_text(CELLS, dropped={"ar": 3, "sw": 1}, bad_rows={"": 2})
    sources, languages = text.split("\nlanguages ", 1)
    assert [line.split()[1] for line in sources.splitlines() if "%" in line] == ["cldr", "qa[x]"]
    assert "weight (target tokens)" in languages
    rows = {line.split()[1]: line for line in languages.splitlines() if line.startswith("│")}
    assert list(rows) == ["sw", "ar"], "most seen first"
    assert "Kiswahili" in rows["sw"]
    assert [cell.strip() for cell in rows["sw"].split("│")][3:-1] == [
        "12",
        "84",
        "36",
        "50.00%",
        "40.00%",
        "1.8",
    ]
    assert "2 languages, 2 scripts, 42 examples, 294 tokens; 1,234 rows of 64 planned, 3.1% padding" in text
    assert "dropped as overlong: 4 (ar 3, sw 1); bad rows skipped: 2 (unreadable 2)" in text
    assert "mesh {'fsdp': 4, 'tensor': 2} on 8 cpu device(s); compute float32, parameters float32" in text
    assert "(24 of 64 a row); remat none; microbatches 2" in text


def test_a_long_table_is_cut_and_says_so():
    cells = [make_cell("s", f"q{chr(97 + i // 20)}{chr(97 + i % 20)}", planned=i + 1) for i in range(MOST_ROWS + 5)]
    text = print_text(cells, dropped={cell["language"]: 1 for cell in cells})
    assert sum(line.startswith("│ q") for line in text.splitlines()) == MOST_ROWS
    assert "... and 5 languages with smaller shares, all in plan/plan.json" in text
    assert f"dropped as overlong: {MOST_ROWS + 5} (" in text
    assert f", {MOST_ROWS + 5 - 8} more languages)" in text
