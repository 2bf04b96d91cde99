"""The terminal's view of results.json: a table by language for each task."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from data.languages import own_name, script_of
from eval.results import MISSING

MOST_ROWS = 48
"""Languages shown at most; of more, the worst and the best half of this."""
WIDEST_NAME = 20


def draw_table(
    built: Mapping[str, Any], task: str, *, beside: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> RenderableType:
    """One task: macro average, then languages from worst to best, beside baselines and other evaluations.

    `beside` are other results.json, such as step 0's, by the name of their column, which those that have this task
    get; scores show where they asked as many documents.
    """
    metric = next(iter(built["higher_is_better"][task]))
    beside = {name: other for name, other in beside.items() if task in other["group_subtasks"]}
    baselines = list(built["baselines"][task])
    table = _make_table([metric, "stderr", *baselines, *beside])
    table.title = f"{task}, version {built['versions'][task]}"

    def numbers(key: str) -> list[str]:
        row = built["results"][key]
        values = [row[f"{metric},none"], row[f"{metric}_stderr,none"]]
        values += [built["baselines"][key][name] for name in baselines]
        values += [_other_score(built, other, key, metric) for other in beside.values()]
        return [str(row["sample_len"]), *map(_format, values)]

    count = len(built["group_subtasks"][task])
    table.add_row("", f"macro average of {count}", "", *numbers(task), style="bold", end_section=True)
    for key in _pick_rows(built, task, metric):
        if key is None:
            table.add_row("", f"({count - MOST_ROWS} more)")
        else:
            tag = key.removeprefix(f"{task}_")
            table.add_row(Text(tag), Text(own_name(tag)), script_of(tag), *numbers(key))
    return Group(table, *_notes(built, task))


def _make_table(numbers: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tag", no_wrap=True)
    table.add_column("language", no_wrap=True, max_width=WIDEST_NAME, overflow="ellipsis")
    table.add_column("script", no_wrap=True)
    for name in ("n", *numbers):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    return table


def _pick_rows(built: Mapping[str, Any], task: str, metric: str) -> Iterator[str | None]:
    """Subtasks from worst to best; a None where some are left out."""
    sign = 1 if built["higher_is_better"][task][metric] else -1
    scores = {key: sign * built["results"][key][f"{metric},none"] for key in built["group_subtasks"][task]}
    keys = sorted(scores, key=lambda key: (scores[key], key))
    if len(keys) <= MOST_ROWS:
        yield from keys
        return
    yield from keys[: MOST_ROWS // 2]
    yield None
    yield from keys[-MOST_ROWS // 2 :]


def _other_score(built: Mapping[str, Any], other: Mapping[str, Any], key: str, metric: str) -> float | str:
    """Another evaluation's score if it comes from the same version of the task and as many documents, else a dash."""
    same_version = other["versions"].get(key) == built["versions"][key]
    row = other["results"].get(key, {})
    if not same_version or row.get("sample_len") != built["results"][key]["sample_len"]:
        return "-"
    return row[f"{metric},none"]


def _notes(built: Mapping[str, Any], task: str) -> Iterator[Text]:
    """Lines under the table: the worst languages, groups within the task, other metrics, what was cut."""
    worst = (f"{language} {_format(score)}" for language, score in built["worst_languages"][task])
    yield Text("worst: " + ", ".join(worst))
    groups = built["by_task"].get(task, {})
    if groups:
        parts = (f"{name} {_format(next(iter(entry.values()))['value'])}" for name, entry in groups.items())
        yield Text("by what is asked: " + ", ".join(parts))
    _, *others = built["macro"][task].items()
    yield Text("macro averages: " + ", ".join(f"{name} {_format(entry['value'])}" for name, entry in others))
    truncated = built["results"][task]["truncated"]
    if truncated:
        yield Text(f"{truncated} prompts were longer than max_length and lost their left part", style="yellow")


def _format(value: float | str) -> str:
    if isinstance(value, str):
        return "" if value == MISSING else value
    return f"{value:.3f}"
