"""How to read lm-evaluation-harness's tables: which metric counts, which way is up, how it is written."""

import math
from typing import Any

from eval.bars import Number
from eval.report_names import format_percent
from eval.run_files import Results

METRIC_NAMES = {"acc": "accuracy", "acc_norm": "accuracy, per character", "acc_bytes": "accuracy, per byte"}
LOWER_IS_BETTER = ("loss", "bits", "perplexity", "error")


def subtask_language(task: str, subtask: str) -> str:
    """The tag in a subtask's name: `fr` of `months_fr` in task `months`."""
    return subtask.removeprefix(task).removeprefix("_")


def primary_metric(results: Results, task: str) -> str | None:
    """The metric a task is judged by: the first declared in higher_is_better, else the first reported."""
    subtasks = [name for name in results.group_subtasks.get(task, []) if name in results.results]
    entry = results.results[subtasks[0]] if subtasks else results.results.get(task, {})
    keys = [key for key in entry if "," in key and "_stderr" not in key and is_number(entry[key])]
    declared = [metric for name in (task, *subtasks[:1]) for metric in results.higher_is_better.get(name, {})]
    ranked = [key for metric in declared for key in keys if key.split(",")[0] == metric]
    return next(iter([*ranked, *keys]), None)


def is_higher_better(results: Results, task: str, metric: str) -> bool:
    """As the results declare it; without a declaration, judged by the metric's name."""
    name = metric.split(",")[0]
    for source in (task, *results.group_subtasks.get(task, [])[:1]):
        declared = results.higher_is_better.get(source, {}).get(name)
        if declared is not None:
            return declared
    return not any(word in name for word in LOWER_IS_BETTER)


def metric_name(metric: str) -> str:
    """A metric's key in words: `exact match` for `exact_match,none`."""
    name = metric.split(",")[0]
    return METRIC_NAMES.get(name, name.replace("_", " "))


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def score_text(value: Number, *, is_share: bool) -> str:
    """A percentage for shares, else a decimal with three places, or one above a hundred."""
    return format_percent(value) if is_share else f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def macro_score(results: Results, task: str, metric: str) -> Number | None:
    """The macro average the results give, or None."""
    for table in (results.groups, results.results):
        value = table.get(task, {}).get(metric)
        if is_number(value):
            return value
    return None
