"""Loss by language and source: in training, with how strongly each pulls at the model, and on held-out rows."""

from collections.abc import Mapping, Sequence

import msgspec
from markupsafe import Markup

from eval import bars, charts
from eval.bars import Number
from eval.report_names import Language, format_count, format_percent
from eval.run_files import HeldOutRecord, LanguagesRecord, last_of_each_step


class LossRow(msgspec.Struct, frozen=True, kw_only=True):
    """Training loss of one language or source over the first and the last tenth of the steps, in nats per token."""

    label: str
    language: Language | None
    """None: a source."""
    first: float | None
    last: float | None
    trained_tokens: float
    trained_share: float
    gradient_share: float | None
    """Of the sum of all gradients' lengths; None where they were not recorded."""
    texts: dict[str, str]
    spark: Markup


class HeldOutRow(msgspec.Struct, frozen=True, kw_only=True):
    """Held-out loss of one language while training, in nats per token."""

    language: Language
    first: float
    best: float
    best_step: int
    last: float
    is_rising: bool
    """Whether the last is more than 2% above the best: it may have been trained too long."""
    spark: Markup


def loss_rows(records: Sequence[LanguagesRecord], names: Mapping[str, Language]) -> list[LossRow]:
    """Training loss by language, or by source where no language is named, highest last loss first.

    Sums are added before the one division.
    """
    kept = last_of_each_step(records)
    if not kept:
        return []
    tenth = max(1.0, kept[-1].step / 10)
    early = [record for record in kept if record.step <= tenth] or kept[:1]
    late = [record for record in kept if record.step > kept[-1].step - tenth]
    labels = {label for record in kept for label, weight in record.weight.items() if label and weight > 0}
    all_trained = sum(weight for record in kept for weight in record.weight.values())
    all_gradient = sum(length for record in kept for length in record.gradient.values())
    rows = []
    for label in labels:
        trained = sum(record.weight.get(label, 0.0) for record in kept)
        pulled = sum(record.gradient.get(label, 0.0) for record in kept)
        share = pulled / all_gradient if all_gradient > 0 else None
        losses = mean_loss(early, label), mean_loss(late, label)
        course = [loss for record in kept if (loss := mean_loss([record], label)) is not None]
        rows.append(
            LossRow(
                label=label,
                language=names.get(label),
                first=losses[0],
                last=losses[1],
                trained_tokens=trained,
                trained_share=trained / all_trained,
                gradient_share=share,
                texts={
                    "first": _text(losses[0]),
                    "last": _text(losses[1]),
                    "trained": format_count(trained),
                    "trained_share": format_percent(trained / all_trained),
                    "gradient": format_percent(share),
                },
                spark=_course(course),
            )
        )
    return sorted(rows, key=lambda row: (-(row.last if row.last is not None else -1.0), row.label))


def of_sources(records: Sequence[LanguagesRecord]) -> list[LanguagesRecord]:
    """The same records with sources in the place of languages, where they have any."""
    return [
        LanguagesRecord(step=record.step, first_step=record.first_step, **msgspec.structs.asdict(record.by_source))
        for record in records
        if record.by_source is not None
    ]


def held_out_rows(records: Sequence[HeldOutRecord], names: Mapping[str, Language]) -> list[HeldOutRow]:
    """Held-out loss by language, highest last loss first."""
    courses: dict[str, list[tuple[int, float]]] = {}
    for record in last_of_each_step(records):
        for tag, total in record.loss_sum.items():
            if record.weight.get(tag, 0.0) > 0:
                courses.setdefault(tag, []).append((record.step, total / record.weight[tag]))
    rows = []
    for tag, course in courses.items():
        best_step, best = min(course, key=lambda point: (point[1], point[0]))
        rows.append(
            HeldOutRow(
                language=names[tag],
                first=course[0][1],
                best=best,
                best_step=best_step,
                last=course[-1][1],
                is_rising=course[-1][1] > 1.02 * best,
                spark=_course([loss for _, loss in course]),
            )
        )
    return sorted(rows, key=lambda row: (-row.last, row.language.tag))


def mean_loss(records: Sequence[LanguagesRecord], label: str) -> Number | None:
    """Loss per trained token of a language over some records, or None where nothing of it was trained."""
    weight = sum(record.weight.get(label, 0.0) for record in records)
    return sum(record.loss_sum.get(label, 0.0) for record in records) / weight if weight > 0 else None


def _course(losses: Sequence[Number]) -> Markup:
    return bars.sparkline(charts.thin(range(len(losses)), losses, limit=40)[1])


def _text(loss: Number | None) -> str:
    return "–" if loss is None else f"{loss:.3f}"
