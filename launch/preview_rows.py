"""Packed rows taken apart again: examples, spans of one role and weight, tokens with their texts."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data.batch import Batch, Role
from data.dataset import DatasetFacts
from data.tokenizer import Tokenizer

MOST_PENDING = 8
"""Tokens that may wait for a character to become whole; more than any character has bytes."""
BROKEN = "\ufffd"


class Piece(NamedTuple):
    """One token; or several, where one character (or one letter with its marks) is spelled by them together."""

    text: str
    ids: tuple[int, ...]
    is_control: bool


class Span(NamedTuple):
    """Consecutive tokens of one role and weight."""

    role: Role
    weight: float
    """Of each token as a target; 0 is not trained."""
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        """How many ids it has."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def text(self) -> str:
        """All of it, control tokens as they are spelled."""
        return "".join(piece.text for piece in self.pieces)


class Segment(NamedTuple):
    """One example in a row."""

    language: str
    source: str
    start: int
    """Its first position in the row."""
    length: int
    """Positions it fills: one less than it has tokens, because the last is only ever a target."""
    spans: tuple[Span, ...]


class PreviewRow(NamedTuple):
    """One packed row."""

    number: int
    length: int
    """Positions, padding included."""
    segments: tuple[Segment, ...]

    @property
    def filled(self) -> int:
        """Positions that are no padding."""
        return sum(segment.length for segment in self.segments)

    @property
    def trained(self) -> int:
        """Positions whose target is trained."""
        return sum(span.tokens for segment in self.segments for span in segment.spans if span.weight > 0)


def take_apart(batch: Batch, numbers: Sequence[int], tokenizer: Tokenizer, facts: DatasetFacts) -> list[PreviewRow]:
    """The rows of a batch; `numbers` is what the plan calls them."""
    return [_take_row(batch, i, number, tokenizer, facts) for i, number in enumerate(numbers)]


def cut_pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[Piece]:
    """The text of each token, in order; without control tokens the texts together are what decoding all gives.

    Tokens that are no whole character by themselves are one piece with those that make it whole.
    """
    spelled = {token: name for name, token in tokenizer.control_ids.items()}
    pieces: list[Piece] = []
    # What stood before decides whether a piece begins with a space.
    before, pending = list[int](), list[int]()
    for index, token in enumerate(ids):
        if tokenizer.is_control(token):
            pieces.append(Piece(spelled[token], (token,), True))
            before = []
            continue
        pending.append(token)
        text = _decode_after(before, pending, tokenizer)
        is_last = index + 1 == len(ids) or tokenizer.is_control(ids[index + 1])
        if text.endswith(BROKEN) and len(pending) < MOST_PENDING and not is_last:
            continue
        pieces.append(Piece(text, tuple(pending), False))
        before, pending = pending, []
    return pieces


def _decode_after(before: list[int], pending: list[int], tokenizer: Tokenizer) -> str:
    if not before:
        return tokenizer.decode(pending)
    start, whole = tokenizer.decode(before), tokenizer.decode([*before, *pending])
    return whole.removeprefix(start) if whole.startswith(start) else tokenizer.decode(pending)


def _take_row(batch: Batch, i: int, number: int, tokenizer: Tokenizer, facts: DatasetFacts) -> PreviewRow:
    count = int(batch.segments_BT[i].max())
    segments = tuple(_take_segment(batch, i, segment, tokenizer, facts) for segment in range(1, count + 1))
    return PreviewRow(number, batch.segments_BT.shape[1], segments)


def _take_segment(batch: Batch, i: int, segment: int, tokenizer: Tokenizer, facts: DatasetFacts) -> Segment:
    at = np.flatnonzero(batch.segments_BT[i] == segment)
    # The first token is an input only: nothing predicts it, so it has no role or weight of its own.
    ids = [int(batch.tokens_BT[i, at[0]]), *batch.targets_BT[i, at].tolist()]
    roles = [int(Role.HEADER), *batch.role_BT[i, at].tolist()]
    weights = [0.0, *batch.loss_weight_BT[i, at].tolist()]
    spans, start = [], 0
    for (role, weight), group in groupby(zip(roles, weights, strict=True)):
        end = start + sum(1 for _ in group)
        spans.append(Span(Role(role), weight, tuple(cut_pieces(ids[start:end], tokenizer))))
        start = end
    language = facts.languages[batch.language_BT[i, at[0]]]
    return Segment(language, facts.sources[batch.source_BT[i, at[0]]], int(at[0]), len(at), tuple(spans))
