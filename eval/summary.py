"""A run in a few numbers, taken from its files alone: what two runs are compared by."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from eval import faults, goodput, report_losses, report_metrics
from eval.run_files import HeldOutRecord, Results, RunFiles, StepRecord, last_of_each_step


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of one run; a number that its files do not tell is not in the tables."""

    numbers: dict[str, float]
    """By what they are, with unit."""
    faults: dict[str, float]
    """Skipped steps by reason, and failed saves; what did not occur is not in it."""
    loss_by_language: dict[str, float]
    """Of training, in nats per trained token, over the last tenth of the steps."""
    held_out_by_language: dict[str, float]
    """The last that was seen."""
    scores: dict[str, float]
    """Macro averages of the newest evaluation, by task and metric; and of the newest one of the EMA of parameters."""


def summarise(run: RunFiles) -> RunSummary:
    """The numbers of a run, finished or not."""
    steps = last_of_each_step(run.steps)
    rows = report_losses.loss_rows(run.languages, {})
    held_out = _last_held_out(run.held_out)
    spent = goodput.measure(run)
    plain = [record for record in steps if not record.compiled]
    found = {
        "steps": float(steps[-1].step) if steps else None,
        "loss, last tenth of the steps": last_loss(steps),
        "held-out loss, mean of languages": _mean(list(held_out.values())),
        "real tokens/s, median": _median([record.tokens_per_s for record in plain]),
        "seconds a step, median": _median([record.step_s for record in plain]),
        "padding": _mean([record.padding for record in steps if record.padding is not None]),
        "MFU, median": _median([record.mfu for record in plain]),
        "goodput": None if spent is None else spent.share,
        "wall time, s": None if spent is None else spent.wall_s,
        "attempts": float(len(run.starts)) if run.starts else None,
    }
    return RunSummary(
        numbers={name: value for name, value in found.items() if value is not None},
        faults=faults.count_faults(run.steps, run.failed_saves),
        loss_by_language={row.label: row.last for row in rows if row.last is not None},
        held_out_by_language=held_out,
        scores=_scores(run.evaluations) | _scores(run.averaged, ", EMA"),
    )


def last_loss(steps: Sequence[StepRecord]) -> float | None:
    """Mean loss of the trained tokens of the last tenth of the steps; None without any. Skipped steps trained none."""
    if not steps:
        return None
    made = [record for record in steps if record.loss is not None and record.skipped is None]
    late = [record for record in made if record.step > 0.9 * steps[-1].step]
    weights = [1.0 if record.weight is None else record.weight for record in late]
    total = math.fsum((record.loss or 0.0) * weight for record, weight in zip(late, weights, strict=True))
    return total / math.fsum(weights) if math.fsum(weights) > 0 else None


def _last_held_out(records: Sequence[HeldOutRecord]) -> dict[str, float]:
    kept = last_of_each_step(records)
    if not kept:
        return {}
    return {tag: kept[-1].loss_sum[tag] / weight for tag, weight in kept[-1].weight.items() if weight > 0}


def _scores(evaluations: Mapping[int, Results], note: str = "") -> dict[str, float]:
    if not evaluations:
        return {}
    results, scores = evaluations[max(evaluations)], {}
    for task in results.group_subtasks:
        metric = report_metrics.primary_metric(results, task)
        value = None if metric is None else report_metrics.macro_score(results, task, metric)
        if metric is not None and value is not None:
            scores[f"{task}, {report_metrics.metric_name(metric)}{note}"] = float(value)
    return scores


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return median(known) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
