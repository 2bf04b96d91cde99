"""From a rendered template to ids that know their characters; control tokens spelled in contents stay text."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data.encoded import shorten
from data.schema import DataError, Turn
from data.spans import Span
from data.tokenizer import Tokenizer


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


def make_reader(tokenizer: Tokenizer) -> Reader:
    """Returns the reader of a tokenizer."""
    is_control_V = np.zeros(tokenizer.vocab_size, bool)
    is_control_V[list(tokenizer.control_ids.values())] = True
    return Reader(tokenizer, is_control_V, match_any(tokenizer.control_ids))


def match_any(names: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern for any of the names, the longest first; for none at all, one that matches nothing."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else "(?!)")


def read_ids(reader: Reader, text: str, turns: Sequence[Turn], spans: Sequence[Span]) -> ReadIds:
    """Returns the ids of a rendering: those of the whole text, save that a content in which a control token is
    spelled is encoded by itself, as text.

    Raises DataError if such a content is not to be found in the rendering, and for a doubled beginning of text.
    """
    read = _collect(reader, *reader.tokenizer.encode_rendered_offsets(text))
    spelling = []
    for index, (turn, (start, end)) in enumerate(zip(turns, spans, strict=True)):
        if start is not None and end is not None:
            if _spells_control(text, start, end, read):
                spelling.append((start, end))
        elif found := reader.names.search(turn.content):
            raise DataError(
                f"turn {index} spells the control token {found[0]!r}, and the template rewrites that turn, so it "
                f"cannot be kept as text; take it out: {shorten(turn.content)}"
            )
    if spelling:
        read = _read_pieces(reader, text, sorted(spelling))
    bos = reader.tokenizer.bos_id
    if bos is not None and np.any((read.ids_T[1:] == bos) & (read.ids_T[:-1] == bos)):
        raise DataError(
            f"two beginning-of-text tokens stand side by side; the template should write one: {shorten(text)}"
        )
    return read


def select_ids(read: ReadIds, start: int, end: int) -> np.ndarray:
    """Returns which ids belong to the characters `start` to `end`, T booleans.

    An id with characters on both sides of a boundary belongs, unless it is a control token that begins before. An
    id read from no character belongs to the place it stands at.
    """
    touches_T = (read.starts_T < end) & (np.maximum(read.ends_T, read.starts_T + 1) > start)
    return touches_T & ~(read.is_control_T & (read.starts_T < start))


def _spells_control(text: str, start: int, end: int, read: ReadIds) -> bool:
    """Whether a control id was read from inside a content; the space such a token swallows is not of it."""
    for index in np.flatnonzero(read.is_control_T & (read.starts_T < end) & (read.ends_T > start)):
        first, last = int(read.starts_T[index]), int(read.ends_T[index])
        piece = text[first:last]
        if first + len(piece) - len(piece.lstrip()) >= start and first + len(piece.rstrip()) <= end:
            return True
    return False


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
    """Ids with their characters. Some tokenizers leave space out of offsets: it goes to the token after it, or an id
    that is nothing but a line end would seem to stand at the beginning of what follows."""
    ids_T, offsets_T2 = np.array(ids, np.int32), np.array(offsets, np.int64).reshape(-1, 2)
    starts_T, ends_T = offsets_T2.T
    reached_T = np.concatenate(([0], np.maximum.accumulate(ends_T)[:-1])) if len(ids_T) else ends_T
    return ReadIds(ids_T, np.minimum(starts_T, reached_T), ends_T, reader.is_control_V[ids_T])
