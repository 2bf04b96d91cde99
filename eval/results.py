"""results.json and samples_TASK.jsonl, in the shape of lm-evaluation-harness, by language."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from eval.config import EvalError
from eval.grading import Graded, find_kind
from eval.stats import Estimate, Ratio, estimate, find_worst, macro_average
from eval.task import Document, TaskConfig

RESULTS_FILE = "results.json"
MISSING = "N/A"
"""Written for a standard error that one document cannot give, as lm-evaluation-harness does."""

SECTIONS = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "baselines",
    "macro",
    "worst_languages",
    "by_task",
)
"""The parts of results.json whose keys are names of tasks and subtasks."""


class TaskResult(NamedTuple):
    """A task with its documents and what became of them, in the same order."""

    task: TaskConfig
    documents: Sequence[Document]
    graded: Sequence[Graded]
    original: Mapping[str, int]
    """Documents of each language before `limit`."""
    limit: int | None = None
    max_length: int | None = None
    date: float | None = None
    """Unix time of this task's evaluation: a results.json can hold tasks of several."""


class Summary(NamedTuple):
    """A task's estimates: of each metric by language, and averaged over languages."""

    by_language: dict[str, dict[str, Estimate]]
    macro: dict[str, Estimate]


def summarize(documents: Sequence[Document], values: Sequence[Mapping[str, Ratio]]) -> Summary:
    """Sums within a language, then the plain mean over languages: no large language hides a small one."""
    groups: defaultdict[str, list[Mapping[str, Ratio]]] = defaultdict(list)
    for document, value in zip(documents, values, strict=True):
        groups[document.conversation.language].append(value)
    by_language = {
        language: {name: estimate([row[name] for row in rows]) for name in rows[0]}
        for language, rows in sorted(groups.items())
    }
    names = next(iter(by_language.values()))
    return Summary(by_language, {n: macro_average(each[n] for each in by_language.values()) for n in names})


def build_results(results: Sequence[TaskResult], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json; `facts` (config, date, hashes ...) are put in as they are."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for result in results:
        for section, entries in _describe(result).items():
            sections[section].update(entries)
    return {**sections, **facts}


def list_samples(result: TaskResult) -> list[dict[str, Any]]:
    """The rows of samples_TASK.jsonl: what was asked, what came back, what it was worth."""
    return [
        _describe_sample(i, document, graded)
        for i, (document, graded) in enumerate(zip(result.documents, result.graded, strict=True))
    ]


def write_results(folder: Path, built: Mapping[str, Any], results: Sequence[TaskResult]) -> dict[str, Any]:
    """Writes the samples and then results.json, each whole or not at all; returns what results.json now holds.

    Other tasks of an earlier evaluation of the same checkpoint are kept; one of another checkpoint is replaced.
    Raises EvalError if the earlier file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merged = merge_results(read_results(folder), built)
    for result in results:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in list_samples(result))
        _write_whole(folder / f"samples_{result.task.name}.jsonl", "".join(lines))
    _write_whole(folder / RESULTS_FILE, json.dumps(merged, ensure_ascii=False, indent=2) + "\n")
    return merged


def merge_results(earlier: Mapping[str, Any] | None, built: Mapping[str, Any]) -> dict[str, Any]:
    """`built` with the tasks of `earlier` that it does not have, if both are of the same checkpoint.

    A task that both have is taken from `built` alone, with all its languages: numbers of two evaluations never
    share a macro average.
    """
    if earlier is None or _identify(earlier) != _identify(built):
        return dict(built)
    subtasks = earlier.get("group_subtasks", {})
    stale = {name for task in built["group_subtasks"] for name in (task, *subtasks.get(task, ()))}
    kept = {
        section: {name: entry for name, entry in earlier.get(section, {}).items() if name not in stale}
        for section in SECTIONS
    }
    return {**built, **{section: {**kept[section], **built.get(section, {})} for section in SECTIONS}}


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results.json in this folder, None when there is none. Raises EvalError if it is damaged."""
    path = folder / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        return msgspec.convert(json.loads(path.read_bytes()), dict[str, Any])
    except ValueError as error:
        raise EvalError(f"{path} is damaged ({error}); delete it and evaluate that checkpoint again") from error


def _identify(built: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two evaluations share if and only if they are of the same checkpoint."""
    config = built.get("config", {})
    return (
        *(config.get(key) for key in ("checkpoint", "weights", "step", "compute")),
        *(built.get(key) for key in ("tokenizer_hash", "chat_template_sha")),
    )


def _describe(result: TaskResult) -> dict[str, dict[str, Any]]:
    """This task's entries in every section."""
    name, kind = result.task.name, find_kind(result.task)
    summary = summarize(result.documents, [graded.metrics for graded in result.graded])
    baselines = summarize(result.documents, [graded.baselines for graded in result.graded])
    subtasks = {language: f"{name}_{language}" for language in summary.by_language}
    primary, higher_is_better = next(iter(kind.higher_is_better.items()))
    cut = defaultdict(int)
    for document, graded in zip(result.documents, result.graded, strict=True):
        cut[document.conversation.language] += graded.truncated
    macro = _metric_entries(name, summary.macro, sum(cut.values()))
    rows = {subtasks[tag]: _metric_entries(subtasks[tag], each, cut[tag]) for tag, each in summary.by_language.items()}
    scores = {language: each[primary].value for language, each in summary.by_language.items()}
    return {
        "results": {name: macro, **rows},
        "groups": {name: macro},
        "group_subtasks": {name: list(subtasks.values())},
        "configs": {
            name: json.loads(msgspec.json.encode(result.task))
            | {"limit": result.limit, "max_length": result.max_length, "date": result.date}
        },
        "versions": {each: result.task.version for each in (name, *subtasks.values())},
        "n-shot": {each: 0 for each in (name, *subtasks.values())},
        "higher_is_better": {each: kind.higher_is_better for each in (name, *subtasks.values())},
        "n-samples": {
            subtasks[tag]: {"original": result.original[tag], "effective": each[primary].n}
            for tag, each in summary.by_language.items()
        },
        "baselines": {
            name: {key: value.value for key, value in baselines.macro.items()},
            **{
                subtasks[tag]: {key: value.value for key, value in each.items()}
                for tag, each in baselines.by_language.items()
            },
        },
        "macro": {name: {metric: _estimate_entry(value, len(subtasks)) for metric, value in summary.macro.items()}},
        "worst_languages": {name: [list(item) for item in find_worst(scores, higher_is_better=higher_is_better)]},
        "by_task": _describe_by_task(result, primary),
    }


def _describe_by_task(result: TaskResult, primary: str) -> dict[str, Any]:
    """The primary metric's macro average for each `Conversation.task`, where there are several."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, document in enumerate(result.documents):
        groups[document.conversation.task].append(i)
    if len(groups) < 2:
        return {}
    summaries = {
        asked: summarize([result.documents[i] for i in chosen], [result.graded[i].metrics for i in chosen])
        for asked, chosen in sorted(groups.items())
    }
    entries = {
        asked: {primary: _estimate_entry(each.macro[primary], len(each.by_language))}
        for asked, each in summaries.items()
    }
    return {result.task.name: entries}


def _metric_entries(alias: str, estimates: Mapping[str, Estimate], truncated: int) -> dict[str, Any]:
    """A row of `metric,filter` keys. `truncated` counts prompts that lost their left part."""
    row: dict[str, Any] = {
        "alias": alias,
        "sample_len": next(iter(estimates.values())).n,
        "truncated": truncated,
    }
    for metric, value in estimates.items():
        row[f"{metric},none"] = value.value
        row[f"{metric}_stderr,none"] = MISSING if value.stderr is None else value.stderr
    return row


def _estimate_entry(value: Estimate, languages: int) -> dict[str, Any]:
    stderr = MISSING if value.stderr is None else value.stderr
    return {"value": value.value, "stderr": stderr, "n": value.n, "languages": languages}


def _describe_sample(index: int, document: Document, graded: Graded) -> dict[str, Any]:
    doc = msgspec.to_builtins(document.conversation)
    if document.options:
        doc |= {"options": list(document.options), "label": document.label}
    target = document.label if document.options else document.target
    metrics = {name: ratio.numerator / ratio.denominator for name, ratio in graded.metrics.items()}
    return {
        "doc_id": index,
        "doc": doc,
        "target": target,
        "arguments": graded.arguments,
        "resps": graded.responses,
        "filtered_resps": graded.filtered,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(graded.arguments[0][0]),
        "target_hash": _hash(str(target)),
        "language": document.conversation.language,
        "truncated": graded.truncated,
        **metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
