"""From a rendered template to ids that know their characters; control tokens spelled in contents stay text."""

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data.encoded import shorten
from data.hub_spelling import Spelling, locate_ids
from data.schema import DataError
from data.spans import Spans
from data.tokenizer import HubTokenizer, Tokenizer


class ReadIds(NamedTuple):
    """Ids of a rendering, and the characters `start` to `end` of it that each was read from."""

    ids_T: np.ndarray
    """int32"""
    starts_T: np.ndarray
    ends_T: np.ndarray
    is_control_T: np.ndarray


class Reader(NamedTuple):
    """A tokenizer with its control tokens ready to look for."""

    tokenizer: Tokenizer
    is_control_V: np.ndarray
    names: re.Pattern[str]
    """Matches a control token as it is spelled."""
    spelling: Spelling | None
    """Tells where ids stand; None where only the tokenizer can."""
    bos_id: int | None


def make_reader(tokenizer: Tokenizer) -> Reader:
    """Returns the reader of a tokenizer."""
    is_control_V = np.zeros(tokenizer.vocab_size, bool)
    is_control_V[list(tokenizer.control_ids.values())] = True
    spelling = tokenizer.spelling if isinstance(tokenizer, HubTokenizer) else None
    return Reader(tokenizer, is_control_V, match_any(tokenizer.control_ids), spelling, tokenizer.bos_id)


def match_any(names: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern for any of the names, the longest first; for none at all, one that matches nothing."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else "(?!)")


def read_ids(reader: Reader, text: str, spans: Spans) -> ReadIds:
    """Returns the ids of a rendering: those of the whole text, save that a text of the row in which a control token
    is spelled is encoded by itself, as text.

    Raises DataError if such a text is not to be found in the rendering, and for a doubled beginning of text.
    """
    for turn, unknown in spans.unknown:
        if found := reader.names.search(unknown):
            raise DataError(
                f"turn {turn} spells the control token {found[0]!r}, and the template rewrites that turn, so it "
                f"cannot be kept as text; take it out: {shorten(unknown)}"
            )
    read = _read_text(reader, text)
    if spelling := _find_spelled(text, spans.given, read):
        read = _read_pieces(reader, text, spelling)
    bos = reader.bos_id
    if bos is not None and np.any((read.ids_T[1:] == bos) & (read.ids_T[:-1] == bos)):
        raise DataError(
            f"two beginning-of-text tokens stand side by side; the template should write one: {shorten(text)}"
        )
    return read


def select_ids(read: ReadIds, spans: Sequence[tuple[int, int]]) -> list[slice]:
    """Returns which ids belong to the characters `start` to `end`, for each span.

    An id with characters on both sides of a boundary belongs, unless it is a control token that begins before. An
    id read from no character belongs to the place it stands at.
    """
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    firsts = np.maximum(read.ends_T, read.starts_T + 1).searchsorted(starts, side="right").tolist()
    lasts = read.starts_T.searchsorted(ends, side="left").tolist()
    slices = []
    for (start, _), first, last in zip(spans, firsts, lasts, strict=True):
        while first < last and read.is_control_T[first] and read.starts_T[first] < start:
            first += 1
        slices.append(slice(first, max(first, last)))
    return slices


def _read_text(reader: Reader, text: str) -> ReadIds:
    """The ids of a text. Where they spell it they say themselves where they stand; else the tokenizer does."""
    if reader.spelling is not None:
        ids_T = np.array(reader.tokenizer.encode_rendered(text), np.int32)
        if (places := locate_ids(reader.spelling, ids_T, text)) is not None:
            return ReadIds(ids_T, *places, reader.is_control_V[ids_T])
    return _collect(reader, *reader.tokenizer.encode_rendered_offsets(text))


def _find_spelled(text: str, given: Sequence[tuple[int, int]], read: ReadIds) -> list[tuple[int, int]]:
    """The texts a control id was read from inside of; the space such a token swallows is not of them."""
    if not given:
        return []
    starts, ends = np.array(given, np.int64).T
    control = np.flatnonzero(read.is_control_T)
    # The last text that begins before such an id ends: does it reach into the id?
    places = np.searchsorted(starts, read.ends_T[control], side="left") - 1
    touching = control[(places >= 0) & (ends[places] > read.starts_T[control])]
    found = {}
    for index in touching.tolist():
        first, last = int(read.starts_T[index]), int(read.ends_T[index])
        piece = text[first:last]
        first, last = first + len(piece) - len(piece.lstrip()), first + len(piece.rstrip())
        place = bisect.bisect_right(given, first, key=lambda span: span[0]) - 1
        if place >= 0 and last <= given[place][1]:
            found[given[place]] = None
    return list(found)


def _read_pieces(reader: Reader, text: str, contents: Sequence[tuple[int, int]]) -> ReadIds:
    """The ids of a text with some contents encoded by themselves; those ids hold the content as a whole."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    at = 0
    for start, end in [*contents, (len(text), len(text))]:
        scaffold, places = reader.tokenizer.encode_rendered_offsets(text[at:start])
        content = reader.tokenizer.encode(text[start:end]) if start < end else []
        ids += [*scaffold, *content]
        offsets += [*((at + first, at + last) for first, last in places), *[(start, end)] * len(content)]
        at = end
    return _collect(reader, ids, offsets)


def _collect(reader: Reader, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> ReadIds:
    """Ids with their characters, which never go back. Some tokenizers leave space out of offsets: it goes to the token
    after it, or an id that is nothing but a line end would seem to stand at the beginning of what follows."""
    ids_T = np.array(ids, np.int32)
    starts_T, ends_T = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(ids)).reshape(-1, 2).T
    reached_T = np.maximum.accumulate(ends_T) if len(ids) else ends_T
    starts_T = np.minimum(starts_T, np.concatenate(([0], reached_T[:-1])) if len(ids) else starts_T)
    starts_T = np.minimum.accumulate(starts_T[::-1])[::-1]
    return ReadIds(ids_T, starts_T, reached_T, reader.is_control_V[ids_T])
