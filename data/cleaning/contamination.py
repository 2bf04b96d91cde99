"""The predicate `decontamination`: training rows that hold the text of an evaluation row, by n-gram overlap.

The index of the evaluation sets is arrays alone, 16 bytes an n-gram: made once, it is pickled to worker processes as it
is, and shared by those that are forked.
"""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from data.bad_rows import BadRows
from data.cleaning.evaluation_sets import Passage, read_passages
from data.cleaning.reason import KEPT, Finding
from data.cleaning.texts import fold
from data.cleaning.units import hash_ngrams, read_units
from data.cleaning_config import Decontamination
from data.schema import Conversation, DataError


class NgramIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The n-grams of one length of passages, E in all, in the order of their hashes."""

    length: int
    """Units of an n-gram."""
    hashes_E: np.ndarray
    """uint64, ascending"""
    passages_E: np.ndarray
    """int32: which passage, an index into the places."""
    starts_E: np.ndarray
    """int32: the n-gram's first unit within the passage."""


class ContaminationIndex(msgspec.Struct, frozen=True, kw_only=True):
    """All passages, by the n-grams of words or of characters they are looked for by."""

    indexes: tuple[NgramIndex, ...]
    places: tuple[str, ...]
    """`set (file:line, field)` of each passage, for reports."""
    units_P: np.ndarray
    """int32: words (or characters) of each passage."""
    min_covered: float
    notes: tuple[str, ...]
    """What was left out of the index: rows that cannot be read, texts shorter than an n-gram."""


def build_index(config: Decontamination, *, root: str) -> ContaminationIndex:
    """Returns the index of the evaluation sets, each text once. Raises DataError as `read_passages` does, and if a set
    has no text that is long enough to be looked for."""
    passages: dict[str, Passage] = {}
    notes = []
    for evaluation_set in config.sets:
        bad_rows = BadRows(evaluation_set.bad_rows)
        found = list(read_passages(evaluation_set, root=root, bad_rows=bad_rows))
        long = [passage for passage in found if _is_long(passage.text, config)]
        name = evaluation_set.name or evaluation_set.path
        if not long:
            raise DataError(
                f"evaluation set {name!r}: none of its {len(found)} texts has {config.words} words (or "
                f"{config.characters} characters, without spaces), so nothing can be looked for; lower "
                "data.cleaning.decontamination.words and characters, or take the set out"
            )
        notes += _describe_left_out(name, bad_rows, len(found) - len(long), len(found))
        for passage in long:
            passages.setdefault(fold(passage.text), passage)
    return _index_passages(passages, config, tuple(notes))


def find_contamination(conversation: Conversation, *, index: ContaminationIndex) -> Finding:
    """Whether the turns of a conversation hold enough of the text of one evaluation row. The detail says which."""
    texts = [text for turn in conversation.turns for text in (turn.content, turn.thoughts) if text]
    turns = [read_units(fold(text)).hashes_U for text in texts]
    for ngrams in index.indexes:
        entries = _look_up(ngrams, [hash_ngrams(hashes_U, ngrams.length) for hashes_U in turns])
        if not len(entries):
            continue
        passages, covered = _measure_cover(ngrams, entries)
        shares = covered / index.units_P[passages]
        best = int(np.argmax(shares))
        if shares[best] >= index.min_covered:
            return Finding(f"holds {shares[best]:.0%} of evaluation text {index.places[passages[best]]}")
    return KEPT


def _is_long(text: str, config: Decontamination) -> bool:
    units = read_units(fold(text))
    return len(units.hashes_U) >= (config.words if units.is_spaced else config.characters)


def _describe_left_out(name: str, bad_rows: BadRows, short: int, texts: int) -> Iterable[str]:
    if short:
        yield f"evaluation set {name!r}: {short} of {texts} texts are shorter than an n-gram and cannot be looked for"
    if bad_rows.rows:
        first = bad_rows.rows[0]
        yield (
            f"evaluation set {name!r}: {len(bad_rows.rows)} rows that cannot be read are passed over, the first "
            f"{first.file}:{first.line}: {first.reason}"
        )


def _index_passages(
    passages: dict[str, Passage], config: Decontamination, notes: tuple[str, ...]
) -> ContaminationIndex:
    units = [read_units(folded) for folded in passages]
    indexes = []
    for is_spaced, length in ((True, config.words), (False, config.characters)):
        members = [number for number, unit in enumerate(units) if unit.is_spaced == is_spaced]
        if members:
            ngrams = [hash_ngrams(units[number].hashes_U, length) for number in members]
            indexes.append(_index_ngrams(ngrams, members, length))
    return ContaminationIndex(
        indexes=tuple(indexes),
        places=tuple(f"{each.set_name} ({each.file}:{each.line}, {each.field})" for each in passages.values()),
        units_P=np.array([len(unit.hashes_U) for unit in units], np.int32),
        min_covered=config.min_covered,
        notes=notes,
    )


def _index_ngrams(ngrams: Sequence[np.ndarray], numbers: Sequence[int], length: int) -> NgramIndex:
    hashes_E = np.concatenate(ngrams)
    order_E = np.argsort(hashes_E, kind="stable")
    passages_E = np.repeat(np.array(numbers, np.int32), [len(each) for each in ngrams])
    starts_E = np.concatenate([np.arange(len(each), dtype=np.int32) for each in ngrams])
    return NgramIndex(
        length=length, hashes_E=hashes_E[order_E], passages_E=passages_E[order_E], starts_E=starts_E[order_E]
    )


def _look_up(index: NgramIndex, ngrams: Sequence[np.ndarray]) -> np.ndarray:
    """The entries of the index whose n-grams are among those given."""
    wanted_G = np.unique(np.concatenate((np.zeros(0, np.uint64), *ngrams)))
    first_G = np.searchsorted(index.hashes_E, wanted_G, side="left")
    hits_G = first_G < len(index.hashes_E)
    hits_G[hits_G] = index.hashes_E[first_G[hits_G]] == wanted_G[hits_G]
    first_H, wanted_H = first_G[hits_G], wanted_G[hits_G]
    counts_H = np.searchsorted(index.hashes_E, wanted_H, side="right") - first_H
    offsets = np.arange(counts_H.sum()) - np.repeat(np.cumsum(counts_H) - counts_H, counts_H)
    return np.repeat(first_H, counts_H) + offsets


def _measure_cover(index: NgramIndex, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The passages that entries belong to, and how many units of each lie in at least one of the entries' n-grams.

    n-grams of length 3 at units 0, 1 and 7 cover units 0-3 and 7-9: seven.
    """
    passages_I, starts_I = index.passages_E[entries], index.starts_E[entries]
    order_I = np.lexsort((starts_I, passages_I))
    passages_I, starts_I = passages_I[order_I], starts_I[order_I].astype(np.int64)
    passages_F, first_F = np.unique(passages_I, return_index=True)
    adds_I = np.minimum(np.diff(starts_I, prepend=0), index.length)
    adds_I[first_F] = index.length
    return passages_F, np.add.reduceat(adds_I, first_F)
