"""What the run was fed: wanted against planned against trained shares, epochs, and tokens per byte."""

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec
from markupsafe import Markup

from eval import bars
from eval.bars import Mark, Number
from eval.report_names import Language, format_count, format_percent
from eval.run_files import LanguagesRecord, PlanCell, last_of_each_step


class MixtureRow(msgspec.Struct, frozen=True, kw_only=True):
    """One language (or one source) of the mixture. Shares are of the whole run."""

    label: str
    language: Language | None
    """None in the table by source."""
    examples: int
    wanted: float
    planned: float
    planned_tokens: float
    trained_tokens: float | None
    """Share of the tokens served so far; None where the records do not say."""
    epochs: float | None
    texts: dict[str, str]
    share_bar: Markup
    token_bar: Markup


class FertilityRow(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens a language's text costs."""

    language: Language
    tokens_per_byte: float
    text: str
    ratio_text: str
    """Times the median language."""
    bytes_text: str
    bar: Markup


class _Sums(msgspec.Struct, frozen=True, kw_only=True):
    examples: float
    wanted: float
    planned: float
    tokens: float
    trained: float | None
    epochs: float | None


def trained_tokens(records: Sequence[LanguagesRecord]) -> dict[str, Number]:
    """Real positions served by language up to the last record."""
    totals: dict[str, float] = {}
    for record in last_of_each_step(records):
        for tag, amount in record.tokens.items():
            if tag:
                totals[tag] = totals.get(tag, 0.0) + amount
    return totals


def mixture_rows(
    cells: Sequence[PlanCell], trained: Mapping[str, Number], names: Mapping[str, Language]
) -> list[MixtureRow]:
    """The mixture by language, largest wanted share first."""
    every = {cell.language for cell in cells} | set(trained)
    all_tokens, all_trained = sum(cell.planned_tokens for cell in cells), sum(trained.values())
    sums = {
        tag: _sum_cells(
            [cell for cell in cells if cell.language == tag],
            all_tokens=all_tokens,
            trained=trained.get(tag, 0.0) / all_trained if all_trained > 0 else None,
        )
        for tag in every
    }
    return _rows(sums, names)


def source_rows(cells: Sequence[PlanCell], trained: Mapping[str, Number]) -> list[MixtureRow]:
    """The mixture by source, largest wanted share first; `trained` are tokens served, empty if not recorded."""
    all_tokens, all_trained = sum(cell.planned_tokens for cell in cells), sum(trained.values())
    sums = {
        source: _sum_cells(
            [cell for cell in cells if cell.source == source],
            all_tokens=all_tokens,
            trained=trained.get(source, 0.0) / all_trained if all_trained > 0 else None,
        )
        for source in {cell.source for cell in cells}
    }
    return _rows(sums, {})


def _sum_cells(cells: Sequence[PlanCell], *, all_tokens: Number, trained: Number | None) -> _Sums:
    examples = sum(cell.examples for cell in cells)
    planned_tokens = sum(cell.planned_tokens for cell in cells)
    return _Sums(
        examples=examples,
        wanted=sum(cell.wanted_share for cell in cells),
        planned=sum(cell.realised_share for cell in cells),
        tokens=planned_tokens / all_tokens if all_tokens > 0 else 0.0,
        trained=trained,
        epochs=sum(cell.planned_examples for cell in cells) / examples if examples > 0 else None,
    )


def _rows(sums: Mapping[str, _Sums], names: Mapping[str, Language]) -> list[MixtureRow]:
    share_scale = max([0.0, *(value for s in sums.values() for value in (s.wanted, s.planned))])
    token_scale = max([0.0, *(value for s in sums.values() for value in (s.tokens, s.trained or 0.0))])
    order = sorted(sums, key=lambda label: (-sums[label].wanted, label))
    return [
        _row(label, sums[label], names.get(label), share_scale=share_scale, token_scale=token_scale) for label in order
    ]


def _row(label: str, sums: _Sums, language: Language | None, *, share_scale: Number, token_scale: Number) -> MixtureRow:
    served = sums.tokens if sums.trained is None else sums.trained
    return MixtureRow(
        label=label,
        language=language,
        examples=round(sums.examples),
        wanted=sums.wanted,
        planned=sums.planned,
        planned_tokens=sums.tokens,
        trained_tokens=sums.trained,
        epochs=sums.epochs,
        texts={
            "examples": format_count(sums.examples),
            "wanted": format_percent(sums.wanted),
            "planned": format_percent(sums.planned),
            "planned_tokens": format_percent(sums.tokens),
            "trained_tokens": format_percent(sums.trained),
            "epochs": "–" if sums.epochs is None else f"{sums.epochs:.2f}",
        },
        share_bar=bars.bar(sums.planned, scale=share_scale, marks=[Mark(kind="wanted", value=sums.wanted)]),
        token_bar=bars.bar(served, scale=token_scale, marks=[Mark(kind="wanted", value=sums.tokens)]),
    )


def fertility_rows(cells: Sequence[PlanCell], names: Mapping[str, Language]) -> list[FertilityRow]:
    """Tokens per UTF-8 byte of content by language, cheapest first, without languages of no content."""
    totals: dict[str, tuple[float, float]] = {}
    for cell in cells:
        tokens, size = totals.get(cell.language, (0.0, 0.0))
        totals[cell.language] = (tokens + cell.tokens, size + cell.content_bytes)
    rates = {tag: tokens / size for tag, (tokens, size) in totals.items() if tag and size > 0}
    if not rates:
        return []
    scale, middle = max(rates.values()), median(rates.values())
    return [
        FertilityRow(
            language=names[tag],
            tokens_per_byte=rates[tag],
            text=f"{rates[tag]:.3f}",
            ratio_text=f"{rates[tag] / middle:.2f}×" if middle > 0 else "–",
            bytes_text=format_count(totals[tag][1]),
            bar=bars.bar(rates[tag], scale=scale, marks=[Mark(kind="median", value=middle)], style="plain"),
        )
        for tag in sorted(rates, key=lambda tag: (rates[tag], tag))
    ]
