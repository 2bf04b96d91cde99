"""Draws a run directory as one HTML file that needs nothing else: no network, no fonts, no libraries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from eval import (
    faults,
    goodput,
    report_left_out,
    report_losses,
    report_metrics,
    report_mixture,
    report_samples,
    report_scores,
    report_statistics,
    report_training,
)
from eval.bars import mark_shape
from eval.charts import format_number
from eval.goodput import Goodput
from eval.report_metrics import is_number
from eval.report_names import (
    Language,
    describe_languages,
    format_count,
    format_duration,
    format_percent,
    text_direction,
)
from eval.report_scores import Beside, TaskScores
from eval.report_training import Attempt, LossCurve, plain
from eval.run_files import Results, RunFiles, last_of_each_step, read_run

MAX_TASK_TILES = 4
BASELINE_NAMES = {
    "chance": "chance",
    "majority": "always the most frequent answer",
    "untrained": "the untrained model",
    "ema": "the average of the parameters over steps, EMA",
    "ignore_rule": "ignoring the rule",
    "uniform": "all tokens equally likely",
}


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """One headline number."""

    label: str
    value: str
    detail: str = ""


class StepScores(msgspec.Struct, frozen=True, kw_only=True):
    """Macro averages of one evaluated step, in the order of the tasks shown."""

    step: int
    is_averaged: bool
    """Of the average of parameters."""
    texts: tuple[str, ...]


def write_report(run_dir: Path) -> Path:
    """Writes RUN/report.html from whatever the run directory holds and returns its path.

    Parts that are not there yet are named as missing in their place. Raises ValueError when `run_dir` is no
    run directory.
    """
    run_dir = Path(run_dir)
    page = render_report(read_run(run_dir))
    path = run_dir / "report.html"
    # Answers of a model may hold lone surrogates, which UTF-8 cannot; they become question marks.
    path.write_bytes(page.encode("utf-8", errors="replace"))
    return path


def render_report(run: RunFiles) -> str:
    """The report as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(_page(run))


def _page(run: RunFiles) -> dict[str, Any]:
    names = describe_languages(_all_tags(run))
    step, results, beside = _shown_evaluation(run)
    is_averaged = step is not None and step not in run.evaluations
    tasks = report_scores.task_scores(results, beside=beside, names=names) if results else []
    tries = report_training.attempts(run.starts, run.steps)
    curve = report_training.loss_curve(run.steps, tries, run.evaluations, run.held_out, run.averaged)
    cells = run.plan.cells if run.plan else ()
    by_source, spent = report_losses.of_sources(run.languages), goodput.measure(run)
    trained = report_mixture.trained_tokens(run.languages)
    samples = [_samples(run, results, task, names) for task in sorted(run.samples)] if results else []
    return {
        "run": run,
        "names": names,
        "step": step,
        "results": results,
        "is_averaged": is_averaged,
        "last_step": _last_step(run),
        "planned_steps": _planned_steps(run),
        "tiles": _tiles(run, tasks, curve, is_averaged=is_averaged, names=names, trained=trained, spent=spent),
        "notes": [*run.problems, *_warnings(tries, curve, run), *faults.describe_faults(run.steps, run.failed_saves)],
        "curve": curve,
        "panels": report_training.panels(run.steps),
        "attempts": tries,
        "tasks": tasks,
        "history": _history(run, tasks),
        "goodput": spent,
        "goodput_parts": goodput.PARTS,
        "loss_rows": report_losses.loss_rows(run.languages, names),
        "source_losses": report_losses.loss_rows(by_source, {}),
        "held_out": report_losses.held_out_rows(run.held_out, names),
        "mixture": report_mixture.mixture_rows(cells, trained, names),
        "sources": report_mixture.source_rows(cells, report_mixture.trained_tokens(by_source)),
        "fertility": report_mixture.fertility_rows(cells, names),
        "statistics": report_statistics.statistics_section(run.statistics, names),
        "left_out": report_left_out.left_out(run, names),
        "samples": [found for found in samples if found is not None],
        "card": _card_rows({key: value for key, value in (run.card or {}).items() if key != "recipe"}),
        "mark_shape": mark_shape,
        "baseline_names": BASELINE_NAMES,
        "count": format_count,
        "percent": format_percent,
        "duration": format_duration,
        "direction": text_direction,
        "plain": plain,
    }


def _all_tags(run: RunFiles) -> set[str]:
    tags = {cell.language for cell in run.plan.cells} | {*run.plan.dropped, *run.plan.bad_rows} if run.plan else set()
    tags |= {cell.language for cell in run.statistics.cells} if run.statistics else set()
    tags |= {tag for by_language in report_left_out.count_cleaned(run.cleaning).values() for tag in by_language}
    for record in run.languages:
        tags |= {*record.weight, *record.tokens}
    tags |= {tag for record in run.held_out for tag in record.loss_sum}
    for results in (*run.evaluations.values(), *run.averaged.values()):
        for task, subtasks in results.group_subtasks.items():
            tags |= {report_metrics.subtask_language(task, subtask) for subtask in subtasks}
    for rows in run.samples.values():
        tags |= {row["language"] for row in rows if isinstance(row.get("language"), str)}
    return tags


def _shown_evaluation(run: RunFiles) -> tuple[int | None, Results | None, Beside]:
    """The newest evaluation, and what its scores are shown beside. The average of parameters is shown by itself only
    at a step that nothing else was evaluated at.
    """
    step = max([*run.evaluations, *run.averaged], default=None)
    untrained = run.evaluations.get(0) if step != 0 else None
    if step is None or step not in run.evaluations:
        return step, None if step is None else run.averaged[step], Beside(untrained=untrained)
    return step, run.evaluations[step], Beside(untrained=untrained, averaged=run.averaged.get(step))


def _last_step(run: RunFiles) -> int | None:
    recorded = max((record.step for record in run.steps), default=None)
    given = (run.card or {}).get("step")
    return recorded if recorded is not None else given if isinstance(given, int) else None


def _planned_steps(run: RunFiles) -> int | None:
    given = (run.card or {}).get("steps")
    return given if isinstance(given, int) else run.plan.steps if run.plan else None


def _tiles(
    run: RunFiles,
    tasks: Sequence[TaskScores],
    curve: LossCurve | None,
    *,
    is_averaged: bool,
    names: Mapping[str, Language],
    trained: Mapping[str, float],
    spent: Goodput | None,
) -> list[Tile]:
    tiles = [_task_tile(task, ", EMA" * is_averaged) for task in tasks[:MAX_TASK_TILES]]
    if curve is not None:
        tiles.append(
            Tile(
                label="Training loss",
                value=format_number(curve.last),
                detail=f"from {format_number(curve.first)}, smoothed",
            )
        )
    if trained:
        scripts = {names[tag].script for tag in trained}
        tiles.append(Tile(label="Languages trained", value=str(len(trained)), detail=f"in {len(scripts)} scripts"))
    made = [record for record in last_of_each_step(run.steps) if record.skipped is None]
    weights = [record.weight for record in made if record.weight is not None]
    if weights:
        served = f"of {format_count(sum(trained.values()))} served" if trained else ""
        tiles.append(Tile(label="Trained tokens", value=format_count(sum(weights)), detail=served))
    card = run.card or {}
    if is_number(card.get("train_seconds")):
        tries = card.get("attempts")
        detail = f"in {tries} attempt{'s' if tries != 1 else ''}" if isinstance(tries, int) else ""
        tiles.append(Tile(label="Training time", value=format_duration(card["train_seconds"]), detail=detail))
    if spent is not None:
        detail = f"useful steps of {format_duration(spent.wall_s)}, restarts included"
        tiles.append(Tile(label="Goodput", value=format_percent(spent.share), detail=detail))
    return tiles


def _task_tile(task: TaskScores, note: str) -> Tile:
    known = [f"{kind.replace('_', ' ')}\N{NO-BREAK SPACE}{text}" for kind, text in task.baselines]
    if task.averaged is not None:
        known.append(f"EMA\N{NO-BREAK SPACE}{task.averaged.macro_text}")
    detail = " · ".join([f"mean of {len(task.scores)} languages", *known])
    return Tile(label=f"{task.task}, {task.metric}{note}", value=task.macro_text, detail=detail)


def _warnings(tries: Sequence[Attempt], curve: LossCurve | None, run: RunFiles) -> list[str]:
    notes = [
        f"Attempt {attempt.number} repeated {attempt.compared} steps, and "
        f"{attempt.compared - attempt.same_batch} of them had another batch than before: "
        "the run is not one stream of data."
        for attempt in tries
        if attempt.same_batch < attempt.compared
    ]
    if curve is not None and curve.not_finite:
        notes.append(f"The loss of {curve.not_finite} recorded steps is no finite number; the curve has gaps there.")
    if run.samples and not run.evaluations and not run.averaged:
        notes.append("There are sample answers without a results.json to judge them by.")
    return notes


def _history(run: RunFiles, tasks: Sequence[TaskScores]) -> list[StepScores]:
    """Macro averages by evaluated step, when there is more than one."""
    found = [(step, False, results) for step, results in run.evaluations.items()]
    found += [(step, True, results) for step, results in run.averaged.items()]
    if len(found) < 2:
        return []
    return [
        StepScores(step=step, is_averaged=is_averaged, texts=tuple(_macro_text(results, task) for task in tasks))
        for step, is_averaged, results in sorted(found, key=lambda each: each[:2])
    ]


def _macro_text(results: Results, task: TaskScores) -> str:
    metric = report_metrics.primary_metric(results, task.task)
    value = None if metric is None else report_metrics.macro_score(results, task.task, metric)
    return "–" if value is None else report_metrics.score_text(value, is_share=task.is_share)


def _samples(
    run: RunFiles, results: Results, task: str, names: Mapping[str, Language]
) -> report_samples.TaskSamples | None:
    metric = report_metrics.primary_metric(results, task)
    if metric is None or not report_metrics.is_higher_better(results, task, metric):
        return None
    return report_samples.task_samples(task, run.samples[task], metric=metric, names=names)


def _card_rows(card: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The run card as (dotted key, value in one line)."""
    rows: list[tuple[str, str]] = []
    for key, value in card.items():
        if isinstance(value, dict) and value:
            rows += _card_rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", plain(value)))
    return rows
