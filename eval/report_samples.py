"""Sample answers for the report: right and wrong ones, a few of each language."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from eval.report_metrics import is_number
from eval.report_names import Language, visible

HIGHLIGHTS = 6
EACH_KIND = 2
EACH_KIND_OF_MANY = 1
MANY_LANGUAGES = 60
ENOUGH = 0.5


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One question with what was expected and what the model answered."""

    language: Language
    prompt: str
    expected: str
    answer: str
    is_right: bool
    id: str


class LanguageSamples(msgspec.Struct, frozen=True, kw_only=True):
    """Some of a language's answers, and how many of all were right."""

    language: Language
    right: int
    count: int
    samples: tuple[Sample, ...]


class TaskSamples(msgspec.Struct, frozen=True, kw_only=True):
    """A task's samples: a few over many scripts, then every language."""

    task: str
    highlights: tuple[Sample, ...]
    languages: tuple[LanguageSamples, ...]


def task_samples(
    task: str, rows: Sequence[Mapping[str, Any]], *, metric: str, names: Mapping[str, Language]
) -> TaskSamples | None:
    """Right and wrong answers by language; None where rows hold no answer to judge (likelihood tasks)."""
    by_language: dict[str, list[Sample]] = {}
    for row in rows:
        sample = _sample(row, metric=metric.split(",")[0], names=names)
        if sample is not None:
            by_language.setdefault(sample.language.tag, []).append(sample)
    if not by_language:
        return None
    each = EACH_KIND if len(by_language) <= MANY_LANGUAGES else EACH_KIND_OF_MANY
    languages = tuple(_choose(by_language[tag], each) for tag in sorted(by_language))
    return TaskSamples(task=task, highlights=_highlights(languages), languages=languages)


def _choose(samples: Sequence[Sample], each: int) -> LanguageSamples:
    right = [sample for sample in samples if sample.is_right]
    wrong = [sample for sample in samples if not sample.is_right]
    return LanguageSamples(
        language=samples[0].language,
        right=len(right),
        count=len(samples),
        samples=(*right[:each], *wrong[:each]),
    )


def _highlights(languages: Sequence[LanguageSamples]) -> tuple[Sample, ...]:
    """One answer per script, right and wrong in turn as far as there are both."""
    by_script: dict[str, LanguageSamples] = {}
    for entry in languages:
        by_script.setdefault(entry.language.script, entry)
    chosen: list[Sample] = []
    for entry in list(by_script.values())[:HIGHLIGHTS]:
        wanted = len(chosen) % 2 == 0
        chosen.append(next((s for s in entry.samples if s.is_right == wanted), entry.samples[0]))
    return tuple(chosen)


def _sample(row: Mapping[str, Any], *, metric: str, names: Mapping[str, Language]) -> Sample | None:
    tag, value, answer = row.get("language"), row.get(metric), answer_text(row)
    if not isinstance(tag, str) or tag not in names or not is_number(value) or answer is None:
        return None
    return Sample(
        language=names[tag],
        prompt=visible(prompt_text(row)),
        expected=visible(_expected_text(row)),
        answer=visible(answer),
        is_right=float(value or 0) > ENOUGH,
        id=str(row.get("doc_id", "")),
    )


def prompt_text(row: Mapping[str, Any]) -> str:
    """What was asked: the turns before the reference answer, else the first text among the arguments."""
    turns = row["doc"].get("turns") if isinstance(row.get("doc"), dict) else None
    if isinstance(turns, list):
        asked = turns[:-1] if turns and turns[-1].get("role") == "assistant" else turns
        return "\n".join(str(turn.get("content", "")) for turn in asked)
    return _first_text(row.get("arguments")) or ""


def answer_text(row: Mapping[str, Any]) -> str | None:
    """What the model answered: its text, or the option it found most likely; None where it only scored."""
    answers = row.get("filtered_resps") or row.get("resps") or []
    if len(answers) > 1 and all(isinstance(answer, list) and answer for answer in answers):
        likelihoods = [float(answer[0]) for answer in answers]
        return _option(row, likelihoods.index(max(likelihoods)))
    return _only_text(answers)


def _only_text(answers: Any) -> str | None:
    while isinstance(answers, list) and answers:
        answers = answers[0]
    return answers if isinstance(answers, str) else None


def _expected_text(row: Mapping[str, Any]) -> str:
    target = row.get("target")
    return _option(row, target) if isinstance(target, int) else str(target if target is not None else "")


def _option(row: Mapping[str, Any], index: int) -> str:
    doc = row.get("doc")
    choices = doc.get("options", doc.get("choices")) if isinstance(doc, dict) else None
    is_known = isinstance(choices, list) and 0 <= index < len(choices)
    return str(choices[index]) if is_known else f"option {index + 1}"  # type: ignore[index]


def _first_text(value: Any) -> str | None:
    """The first string inside nested lists and mappings."""
    if isinstance(value, str):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((text for item in inner if (text := _first_text(item)) is not None), None)
