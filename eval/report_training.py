"""How training went: the loss curve with its interruptions, the attempts, and loss by language."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Any

import msgspec
from markupsafe import Markup

from eval import charts
from eval.bars import Number
from eval.charts import Moment, Series, format_number
from eval.report_metrics import is_number
from eval.report_names import format_count, format_percent
from eval.run_files import HeldOutRecord, Results, StartRecord, StepRecord, last_of_each_step

WIDE, NARROW, SMALL = (1080, 340), (380, 280), (300, 170)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the run: where it began, how far its records go, whether it repeated what was before."""

    number: int
    resumed_from: int
    last_step: int | None
    repeated: int
    """Steps that an earlier attempt had recorded already."""
    same_batch: int
    """Of those with a digest on both sides, how many had the same batch."""
    compared: int
    previous_last_step: int | None
    devices: str
    mesh: str


class LossCurve(msgspec.Struct, frozen=True, kw_only=True):
    """The loss chart, for wide and narrow screens, with its numbers in words."""

    wide: Markup
    narrow: Markup
    first: float
    last: float
    """Smoothed loss at the last recorded step."""
    first_text: str
    last_text: str
    not_finite: int
    """Steps whose loss was no finite number."""


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """A small chart of one quantity with its last value (of the speed, the median)."""

    title: str
    chart: Markup
    number: str


def attempts(starts: Sequence[StartRecord], steps: Sequence[StepRecord]) -> list[Attempt]:
    """Each process of the run in order; repeated steps are compared, by digest, with their newest record."""
    by_attempt: dict[int, dict[int, StepRecord]] = {}
    for record in steps:
        by_attempt.setdefault(record.attempt, {})[record.step] = record
    found, before = [], dict[int, StepRecord]()
    for start in starts:
        own = by_attempt.get(start.attempt, {})
        both = [(record.digest, before[step].digest) for step, record in own.items() if step in before]
        pairs = [(new, old) for new, old in both if new is not None and old is not None]
        found.append(
            Attempt(
                number=start.attempt,
                resumed_from=start.step,
                last_step=max(own, default=None),
                repeated=len(both),
                same_batch=sum(new == old for new, old in pairs),
                compared=len(pairs),
                previous_last_step=max(before, default=None),
                devices=plain(start.devices),
                mesh=plain(start.mesh),
            )
        )
        before |= own
    return found


def plain(value: Any) -> str:
    """A JSON value in one line: `data 8, model 1` for a mapping, text as it is, an em dash for nothing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(plain(inner) for inner in value) or "–"
    return value if isinstance(value, str) else json.dumps(value)


def loss_curve(
    steps: Sequence[StepRecord],
    tries: Sequence[Attempt],
    evaluations: Mapping[int, Results],
    held_out: Sequence[HeldOutRecord] = (),
    averaged: Mapping[int, Results] = MappingProxyType({}),
) -> LossCurve | None:
    """The loss of every step, raw and smoothed, with resumes and held-out losses; None without a loss."""
    kept = last_of_each_step([record for record in steps if record.loss is not None])
    losses = [record.loss if record.loss is not None else math.nan for record in kept]
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return None
    weights = [0.0 if record.skipped else 1.0 if record.weight is None else record.weight for record in kept]
    smoothed = charts.smooth(losses, weights, half_life=max(1.0, len(kept) / 100))
    xs = [float(record.step) for record in kept]
    lines = [
        Series(name="loss", style="raw", xs=xs, ys=losses),
        Series(name="smoothed", style="smoothed", xs=xs, ys=smoothed),
        *_held_out_losses(evaluations, held_out, last_step=xs[-1]),
        *_held_out_losses(averaged, (), last_step=xs[-1], note=", EMA", style="heldout ema"),
    ]
    description = (
        f"Loss falls or rises from {format_number(finite[0])} at step {xs[0]:,.0f} "
        f"to {format_number(smoothed[-1])} (smoothed) at step {xs[-1]:,.0f}."
    ).replace("falls or rises", "falls" if smoothed[-1] <= finite[0] else "rises")
    wide, narrow = (
        charts.line_chart(
            lines,
            name=f"loss-{style}",
            style=style,
            title="Training loss by step",
            description=description,
            size=size,
            moments=_moments(tries, in_words=len(tries) <= most_words),
            y_from_zero=min(finite) > 0,
        )
        for style, size, most_words in (("wide", WIDE, 4), ("narrow", NARROW, 2))
    )
    return LossCurve(
        wide=wide,
        narrow=narrow,
        first=finite[0],
        last=smoothed[-1],
        first_text=format_number(finite[0]),
        last_text=format_number(smoothed[-1]),
        not_finite=len(losses) - len(finite),
    )


def _moments(tries: Sequence[Attempt], *, in_words: bool) -> list[Moment]:
    """Where later attempts resumed, shaded up to where the run had been; labels are words or just numbers."""
    moments = []
    for attempt in tries[1:]:
        reached = max(attempt.resumed_from, attempt.previous_last_step or 0)
        moments.append(
            Moment(
                x=attempt.resumed_from,
                until=reached,
                label=f"resumed at {attempt.resumed_from}" if in_words else str(attempt.number),
                detail=f"attempt {attempt.number} resumed from step {attempt.resumed_from}; "
                f"before it the run had recorded step {reached}",
            )
        )
    return moments


def _held_out_losses(
    evaluations: Mapping[int, Results],
    held_out: Sequence[HeldOutRecord],
    *,
    last_step: Number,
    note: str = "",
    style: str = "heldout",
) -> list[Series]:
    """Macro-averaged held-out loss: of the run's own rows, and of each task that reports one, by step."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in last_of_each_step(held_out):
        means = [total / record.weight[tag] for tag, total in record.loss_sum.items() if record.weight.get(tag, 0) > 0]
        if means and record.step <= last_step:
            points.setdefault("own rows", []).append((record.step, sum(means) / len(means)))
    for step, results in evaluations.items():
        for task in results.group_subtasks:
            loss = results.groups.get(task, {}).get("loss,none")
            if is_number(loss) and step <= last_step:
                points.setdefault(task, []).append((step, loss))  # type: ignore[arg-type]
    return [
        Series(
            name=f"held-out loss ({task}{note})",
            style=style,
            xs=[s for s, _ in found],
            ys=[y for _, y in found],
            dots=True,
        )
        for task, found in points.items()
    ]


def panels(steps: Sequence[StepRecord]) -> list[Panel]:
    """Small charts of learning rate, gradient norm, speed and padding, for what the records hold."""
    kept = last_of_each_step(steps)
    wanted = (
        ("learning_rate", "Learning rate", format_number),
        ("grad_norm", "Gradient norm", format_number),
        ("tokens_per_s", "Real tokens/s", format_count),
        ("mfu", "MFU", format_percent),
        ("padding", "Padding share", format_percent),
    )
    drawn = []
    for field, title, text in wanted:
        points = [(float(r.step), value) for r in kept if (value := getattr(r, field)) is not None]
        if not any(math.isfinite(y) for _, y in points):
            continue
        xs, ys = [x for x, _ in points], [y for _, y in points]
        line = Series(name=title.lower(), style="smoothed", xs=xs, ys=ys)
        described = f"From {text(ys[0])} at step {xs[0]:,.0f} to {text(ys[-1])} at step {xs[-1]:,.0f}."
        chart = charts.line_chart(
            [line], name=field, title=title, description=described, size=SMALL, y_from_zero=min(ys) >= 0
        )
        # One late or early record makes the last speed a poor summary of a run.
        is_speed = field in ("tokens_per_s", "mfu")
        shown = f"median {text(median(ys))}" if is_speed else text(ys[-1])
        drawn.append(Panel(title=title, chart=chart, number=shown))
    return drawn
