"""Writes made-up run directories with everything a report can show. Numbers follow from the seed alone."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Thirty-four tags in sixteen scripts, four of them right to left; and 205 tags in thirty-three scripts.
TAGS_34 = """
en fr de es pt it nl pl cs tr vi id sw fi hu ru uk sr el ka hy hi bn ta te th zh ja ko ar he fa ur
am
"""
TAGS_205 = """
ace-Arab ace af ajp acm acq aeb am apc ar-Latn ar ars ary arz as ast awa ay azb az ba bm ban be bem
bn bho bjn-Arab bjn bo bs bug bg ca ceb cs cjk ckb crh cy da de dik dyu dz el en eo et eu ee fo fj
fi fon fr fur fuv gaz ga gd gl gn gu ht ha he hi hne hr hu hy ig ilo id is it jv ja kab kac kam kn
ks ks-Deva ka kk kbp kea km ki rw ky kmb kmr knc-Arab knc kg ko lo lij li ln lt lmo ltg lb lua lg
luo lus lv mag mai ml mr min-Arab min mk mt mni mos mi my nl nn nb ne nqo nso nus ny oc ory pag pa
pap pbt fa pl pt quy ro rn ru sg sa sat scn shn si sk sl sm sn sd so st es sc sr ss su sv sw szl ta
taq taq-Tfng tt te tg fil th ti tn ts tk tum tr tw tzm ug uk umb ur uz vec vi war wo xh yi yo yue zh
zh-Hant zu fa-AF hsb kl ab chr ii vai
"""
LANGUAGES_34, LANGUAGES_205 = TAGS_34.split(), TAGS_205.split()

ANSWERS = {
    "ar": ("ما اسم الشهر رقم ٣؟", "مارس", "أبريل"),
    "he": ("מהו החודש השלישי?", "מרץ", "אפריל"),
    "fa": ("نام ماه سوم چیست؟", "مارس", "آوریل"),
    "ur": ("تیسرے مہینے کا نام کیا ہے؟", "مارچ", "اپریل"),
    "ja": ("3番目の月の名前は何ですか。", "3月", "4月"),
    "hi": ("तीसरे महीने का नाम क्या है?", "मार्च", "अप्रैल"),
    "ka": ("რა ჰქვია მესამე თვეს?", "მარტი", "აპრილი"),
    "th": ("เดือนที่สามชื่ออะไร", "มีนาคม", "เมษายน"),
    "am": ("የሦስተኛው ወር ስም ማን ነው?", "ማርች", "ኤፕሪል"),
    "ru": ("Как называется третий месяц?", "март", "апрель"),
    "el": ("Πώς λέγεται ο τρίτος μήνας;", "Μάρτιος", "Απρίλιος"),
}
ENGLISH = ("What is the name of month 3?", "March", "April")


def write_fake_run(
    run_dir: Path,
    *,
    languages: Sequence[str] = LANGUAGES_34,
    steps: int = 300,
    kills: Sequence[tuple[int, int]] = ((147, 120),),
    averaged: Sequence[int] = (),
) -> Path:
    """A finished, evaluated run; `kills` are (last step recorded, step resumed from).

    Of the steps `averaged` the average of parameters was evaluated too; it knows a tenth more.
    """
    rng = random.Random(7)
    for folder in ("plan", "eval/0", f"eval/{steps}", "checkpoints"):
        (run_dir / folder).mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text("run:\n  dir: runs/demo\ntrain:\n  steps: 300  # <b>not bold</b>\n")
    cells = _cells(languages, rng)
    _write_json(run_dir / "plan/plan.json", _plan(cells, steps))
    lines = _metrics(cells, steps=steps, kills=kills, rng=rng)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write_json(run_dir / "run_card.json", _card(run_dir.name, steps, len(kills) + 1))
    skill = {tag: min(1.0, max(0.02, rng.gauss(0.86, 0.14))) for tag in languages}
    _write_evaluation(run_dir / f"eval/{steps}", skill, step=steps)
    _write_evaluation(run_dir / "eval/0", {tag: 0.02 for tag in languages}, step=0)
    better = {tag: min(1.0, 1.1 * value) for tag, value in skill.items()}
    for step in averaged:
        (run_dir / f"eval/{step}-ema").mkdir()
        _write_evaluation(run_dir / f"eval/{step}-ema", better, step=step)
    return run_dir


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _cells(languages: Sequence[str], rng: random.Random) -> list[dict[str, Any]]:
    cells = []
    for tag in languages:
        for source, size in (("cldr", rng.randint(200, 900)), ("procedural", 400)):
            tokens = size * rng.randint(24, 60)
            cells.append(
                {
                    "source": source,
                    "language": tag,
                    "examples": size,
                    "tokens": tokens,
                    "target_tokens": tokens // 4,
                    "content_bytes": int(tokens * rng.uniform(1.5, 4.5)),
                    "wanted_share": size**0.5,
                }
            )
    total = sum(cell["wanted_share"] for cell in cells)
    for cell in cells:
        cell["wanted_share"] /= total
        cell["realised_share"] = cell["wanted_share"] * rng.uniform(0.985, 1.015)
        cell["planned_examples"] = round(60000 * cell["realised_share"])
        cell["epochs"] = cell["planned_examples"] / cell["examples"]
        cell["planned_tokens"] = round(cell["epochs"] * cell["tokens"])
        cell["planned_target_tokens"] = cell["planned_tokens"] // 4
    return cells


def _plan(cells: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    return {
        "hash": "9f2c" * 16,
        "rows": steps * 32,
        "row_length": 256,
        "batch_rows": 32,
        "steps": steps,
        "seed": 0,
        "unit": "examples",
        "padding": 0.0123,
        "cells": cells,
        "languages": ["", *dict.fromkeys(cell["language"] for cell in cells)],
        "sources": ["", "cldr", "procedural"],
        "dropped": {"en": 3, cells[-1]["language"]: 2},
        "bad_rows": {},
        "tokenizer_hash": "ab12" * 16,
        "template_hash": "cd34" * 16,
    }


def _metrics(
    cells: list[dict[str, Any]], *, steps: int, kills: Sequence[tuple[int, int]], rng: random.Random
) -> list[dict[str, Any]]:
    spans = list(zip([0, *(resumed for _, resumed in kills)], [*(died for died, _ in kills), steps], strict=True))
    share: dict[str, float] = {}
    for cell in cells:
        share[cell["language"]] = share.get(cell["language"], 0) + cell["planned_tokens"]
    total = sum(share.values())
    pace = {tag: rng.uniform(0.6, 1.5) for tag in share}
    noise = [rng.gauss(0, 0.09) for _ in range(steps + 1)]
    lines: list[dict[str, Any]] = []
    for attempt, (first, last) in enumerate(spans, start=1):
        lines.append(
            {
                "kind": "start",
                "attempt": attempt,
                "time": 1.7e9 + first,
                "step": first,
                "devices": 8,
                "mesh": {"data": 4, "model": 2},
                "process_s": 0.25,
            }
        )
        for step in range(first + 1, last + 1):
            lines.append(_step(attempt, step, steps=steps, noise=noise[step]))
            if step % 10 == 0:
                amounts = {tag: 2000 * tokens / total * 10 for tag, tokens in share.items()}
                losses = {tag: amounts[tag] * (_loss(step, steps) * pace[tag]) for tag in share}
                lines.append(
                    {"kind": "languages", "attempt": attempt, "step": step, "first_step": step - 9}
                    | {
                        "loss_sum": losses,
                        "weight": amounts,
                        "tokens": {t: 4 * a for t, a in amounts.items()},
                        "gradient": {t: a * pace[t] for t, a in amounts.items()},
                        "by_source": {
                            "loss_sum": {
                                "cldr": 3.0 * sum(losses.values()) / 4,
                                "procedural": sum(losses.values()) / 4,
                            },
                            "weight": {"cldr": 10000.0, "procedural": 10000.0},
                            "tokens": {"cldr": 50000.0, "procedural": 30000.0},
                            "gradient": {"cldr": 30.0, "procedural": 10.0},
                        },
                    }
                )
            if step % 50 == 0:
                lines.append(
                    {"kind": "held_out", "attempt": attempt, "step": step, "time": 1.7e9 + step, "seconds": 0.0625}
                    | {"loss_sum": {t: 40 * _loss(step, steps) for t in share}, "weight": dict.fromkeys(share, 40.0)}
                )
                lines.append({"kind": "save", "attempt": attempt, "step": step, "time": 1.7e9 + step, "seconds": 0.125})
    return lines


def _loss(step: int, steps: int) -> float:
    return 0.22 + 8.0 * math.exp(-9 * step / steps) + 0.5 * math.exp(-2.5 * step / steps)


def _step(attempt: int, step: int, *, steps: int, noise: float) -> dict[str, Any]:
    warm = min(1.0, step / (steps * 0.1))
    return {
        "kind": "step",
        "attempt": attempt,
        "step": step,
        "time": 1.7e9 + step,
        "loss": _loss(step, steps) * (1 + noise),
        "weight": 2000.0 + step % 7,
        "grad_norm": 0.4 + 3 * math.exp(-6 * step / steps) + abs(noise),
        "learning_rate": 3e-3 * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
        "tokens": 8000,
        "padding": 0.012 + 0.01 * abs(noise),
        "tokens_per_s": 41000 + 9000 * noise,
        "target_tokens_per_s": 10000.0,
        "mfu": 0.41,
        "step_s": 0.75,
        "data_wait_s": 0.125,
        "rows": [(step - 1) * 32, step * 32],
        "digest": f"{step * 2654435761 % 2**32:08x}",
    }


def _card(name: str, steps: int, attempts: int) -> dict[str, Any]:
    return {
        "name": name,
        "created": "2025-11-20T23:00:00Z",
        "step": steps,
        "steps": steps,
        "recipe_name": "demo",
        "model": {"parameters": 1_234_567, "num_layers": 4, "dim": 128},
        "plan_hash": "9f2c" * 16,
        "tokenizer_hash": "ab12" * 16,
        "template_hash": "cd34" * 16,
        "devices": "8 x cpu",
        "mesh": {"data": 4, "model": 2},
        "versions": {"jax": "0.10.0", "flax": "0.12.1", "polytune": "0.1.0"},
        "git": {"commit": "deadbeef" * 5, "dirty": False},
        "train_seconds": 192.4,
        "attempts": attempts,
    }


def _write_evaluation(folder: Path, skill: dict[str, float], *, step: int) -> None:
    tasks = {"facts": ("exact_match", 40), "topics": ("acc", 200), "heldout": ("bits_per_byte", 60)}
    results: dict[str, Any] = {
        "results": {},
        "groups": {},
        "group_subtasks": {},
        "n-samples": {},
        "higher_is_better": {},
    }
    for task, (metric, count) in tasks.items():
        scores = {tag: _score(metric, value, count) for tag, value in skill.items()}
        for tag, value in scores.items():
            error = math.sqrt(value * (1 - value) / count) if metric != "bits_per_byte" else 0.05
            results["results"][f"{task}_{tag}"] = {
                "alias": f" - {task}_{tag}",
                f"{metric},none": value,
                f"{metric}_stderr,none": error,
            }
            results["n-samples"][f"{task}_{tag}"] = {"original": count, "effective": count}
        macro = {"alias": task, f"{metric},none": sum(scores.values()) / len(scores)}
        if metric == "bits_per_byte":
            macro["loss,none"] = 5.1 if step == 0 else 0.61
        results["groups"][task] = macro
        results["group_subtasks"][task] = [f"{task}_{tag}" for tag in skill]
        results["higher_is_better"][task] = {metric: metric != "bits_per_byte"}
    results["baselines"] = {"facts": {"majority": 0.09}, "topics": {"chance": 1 / 7, "majority": 0.25}}
    results |= {
        "configs": {},
        "versions": {task: 1 for task in tasks},
        "config": {
            "model": "polytune",
            "step": step,
            "checkpoint": f"demo/{step}",
            "mesh": {"data": 1, "model": 1},
        },
        "chat_template_sha": "cd34" * 16,
        "tokenizer_hash": "ab12" * 16,
        "date": 1.7e9,
        "total_evaluation_time_seconds": "12.5",
    }
    _write_json(folder / "results.json", results)
    for task in ("facts", "topics", "heldout"):
        rows = [row for tag, value in skill.items() for row in _sample_rows(task, tag, value)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"samples_{task}.jsonl").write_text(text, encoding="utf-8")


def _score(metric: str, skill: float, count: int) -> float:
    if metric == "bits_per_byte":
        return 0.3 + 2.2 * (1 - skill) + 0.4 * (skill * 97 % 1)
    worth = skill if metric == "exact_match" else 0.2 + 0.5 * skill
    return round(worth * count) / count


def _sample_rows(task: str, tag: str, skill: float) -> list[dict[str, Any]]:
    question, right, wrong = ANSWERS.get(tag, ENGLISH)
    rows = []
    for index in range(6):
        is_right = (index + 0.5) / 6 < skill
        row: dict[str, Any] = {"doc_id": index, "language": tag, "doc_hash": "0" * 64}
        if task == "facts":
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": right}]
            answer = right if is_right else wrong if index % 2 else ""
            row |= {"doc": {"turns": turns}, "target": right, "arguments": [[question]], "filter": "none"}
            row |= {"resps": [[answer]], "filtered_resps": [answer]}
            row |= {"metrics": ["exact_match"], "exact_match": float(is_right)}
        elif task == "topics":
            likelihoods = [[-4.0, False], [-2.5 if is_right else -6.0, True], [-8.0, False]]
            row |= {
                "doc": {"options": ["<sport>", "travel & food", "science"]},
                "target": 1,
                "arguments": [[question, "x"]],
            }
            row |= {
                "resps": [likelihoods],
                "filtered_resps": likelihoods,
                "metrics": ["acc"],
                "acc": float(is_right),
            }
        else:
            row |= {"doc": {}, "target": right, "arguments": [[question, right]], "resps": [[-3.0, False]]}
            row |= {"filtered_resps": [[-3.0, False]], "metrics": ["bits_per_byte"], "bits_per_byte": 1.0}
        rows.append(row)
    return rows
