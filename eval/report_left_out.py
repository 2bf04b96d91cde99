"""What never reached training: bad rows, rows that cleaning dropped, examples longer than a row."""

from collections.abc import Mapping
from typing import Any

import msgspec

from eval.report_names import Language, describe_language, format_percent, visible
from eval.run_files import CleaningRecord, PlanSummary, RunFiles

BAD, OVERLONG = "bad rows", "longer than a row"
MOST_LISTED = 100
"""Rows shown of each list; the files have them all."""
SHOWN = 200
"""Characters shown of a row."""


class LeftOutRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one language lost."""

    language: Language | None
    """None: rows whose language could not be read."""
    counts: tuple[int, ...]
    """By reason, in the order of `LeftOut.reasons`."""
    total: int
    share: float
    """Of the language's rows, kept and lost."""
    share_text: str


class ListedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row that was left out, and why."""

    place: str
    reason: str
    excerpt: str


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """The section: a table of languages by reasons, and lists of rows."""

    reasons: tuple[str, ...]
    totals: tuple[int, ...]
    total: int
    rows: tuple[LeftOutRow, ...]
    """Most lost first."""
    bad_rows: tuple[ListedRow, ...]
    more_bad: int
    """Bad rows that are not listed."""
    cleaned: tuple[ListedRow, ...]
    more_cleaned: int
    """Rows that cleaning dropped and that are not listed."""
    notes: tuple[str, ...]


def left_out(run: RunFiles, names: Mapping[str, Language]) -> LeftOut | None:
    """What the run's plan, list of bad rows and cleaning report say was left out; None if that is nothing."""
    by_predicate = count_cleaned(run.cleaning)
    counts = _count_planned(run.plan) | by_predicate
    notes = (*_tell_unjudged(run.cleaning), *_tell_cut(run.plan), *(run.cleaning.notes if run.cleaning else ()))
    if not counts and not run.bad_rows and not notes:
        return None
    kept = _count_kept(run.plan)
    tags = {tag for by_language in counts.values() for tag in by_language}
    rows = [_row(tag, counts, kept=kept.get(tag, 0), names=names) for tag in tags]
    listed = run.cleaning.listed if run.cleaning else ()
    cleaned = sum(sum(by_language.values()) for by_language in by_predicate.values())
    totals = tuple(sum(by_language.values()) for by_language in counts.values())
    return LeftOut(
        reasons=tuple(reason.replace("_", " ") for reason in counts),
        totals=totals,
        total=sum(totals),
        rows=tuple(sorted(rows, key=lambda row: (-row.total, row.language.tag if row.language else ""))),
        bad_rows=tuple(_list_bad(row) for row in run.bad_rows[:MOST_LISTED]),
        more_bad=max(0, len(run.bad_rows) - MOST_LISTED),
        cleaned=tuple(_list_cleaned(row) for row in listed[:MOST_LISTED]),
        more_cleaned=max(0, cleaned - min(MOST_LISTED, len(listed))) if listed else 0,
        notes=notes,
    )


def _count_planned(plan: PlanSummary | None) -> dict[str, dict[str, int]]:
    found = {BAD: plan.bad_rows, OVERLONG: plan.dropped} if plan else {}
    return {reason: dict(by_language) for reason, by_language in found.items() if sum(by_language.values())}


def count_cleaned(cleaning: CleaningRecord | None) -> dict[str, dict[str, int]]:
    """Rows that cleaning left out, by predicate and language."""
    counts: dict[str, dict[str, int]] = {}
    for predicate, sources in cleaning.dropped.items() if cleaning else ():
        by_language = counts.setdefault(predicate, {})
        for languages in sources.values():
            for language, count in languages.items():
                by_language[language] = by_language.get(language, 0) + count
    return {predicate: by_language for predicate, by_language in sorted(counts.items()) if sum(by_language.values())}


def _tell_unjudged(cleaning: CleaningRecord | None) -> list[str]:
    """What predicates could say nothing about, and kept."""
    told = []
    for predicate, sources in sorted(cleaning.not_judged.items()) if cleaning else ():
        rows = sum(sum(languages.values()) for languages in sources.values())
        tags = {language for languages in sources.values() for language in languages}
        told.append(
            f"{predicate.replace('_', ' ')}: {rows:,} rows in {len(tags):,} languages could not be judged and were kept"
        )
    return told


def _tell_cut(plan: PlanSummary | None) -> list[str]:
    """How many examples lost turns, or became several."""
    if plan is None or not sum(plan.cut.values()):
        return []
    cut, tags = sum(plan.cut.values()), len(plan.cut)
    return [f"{cut:,} examples longer than a row, in {tags:,} languages, were cut or split between turns"]


def _count_kept(plan: PlanSummary | None) -> dict[str, int]:
    kept: dict[str, int] = {}
    for cell in plan.cells if plan else ():
        kept[cell.language] = kept.get(cell.language, 0) + round(cell.examples)
    return kept


def _row(tag: str, counts: Mapping[str, Mapping[str, int]], *, kept: int, names: Mapping[str, Language]) -> LeftOutRow:
    own = tuple(by_language.get(tag, 0) for by_language in counts.values())
    share = sum(own) / (sum(own) + kept) if sum(own) else 0.0
    return LeftOutRow(
        language=(names.get(tag) or describe_language(tag)) if tag else None,
        counts=own,
        total=sum(own),
        share=share,
        share_text=format_percent(share) if tag else "–",
    )


def _list_bad(row: Mapping[str, Any]) -> ListedRow:
    return ListedRow(
        place=visible(f"{row.get('file', '')}:{row.get('line', '')}", limit=SHOWN),
        reason=visible(str(row.get("reason", "")), limit=2 * SHOWN),
        excerpt=visible(str(row.get("excerpt", "")), limit=SHOWN),
    )


def _list_cleaned(row: Mapping[str, Any]) -> ListedRow:
    detail = row.get("detail") or row.get("reason") or ""
    place = row.get("id") or f"{row.get('file', '')}:{row.get('line', '')}"
    return ListedRow(
        place=visible(str(place), limit=SHOWN),
        reason=visible(f"{str(row.get('predicate', '')).replace('_', ' ')}: {detail}", limit=2 * SHOWN),
        excerpt=visible(str(row.get("excerpt", "")), limit=SHOWN),
    )
