"""Predicates that count: lengths, their ratio, and how much an answer repeats itself."""

from collections.abc import Iterator

import numpy as np

from data.cleaning.reason import KEPT, NOT_JUDGED, Finding
from data.cleaning.texts import fold, read_part
from data.cleaning.units import hash_ngrams, read_units
from data.cleaning_config import LengthLimits, RatioLimits, RepetitionLimit
from data.schema import TEXT_ROLE, Conversation


def check_length(conversation: Conversation, *, limits: LengthLimits) -> Finding:
    """Whether prompt, answer and turns are within their bounds."""
    for what, unit, count in _measure(conversation):
        low, high = getattr(limits, f"min_{what}"), getattr(limits, f"max_{what}")
        if low is not None and count < low:
            return Finding(f"{what} has {count} {unit}, fewer than min_{what}={low}")
        if high is not None and count > high:
            return Finding(f"{what} has {count} {unit}, more than max_{what}={high}")
    return KEPT


def check_ratio(conversation: Conversation, *, limits: RatioLimits) -> Finding:
    """Whether the answer is as long as a translation of the prompt may be."""
    if limits.tasks and conversation.task not in limits.tasks:
        return NOT_JUDGED
    prompt, answer = (len(read_part(conversation, part)) for part in ("prompt", "answer"))
    if not prompt:
        return NOT_JUDGED
    if limits.min_ratio <= answer / prompt <= limits.max_ratio:
        return KEPT
    bounds = f"{limits.min_ratio:g} to {limits.max_ratio:g}"
    return Finding(f"answer of {answer} characters to a prompt of {prompt}: ratio {answer / prompt:.3g}, not {bounds}")


def check_repetition(conversation: Conversation, *, limit: RepetitionLimit) -> Finding:
    """Whether most of an answer is a repetition of what it said before."""
    units = read_units(fold(read_part(conversation, "answer")))
    if len(units.hashes_U) < limit.min_units:
        return NOT_JUDGED
    length = limit.words if units.is_spaced else limit.characters
    ngrams_G = hash_ngrams(units.hashes_U, length)
    if not len(ngrams_G):
        return NOT_JUDGED
    share = 1 - len(np.unique(ngrams_G)) / len(ngrams_G)
    if share <= limit.max_share:
        return KEPT
    what = "words" if units.is_spaced else "characters"
    return Finding(
        f"{share:.0%} of the answer's runs of {length} {what} repeat earlier ones, above {limit.max_share:.0%}"
    )


def _measure(conversation: Conversation) -> Iterator[tuple[str, str, int]]:
    is_text = conversation.turns[0].role == TEXT_ROLE
    if not is_text:
        yield "prompt", "characters", len(read_part(conversation, "prompt"))
    yield "answer", "characters", len(read_part(conversation, "answer"))
    yield "turns", "turns", len(conversation.turns)
