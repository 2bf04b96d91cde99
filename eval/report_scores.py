"""Scores by language as the report shows them: sorted, beside their baselines, the worst five marked."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypeGuard

import msgspec
from markupsafe import Markup

from eval import bars
from eval.bars import Mark, Number
from eval.report_metrics import (
    is_higher_better,
    is_number,
    macro_score,
    metric_name,
    primary_metric,
    score_text,
    subtask_language,
)
from eval.report_names import Language
from eval.run_files import Results

WORST = 5
FLAT_LIST = 60
SMALL_SCRIPT = 3
AVERAGED = "ema"
"""Kind of the mark of the average of parameters."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One language's score on a task."""

    language: Language
    value: float
    text: str
    error_text: str
    samples: int | None
    marks: tuple[Mark, ...]
    averaged_text: str
    """The same of the average of parameters; empty without one that was asked the same."""
    is_worst: bool
    bar: Markup


class ScriptScores(msgspec.Struct, frozen=True, kw_only=True):
    """The languages of one script."""

    script: str
    scores: tuple[Score, ...]
    mean_text: str
    best_text: str
    worst_text: str
    strip: Markup


class TaskScores(msgspec.Struct, frozen=True, kw_only=True):
    """One task: macro average and every language, best first."""

    task: str
    metric: str
    higher_is_better: bool
    is_share: bool
    """Scores are shares of one, shown as percentages."""
    macro: float
    macro_text: str
    macro_is_computed: bool
    """True where the results gave no macro average, and the report took the mean itself."""
    baselines: tuple[tuple[str, str], ...]
    """(kind, number as text) of baselines, each averaged over languages where it differs by language."""
    has_errors: bool
    """Some language has a standard error."""
    asked: tuple[tuple[str, str], ...]
    """(what is asked, macro average as text) of tasks that ask several things."""
    scores: tuple[Score, ...]
    worst: tuple[Score, ...]
    scripts: tuple[ScriptScores, ...]
    groups: tuple[ScriptScores, ...]
    """The scripts again when there are too many languages for one list; small scripts share a group."""
    other_metrics: tuple[tuple[str, str], ...]
    scale_text: str
    samples: int | None
    version: str
    averaged: "TaskScores | None"
    """The task as the average of parameters at the same step does it."""


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """Evaluations whose scores are shown beside a step's own."""

    untrained: Results | None = None
    """Of step 0."""
    averaged: Results | None = None
    """Of the average of parameters at the same step."""


def task_scores(results: Results, *, beside: Beside, names: Mapping[str, Language]) -> list[TaskScores]:
    """A view of each task that has scores by language."""
    views = [_task(task, results, beside=beside, names=names) for task in results.group_subtasks]
    return [view for view in views if view is not None]


class _Raw(msgspec.Struct, frozen=True, kw_only=True):
    tag: str
    value: float
    error: float | None
    samples: int | None
    marks: tuple[Mark, ...]


def _task(task: str, results: Results, *, beside: Beside, names: Mapping[str, Language]) -> TaskScores | None:
    metric = primary_metric(results, task)
    raw = [] if metric is None else _raw_scores(task, metric, results, beside)
    if metric is None or not raw:
        return None
    higher = is_higher_better(results, task, metric)
    is_share = higher and all(0 <= score.value <= 1 for score in raw)
    scale = 1.0 if is_share else _open_scale(raw)
    raw.sort(key=lambda score: (-score.value if higher else score.value, score.tag))
    worst = _worst_tags(raw)
    scores = tuple(
        _score(entry, names[entry.tag], scale=scale, is_share=is_share, is_worst=entry.tag in worst) for entry in raw
    )
    given = macro_score(results, task, metric)
    macro = fmean(score.value for score in raw) if given is None else given
    scripts = _by_script(scores, scale=scale, is_share=is_share, higher=higher)
    counted = [score.samples for score in raw if score.samples is not None]
    return TaskScores(
        task=task,
        metric=metric_name(metric),
        higher_is_better=higher,
        is_share=is_share,
        macro=macro,
        macro_text=score_text(macro, is_share=is_share),
        macro_is_computed=given is None,
        baselines=_baseline_texts(raw, is_share=is_share),
        has_errors=any(score.error for score in raw),
        asked=_asked(results, task, metric.split(",")[0]),
        scores=scores,
        worst=tuple(score for score in reversed(scores) if score.is_worst),
        scripts=scripts,
        groups=_groups(scripts, scores) if len(scores) > FLAT_LIST else (),
        other_metrics=_other_metrics(results, task, metric),
        scale_text=score_text(scale, is_share=is_share),
        samples=sum(counted) if counted else None,
        version=str(results.versions.get(task, "")),
        averaged=_task(task, beside.averaged, beside=Beside(), names=names) if _has(beside.averaged, task) else None,
    )


def _has(results: Results | None, task: str) -> TypeGuard[Results]:
    return results is not None and task in results.group_subtasks


def _raw_scores(task: str, metric: str, results: Results, beside: Beside) -> list[_Raw]:
    raw = []
    others = {"untrained": beside.untrained, AVERAGED: beside.averaged}
    for subtask in results.group_subtasks[task]:
        entry = results.results.get(subtask, {})
        if not is_number(entry.get(metric)):
            continue
        name, _, filter_name = metric.partition(",")
        error = entry.get(f"{name}_stderr,{filter_name}")
        known = {**results.baselines.get(task, {}), **results.baselines.get(subtask, {})}
        for kind, other in others.items():
            if other is not None and _ask_the_same(task, subtask, results, other):
                known[kind] = other.results.get(subtask, {}).get(metric)
        raw.append(
            _Raw(
                tag=subtask_language(task, subtask),
                value=entry[metric],
                error=error if is_number(error) else None,
                samples=results.n_samples.get(subtask, {}).get("effective"),
                marks=tuple(Mark(kind=kind, value=value) for kind, value in known.items() if is_number(value)),
            )
        )
    return raw


def _ask_the_same(task: str, subtask: str, one: Results, other: Results) -> bool:
    """Whether both evaluations are of the same version of the task and as many documents."""
    versions = [each.versions.get(subtask, each.versions.get(task)) for each in (one, other)]
    counts = [each.n_samples.get(subtask, {}).get("effective") for each in (one, other)]
    return versions[0] == versions[1] and counts[0] == counts[1]


def _open_scale(raw: Sequence[_Raw]) -> Number:
    """Up to the largest score or baseline, but never so far that a distant baseline flattens all bars."""
    largest = max(score.value for score in raw)
    return min(max([largest, *(mark.value for score in raw for mark in score.marks)]), 2.5 * largest)


def _worst_tags(ordered: Sequence[_Raw]) -> set[str]:
    """The last five of best-first scores; fewer when there are few, none when all are equal."""
    count = min(WORST, len(ordered) // 2)
    return {s.tag for s in ordered[len(ordered) - count :] if s.value != ordered[0].value}


def _score(raw: _Raw, language: Language, *, scale: Number, is_share: bool, is_worst: bool) -> Score:
    averaged = [score_text(mark.value, is_share=is_share) for mark in raw.marks if mark.kind == AVERAGED]
    return Score(
        language=language,
        value=raw.value,
        text=score_text(raw.value, is_share=is_share),
        error_text="" if raw.error is None else f"± {score_text(raw.error, is_share=is_share)}",
        samples=raw.samples,
        marks=raw.marks,
        averaged_text="".join(averaged),
        is_worst=is_worst,
        bar=bars.bar(raw.value, scale=scale, marks=raw.marks, error=raw.error, style="worst" if is_worst else "plain"),
    )


def _baseline_texts(raw: Sequence[_Raw], *, is_share: bool) -> tuple[tuple[str, str], ...]:
    values: dict[str, list[float]] = {}
    for score in raw:
        for mark in score.marks:
            if mark.kind != AVERAGED:
                values.setdefault(mark.kind, []).append(mark.value)
    return tuple((kind, score_text(fmean(found), is_share=is_share)) for kind, found in values.items())


def _asked(results: Results, task: str, metric: str) -> tuple[tuple[str, str], ...]:
    entries = {name: row.get(metric) for name, row in results.by_task.get(task, {}).items()}
    values = {name: entry["value"] for name, entry in entries.items() if isinstance(entry, dict) and "value" in entry}
    return tuple((name, _any_text(results, task, metric, value)) for name, value in values.items() if is_number(value))


def _other_metrics(results: Results, task: str, metric: str) -> tuple[tuple[str, str], ...]:
    entry = results.groups.get(task, {})
    others = [key for key in entry if "," in key and "_stderr" not in key and key != metric and is_number(entry[key])]
    return tuple((metric_name(key), _any_text(results, task, key, entry[key])) for key in others)


def _any_text(results: Results, task: str, metric: str, value: Number) -> str:
    return score_text(value, is_share=is_higher_better(results, task, metric) and 0 <= value <= 1)


def _by_script(scores: Sequence[Score], *, scale: Number, is_share: bool, higher: bool) -> tuple[ScriptScores, ...]:
    members: dict[str, list[Score]] = {}
    for score in scores:
        members.setdefault(score.language.script, []).append(score)
    means = {script: fmean(s.value for s in inside) for script, inside in members.items()}
    order = sorted(members, key=lambda script: (-means[script] if higher else means[script], script))
    shared = [mark for mark in scores[0].marks if all(mark in score.marks for score in scores)]
    return tuple(
        _script(script, members[script], scale=scale, is_share=is_share, mean=means[script], marks=shared)
        for script in order
    )


def _script(
    script: str,
    scores: Sequence[Score],
    *,
    scale: Number,
    is_share: bool,
    mean: Number,
    marks: Sequence[Mark],
) -> ScriptScores:
    dots = [
        (s.value, f"{s.language.english} ({s.language.tag}): {s.text}", "worst" if s.is_worst else "plain")
        for s in scores
    ]
    return ScriptScores(
        script=script,
        scores=tuple(scores),
        mean_text=score_text(mean, is_share=is_share),
        best_text=scores[0].text,
        worst_text=scores[-1].text,
        strip=bars.strip(dots, scale=scale, marks=marks, mean=mean if len(scores) > 1 else None),
    )


def _groups(scripts: Sequence[ScriptScores], scores: Sequence[Score]) -> tuple[ScriptScores, ...]:
    """Scripts by number of languages, those with one or two languages together at the end."""
    large = sorted((s for s in scripts if len(s.scores) >= SMALL_SCRIPT), key=lambda s: (-len(s.scores), s.script))
    rest = tuple(score for score in scores if score.language.script not in {script.script for script in large})
    if not rest:
        return tuple(large)
    together = ScriptScores(
        script="Other scripts", scores=rest, mean_text="", best_text="", worst_text="", strip=Markup("")
    )
    return (*large, together)
