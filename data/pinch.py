"""A counted number of examples of some languages in the whole run: which ones, and in which row each is due."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.mixture import closest_names
from data.mixture_config import PinchConfig
from data.schema import DataError
from data.visits import key_for, random_bits, shuffled, visit_order


class Pinch(NamedTuple):
    """Examples that must come in this very run, in the order of the rows they are due in."""

    examples: np.ndarray
    """int64 ids into the dataset."""
    due: np.ndarray
    """float64, the row each would best be in; sorted."""


NO_PINCH = Pinch(np.empty(0, np.int64), np.empty(0))


def schedule_pinch(pinches: Sequence[PinchConfig], members: Mapping[str, np.ndarray], *, rows: int, seed: int) -> Pinch:
    """All examples of the pinches, each language's spread evenly over the rows; `members` are the examples by language.

    Of n examples of a language, number j is due after (j + u) / n of the rows, u in [0, 1) being the language's own.
    Every example of a language comes before any comes again.

    Raises DataError for languages that are not there, named twice, or too many for the number of examples.
    """
    counts = _count_by_language(pinches, sorted(members), seed)
    examples, due = [NO_PINCH.examples], [NO_PINCH.due]
    for language, count in counts.items():
        own, key = members[language], key_for(seed, "pinch", language)
        order = visit_order(key, len(own), first_epoch=0, epochs=-(-count // len(own)))
        offset = (
            float(random_bits(key_for(seed, "pinch offset", language), start=0, count=1)[0] >> np.uint64(11)) / 2**53
        )
        examples.append(own[order[:count]])
        due.append((np.arange(count) + offset) / count * rows)
    ordered = np.argsort(np.concatenate(due), kind="stable")
    return Pinch(np.concatenate(examples)[ordered].astype(np.int64), np.concatenate(due)[ordered])


def _count_by_language(pinches: Sequence[PinchConfig], present: Sequence[str], seed: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pinch in pinches:
        languages = pinch.languages
        for language in languages:
            if language not in present:
                raise DataError(
                    f"data.mixture.pinch names {language!r}, but no example has this language "
                    f"({closest_names(language, present)}); use a language of the data or remove it"
                )
            if language in counts or languages.count(language) > 1:
                raise DataError(f"data.mixture.pinch names {language!r} twice; name each language once")
        if not languages:
            raise DataError("a pinch of data.mixture.pinch names no language; name some or remove it")
        if not pinch.each and pinch.examples < len(languages):
            raise DataError(
                f"a pinch of {pinch.examples} examples for {len(languages)} languages would leave "
                f"{len(languages) - pinch.examples} of them with none; use {len(languages)} or more, or fewer languages"
            )
        share, more = divmod(pinch.examples, len(languages))
        # Who gets one more is drawn, so that it is not always those that come first in the alphabet.
        lucky = set(shuffled(key_for(seed, "pinch deal", *languages), len(languages))[:more].tolist())
        for place, language in enumerate(languages):
            counts[language] = pinch.examples if pinch.each else share + (place in lucky)
    return counts
