"""The README.md of an exported model: what it is, how it was trained, and how it does in each language."""

import json
from pathlib import Path
from typing import Any

from data.languages import english_name
from eval.opening import OpenModel
from eval.results import MISSING, read_results
from model.hf.family import Family

MOST_ROWS = 200


def write_model_card(path: Path, opened: OpenModel, *, family: Family, dtype: str) -> None:
    """Writes a card with the run card's facts and the results by language that lie beside the checkpoint."""
    card = _read_json(opened.run_dir / "run_card.json")
    results = read_results(opened.results_dir)
    languages = [tag for tag in opened.meta.get("languages", []) if tag]
    name = card.get("name") or opened.run_dir.name
    lines = [*_front_matter(languages), f"# {name}", "", _summary(opened, card, family, dtype), ""]
    if opened.recipe is not None:
        lines += ["## Training", "", *_training_rows(opened, card), ""]
    if languages:
        lines += ["## Languages", "", ", ".join(f"{english_name(tag)} (`{tag}`)" for tag in languages), ""]
    if results:
        lines += ["## Evaluation", "", *_result_tables(results)]
    lines += ["## Use", "", *_usage()]
    path.write_text("\n".join(lines), encoding="utf-8")


def _front_matter(languages: list[str]) -> list[str]:
    bases = sorted({tag.partition("-")[0] for tag in languages})
    return [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *(["language:", *(f"- {json.dumps(base)}" for base in bases)] if bases else []),
        "tags:",
        "- polytune",
        "---",
        "",
    ]


def _summary(opened: OpenModel, card: dict[str, Any], family: Family, dtype: str) -> str:
    parameters = card.get("model", {}).get("parameters")
    size = f"{parameters:,} parameters, " if parameters else ""
    origin = "Instruction-tuned with polytune" if opened.recipe is not None else "Converted by polytune, not trained"
    return f"{origin}: `{family.architecture}`, {size}{dtype}, step {opened.step}."


def _training_rows(opened: OpenModel, card: dict[str, Any]) -> list[str]:
    recipe = opened.recipe or {}
    sources = ", ".join(source for source in opened.meta.get("sources", []) if source)
    facts = {
        "recipe": card.get("recipe_name"),
        "started from": Path(recipe["model"]).name if isinstance(recipe.get("model"), str) else "random parameters",
        "steps": opened.step,
        "weights": "average over steps (train.ema_decay)" if opened.weights == "ema" else None,
        "rows per step": recipe.get("train", {}).get("batch_rows"),
        "row length (tokens)": opened.meta.get("row_length"),
        "sources": sources or None,
        "seed": recipe.get("run", {}).get("seed"),
        "data plan (sha256)": opened.meta.get("plan_hash"),
        "tokenizer (sha256)": opened.meta.get("tokenizer_hash"),
        "chat template (sha256)": opened.meta.get("template_hash"),
        "training time (s)": card.get("train_seconds"),
        "devices": (card.get("devices") or {}).get("kind") if isinstance(card.get("devices"), dict) else None,
    }
    rows = [f"| {key} | {value} |" for key, value in facts.items() if value is not None]
    return ["| | |", "|---|---|", *rows]


def _result_tables(results: dict[str, Any]) -> list[str]:
    lines = []
    for task, keys in results["group_subtasks"].items():
        metric = next(iter(results["higher_is_better"][task]))
        better = "higher" if results["higher_is_better"][task][metric] else "lower"
        lines += [f"### {task} ({metric}, {better} is better)", "", "| language | score | standard error | n |"]
        lines += ["|---|---:|---:|---:|", _row("macro average", results["results"][task], metric)]
        shown = sorted(keys)[:MOST_ROWS]
        lines += [_row(_language(key.removeprefix(f"{task}_")), results["results"][key], metric) for key in shown]
        lines += [f"| ... and {len(keys) - MOST_ROWS} more | | | |"] if len(keys) > MOST_ROWS else []
        lines.append("")
    return lines


def _row(name: str, row: dict[str, Any], metric: str) -> str:
    stderr = row[f"{metric}_stderr,none"]
    spread = "" if stderr == MISSING else f"{stderr:.3f}"
    return f"| {name} | {row[f'{metric},none']:.3f} | {spread} | {row['sample_len']} |"


def _language(tag: str) -> str:
    return f"{english_name(tag)} (`{tag}`)"


def _usage() -> list[str]:
    return [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        'messages = [{"role": "user", "content": "..."}]',
        "ids = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        "print(tokenizer.decode(model.generate(**ids)[0]))",
        "```",
        "",
    ]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
