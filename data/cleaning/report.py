"""What cleaning did, in a form that adds up over processes and goes through JSON."""

from collections.abc import Iterable

import msgspec

from data.cleaning.reason import Reason, Verdict
from data.schema import Conversation

EXCERPT_CHARACTERS = 200
Counts = dict[str, dict[str, int]]
"""By source, then language."""


class DroppedRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One example that was left out, and why."""

    predicate: str
    source: str
    language: str
    id: str
    """Of the conversation: file and line where it has them."""
    detail: str
    excerpt: str
    """The beginning of its last turn."""


class CleaningReport(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Counts by predicate, source and language, and the first dropped rows of each predicate.

    The only thing in this folder that changes: `note` and `note_dropped` count a row. Reports of parts of the
    data, merged in the order of the parts, are the report of the whole.
    """

    max_listed: int
    """Dropped rows listed for each predicate at most."""
    checked: Counts = {}
    """Rows that came in."""
    dropped: dict[str, Counts] = {}
    """By predicate; a row counts once, under the first that it failed."""
    not_judged: dict[str, Counts] = {}
    """By predicate: rows it could say nothing about (unknown language, too short), kept as far as it goes."""
    listed: list[DroppedRow] = []
    """In the order of the data."""
    notes: list[str] = []
    """Sentences on what was set up: evaluation texts too short to be looked for, rows of them passed over."""

    def note(self, conversation: Conversation, verdict: Verdict) -> None:
        """Counts a conversation that was judged, kept or not."""
        _add(self.checked, conversation.source, conversation.language, 1)
        for predicate in verdict.not_judged:
            _add(self.not_judged.setdefault(predicate, {}), conversation.source, conversation.language, 1)
        if verdict.reason is not None:
            self.note_dropped(describe(conversation, verdict.reason))

    def note_dropped(self, row: DroppedRow) -> None:
        """Counts a row that is left out, of those already counted as checked: a duplicate, for one."""
        counts = self.dropped.setdefault(row.predicate, {})
        if sum(sum(languages.values()) for languages in counts.values()) < self.max_listed:
            self.listed.append(row)
        _add(counts, row.source, row.language, 1)

    def to_json(self) -> bytes:
        """Returns the report as JSON, the same bytes for the same counts."""
        return msgspec.json.encode(self, order="sorted")


def describe(conversation: Conversation, reason: Reason) -> DroppedRow:
    """Returns the row of the report for a conversation that is left out."""
    return DroppedRow(
        predicate=reason.predicate,
        source=conversation.source,
        language=conversation.language,
        id=conversation.id,
        detail=reason.detail,
        excerpt=conversation.turns[-1].content[:EXCERPT_CHARACTERS],
    )


def merge_reports(reports: Iterable[CleaningReport], *, max_listed: int) -> CleaningReport:
    """Returns the report of all parts together: counts added, lists joined in the order given and cut, notes once."""
    whole = CleaningReport(max_listed=max_listed)
    kept: dict[str, int] = {}
    for report in reports:
        _merge_counts(whole.checked, report.checked)
        for mine, theirs in ((whole.dropped, report.dropped), (whole.not_judged, report.not_judged)):
            for predicate, counts in theirs.items():
                _merge_counts(mine.setdefault(predicate, {}), counts)
        for row in report.listed:
            kept[row.predicate] = kept.get(row.predicate, 0) + 1
            if kept[row.predicate] <= max_listed:
                whole.listed.append(row)
        whole.notes += [note for note in report.notes if note not in whole.notes]
    return whole


def _add(counts: Counts, source: str, language: str, count: int) -> None:
    languages = counts.setdefault(source, {})
    languages[language] = languages.get(language, 0) + count


def _merge_counts(mine: Counts, theirs: Counts) -> None:
    for source, languages in theirs.items():
        for language, count in languages.items():
            _add(mine, source, language, count)
