import dataclasses
import io
from types import MappingProxyType, SimpleNamespace

import jax
import pytest
from rich.console import Console
from toy import AXES, OPTIM, TOY, mesh_of

from launch.plan_table import MOST_ROWS, print_plan, share_by
from model.config import ComputeConfig
from train.config import OptimConfig
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


def print_text(cells, width=160, *, optim=OPTIM, step=MappingProxyType({}), **changed):
    summary = {
        "cells": cells,
        "unit": "target_tokens",
        "rows": 1234,
        "row_length": 64,
        "padding": 0.0312,
        "dropped": {},
        "cut": {},
        "bad_rows": {},
        "cleaned": {},
        "stages": [],
        "pinch": {},
        "steps": 20,
        "steps_asked": 20,
        "exhausted": "repeat",
        "used_up": [],
        "empty_rows": 0,
        "unfilled": [],
        **changed,
    }
    spec = StepSpec(model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=3, most_trained=24, microbatches=2)
    spec = dataclasses.replace(spec, **step)
    job = SimpleNamespace(spec=spec, optim=optim, most_trained_S=[8, 16, 8, 24])
    console = Console(file=io.StringIO(), width=width)
    with jax.set_mesh(mesh_of((4, 2))):
        print_plan(summary, job, mesh_of((4, 2)), console)
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
    text = " ".join(print_text(CELLS, dropped={"ar": 3, "sw": 1}, cut={"sw": 2}, bad_rows={"": 2}).split())
    header = "examples tokens trained weight planned epochs"
    assert f"source {header}" in text
    assert "cldr 40 280 120 75.00% 80.00% 0.9 qa[x] 2 14 6 25.00% 20.00% 0.5" in text
    assert f"tag language script {header}" in text
    sw, ar = "sw Kiswahili Latn 12 84 36 50.00% 40.00% 1.8", "ar العربية\u200e Arab 30 210 90 50.00% 60.00% 0.5"
    assert f"{sw} {ar}" in text, "most seen first"
    assert "weight: share wanted, in target tokens" in text
    assert "2 languages, 2 scripts, 42 examples, 294 tokens; 1,234 rows of 64 planned, 3.1% padding" in text
    assert "overlong dropped: 4 (ar 3, sw 1), cut: 2 (sw 2); bad rows skipped: 2 (unreadable 2); cleaned out: 0" in text
    assert "mesh fsdp=4 tensor=2 on 8 cpu device(s); compute float32, parameters float32" in text
    assert "parameters float32; attention: dense (T by T scores, masked by segment); loss" in text
    assert "attention: blockwise (XLA, blocks of 128 positions)" in " ".join(print_text(CELLS, row_length=512).split())
    # 64 MiB of logits over the half of 32 ids that each device has.
    assert "loss: chunked head, at most 1,048,576 positions a device at a time, logits at trained positions" in text
    assert "(on average 14 of 64 a row); remat none; microbatches 2" in text


def test_a_long_table_is_cut_and_says_so():
    tags = [f"q{first}{second}" for first in "abc" for second in "abcdefghijklmnopqrst"][: MOST_ROWS + 5]
    cells = [make_cell("s", tag, planned=i + 1) for i, tag in enumerate(tags)]
    text = " ".join(print_text(cells, dropped=dict.fromkeys(tags, 1)).split())
    shown = [tag for tag in tags if f" {tag} {tag} " in text]
    assert shown == tags[5:], "the least seen are left out"
    assert "... and 5 languages with smaller shares, all in plan/plan.json" in text
    assert f"overlong dropped: {MOST_ROWS + 5} (" in text
    assert f", {MOST_ROWS + 5 - 8} more languages)" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_names_give_way_and_no_number_loses_its_end(width):
    """Cut after its point, "1.8" epochs is a number too: a log without a terminal has 80 columns."""
    cells = [
        make_cell("source", "zh-Hant", examples=1_234_567, planned=2_222_222),
        make_cell("source", "nb", examples=234_567, planned=422_222),
        make_cell("source", "ku", examples=9),
    ]
    text = print_text(cells, width)
    numbers = ["1,234,567", "8,641,969", "3,703,701", "25.00%", "20.00%", "1.8"]
    lines = [line.split() for line in text.splitlines() if line.startswith(("zh-Hant ", "nb "))]
    assert next(line for line in lines if line[0] == "zh-Hant")[-7:] == ["Hant", *numbers]
    assert next(line for line in lines if line[0] == "nb")[-7:] == [
        "Latn", "234,567", "1,641,969", "703,701", "25.00%", "20.00%", "1.8",
    ]  # fmt: skip
    table = [line.rstrip() for line in text.splitlines() if line.startswith(("tag ", "zh-Hant ", "nb ", "ku "))]
    assert len(table) == 4
    assert all(len(line) <= max(width, 80) for line in table)
    assert ("kurdî (kurmancî)" in text) == (width > 80)


def make_stage(first, steps, **shares):
    cells = [
        {"source": "s", "language": tag, "wanted_share": wanted, "realised_share": realised}
        for tag, (wanted, realised) in shares.items()
    ]
    return {
        "first_step": first, "steps": steps, "first_row": 4 * first, "rows": 4 * steps, "examples": 9 * steps,
        "tokens": 90 * steps, "cells": cells,
    }  # fmt: skip


def test_a_curriculum_shows_what_each_stage_will_see():
    stages = [make_stage(0, 30, en=(1, 1)), make_stage(30, 1000, en=(0.25, 0.243), sw=(0.75, 0.757))]
    text = " ".join(print_text(CELLS, stages=stages).split())
    assert "stage steps rows examples tokens seen" in text
    assert "1 0-29 120 270 2,700 en 100.0% 100.0%" in text
    assert "2 30-1,029 4,000 9,000 90,000 sw 75.0% 75.7%, en 25.0% 24.3%" in text
    assert "in target tokens" in text
    assert "seen" not in print_text(CELLS, stages=stages[:1]).replace("target", "")


def test_what_a_plan_does_of_its_own_is_said():
    """Nothing ends early, is used up or left unfilled without a word before step 0."""
    used_up = [{"source": "small", "language": f"l{n}", "examples": 3, "last_step": 1000 + n} for n in range(10)]
    text = " ".join(
        print_text(
            CELLS, steps=12, steps_asked=60, exhausted="stop", used_up=used_up, empty_rows=3, pinch={"zu": 40, "sw": 4},
            unfilled=["data.mixture.languages: 4 epochs leave 7 unfilled"],
        ).split()
    )  # fmt: skip
    assert "pinch, exact number of examples in the run: 44 (zu 40, sw 4)" in text
    assert "the plan ends after 12 of 60 steps: a source is used up, and data.mixture.exhausted=stop" in text
    assert "used up (stop): l0 in small at step 1,000, " in text
    assert "l7 in small at step 1,007 and 2 more" in text
    assert "3 rows without examples fill the last batch" in text
    assert "4 epochs leave 7 unfilled" in text
    quiet = print_text(CELLS)
    assert not any(word in quiet for word in ("pinch", "used up", "ends after", "without examples"))


def test_the_plan_names_optimizer_schedule_frozen_share_and_average():
    text = " ".join(print_text(CELLS).split())
    assert "optimizer: adamw (b1 0.9, b2 0.95, eps 0.001, mu_dtype float32), weight decay 0.1 on matrices" in text
    assert "learning rate 0.01, cosine after 2 steps of warm-up; 5,968 parameters" in text
    optim = OptimConfig(name="lion", learning_rate=1e-4, lr_scheduler_type="constant", mu_dtype="bfloat16")
    step = {"freeze": ("embedding/*", "*/scale"), "ema_decay": 0.99, "neftune_alpha": 5.0, "dropout": 0.1}
    text = " ".join(print_text(CELLS, optim=optim, step=step).split())
    assert "optimizer: lion (b1 0.9, b2 0.99, mu_dtype bfloat16); learning rate 0.0001, constant; " in text
    assert (
        f"{(32 * 16 + 5 * 16) / 5968:.1%} of 5,968 parameters frozen; average of parameters with decay 0.99; " in text
    )
    assert text.endswith("NEFTune noise, alpha 5; dropout 0.1")
