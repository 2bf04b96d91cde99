"""Examples that are longer than a row: dropped, cut after a turn, split between turns, or an error; always counted.

What is trained is decided on the whole conversation, before anything is cut. What is kept is rendered again, so its
ids are those of the template on the shorter conversation.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from data.chat import ChatTemplate
from data.encoded import Encoded, is_text, name_conversation, weigh_turns
from data.schema import TEXT_ROLE, Conversation, DataError, Turn
from data.source_config import LossConfig


class Fitted(NamedTuple):
    """What is left of an example, and what is not."""

    kept: tuple[Encoded, ...]
    """Each fits a row and trains something. Empty: the example is dropped."""
    positions: int
    """Positions that the whole example fills: its ids less one."""
    lost_positions: int
    """Those of the turns that were cut; of a text, those of its end."""
    lost_turns: int
    """Turns that are in nothing that is kept."""
    said: tuple[tuple[Turn, ...], ...]
    """The turns of each that is kept; of a piece of a text, the text that it is to predict."""


class _Piece(NamedTuple):
    """Part of a conversation, as an example by itself."""

    encoded: Encoded
    turns: tuple[Turn, ...]


class _Whole(NamedTuple):
    """A conversation too long for a row, ready to be cut."""

    conversation: Conversation
    """Every turn marked as trained or not, where that is not the prompt weight's to say."""
    ends: list[int]
    """Ids of the whole rendering through each turn."""
    chat: ChatTemplate
    loss: LossConfig
    row_length: int


def fit_example(
    conversation: Conversation,
    chat: ChatTemplate,
    *,
    loss: LossConfig,
    row_length: int,
    overlong: Literal["drop", "truncate", "split", "error"],
) -> Fitted:
    """Returns the conversation's ids in pieces of at most `row_length` positions, and what was lost.

    One that fits is one piece, whatever the policy. `truncate`: the longest beginning that ends with an assistant's
    turn, or the beginning of a plain text. `split`: groups of turns one after the other, each from a user's turn on,
    behind the system turn (which trains in the first only) and the tools; a plain text is cut between tokens, the last
    id of a piece being the first of the next, which trains nothing there. Turns that fit no row, and pieces with
    nothing trained, are lost.

    Raises DataError as `encode_conversation` does, and where `overlong` is "error" for an example that does not fit.
    """
    encoded = chat.encode_conversation(conversation, loss)
    positions = len(encoded.ids) - 1
    if positions <= row_length:
        return Fitted((encoded,), positions, 0, 0, (conversation.turns,))
    if overlong == "error":
        raise DataError(
            f"{name_conversation(conversation)} ({conversation.language}) fills {positions} positions but "
            f"data.packing.row_length is {row_length}; set it to {positions} or more, or data.packing.overlong to "
            "drop, truncate or split"
        )
    if overlong == "drop":
        return Fitted((), positions, positions, len(conversation.turns), ())
    if is_text(conversation):
        return _cut_text(encoded, chat, row_length, count=1 if overlong == "truncate" else None)
    whole = _Whole(_settle(conversation, loss), _find_ends(encoded, len(conversation.turns)), chat, loss, row_length)
    cut = _truncate if overlong == "truncate" else _split
    kept, lost = cut(whole)
    lost_positions = sum(whole.ends[turn] - (whole.ends[turn - 1] if turn else 0) for turn in lost)
    if not kept:
        lost, lost_positions = range(len(conversation.turns)), positions
    encodings, said = tuple(piece.encoded for piece in kept), tuple(piece.turns for piece in kept)
    return Fitted(encodings, positions, min(lost_positions, positions), len(lost), said)


def _settle(conversation: Conversation, loss: LossConfig) -> Conversation:
    """The conversation with what the policy says of its assistant turns written into them."""
    weights = weigh_turns(conversation, loss)
    turns = tuple(
        msgspec.structs.replace(turn, train=bool(weight)) if turn.role == "assistant" else turn
        for turn, weight in zip(conversation.turns, weights, strict=True)
    )
    return msgspec.structs.replace(conversation, turns=turns)


def _find_ends(encoded: Encoded, count: int) -> list[int]:
    """Ids through the last one of each turn and the end-of-turn after it; where a turn has no id, through the turn
    before. A template that moves turns makes these estimates, which is all they are used as."""
    ends_T = np.zeros(count, np.int64)
    said_T = np.flatnonzero(encoded.turns >= 0)
    np.maximum.at(ends_T, encoded.turns[said_T], said_T + 2)
    return np.minimum(np.maximum.accumulate(ends_T), len(encoded.ids)).tolist()


def _truncate(whole: _Whole) -> tuple[list[_Piece], list[int]]:
    turns = whole.conversation.turns
    found = _find_longest(whole, 0, _list_answers(turns, 0, len(turns)), system=())
    if found is None:
        return [], list(range(len(turns)))
    stop, piece = found
    return [piece], list(range(stop, len(turns)))


def _split(whole: _Whole) -> tuple[list[_Piece], list[int]]:
    turns = whole.conversation.turns
    opening = next(index for index, turn in enumerate(turns) if turn.role != "system")
    system, bounds = turns[:opening], _find_rounds(turns, opening)
    # A group ends with the last answer of a round; what a round says after it is lost.
    last_answers = [_list_answers(turns, start, stop)[-1:] for start, stop in itertools.pairwise(bounds)]
    kept: list[_Piece] = []
    lost: list[int] = []
    at = 0
    while at < len(bounds) - 1:
        start, later = bounds[at], range(at, len(last_answers))
        stops = {stop: index + 1 for index in later for stop in last_answers[index]}
        found = _find_longest(whole, start, list(stops), system=system)
        if found is None:
            # This round is too long by itself, or trains nothing with all that fits: keep what fits of it.
            found = _find_longest(whole, start, _list_answers(turns, start, bounds[at + 1]), system=system)
            at += 1
        else:
            at = stops[found[0]]
        lost += range(start if found is None else found[0], bounds[at])
        if found is not None:
            kept.append(found[1])
            system = tuple(msgspec.structs.replace(turn, train=False) for turn in system)
    return kept, lost


def _find_rounds(turns: Sequence[Turn], opening: int) -> list[int]:
    """Where groups may begin, the first turn after the system's and each user's turn after an answer; then the end."""
    later = range(opening + 1, len(turns))
    begins = [at for at in later if turns[at].role == "user" and turns[at - 1].role in ("assistant", "tool")]
    return [opening, *begins, len(turns)]


def _list_answers(turns: Sequence[Turn], start: int, stop: int) -> list[int]:
    """The turns after each answer of those from `start` to `stop`."""
    return [index + 1 for index in range(start, stop) if turns[index].role == "assistant"]


def _find_longest(
    whole: _Whole, start: int, stops: Sequence[int], *, system: tuple[Turn, ...]
) -> tuple[int, _Piece] | None:
    """The last of `stops` (rising) at which the turns from `start` on, behind the system's, fit a row and train
    something, as an example; None if none does. The whole rendering says about where that is, so that seldom more than
    two are rendered."""
    turns, ends = whole.conversation.turns, whole.ends
    trained = next((at for at in range(start, len(turns)) if turns[at].role == "assistant" and turns[at].train), None)
    stops = [] if trained is None else [stop for stop in stops if stop > trained]
    before = ends[start - 1] - (ends[len(system) - 1] if system else 0) if start else 0

    def try_stop(index: int) -> _Piece | None:
        kept = msgspec.structs.replace(whole.conversation, turns=(*system, *turns[start : stops[index]]))
        encoded = whole.chat.encode_conversation(kept, whole.loss)
        return _Piece(encoded, kept.turns) if len(encoded.ids) - 1 <= whole.row_length else None

    guess = bisect.bisect_right([ends[stop - 1] - before for stop in stops], whole.row_length + 1) - 1
    found = _search_last(len(stops), max(guess, 0), try_stop)
    return None if found is None else (stops[found[0]], found[1])


def _search_last(count: int, guess: int, try_index: Callable[[int], _Piece | None]) -> tuple[int, _Piece] | None:
    """The last of `count` indices that is accepted, those after one that is refused being refused too: from a guess in
    growing steps, then by halves."""
    best: tuple[int, _Piece] | None = None
    low, high, step, at = 0, count, 1, guess
    while low < high:
        accepted = try_index(at)
        if accepted is None:
            high = at
        else:
            best, low = (at, accepted), at + 1
        if best is not None and high < count:
            at = (low + high) // 2
        else:
            at = max(high - step, low) if best is None else min(low + step - 1, high - 1)
            step *= 2
    return best


def _cut_text(encoded: Encoded, chat: ChatTemplate, row_length: int, *, count: int | None) -> Fitted:
    """A text's ids in pieces of `row_length` positions, the first `count` of them.

    ids 1 2 3 4 5 6 in rows of 2 become 1 2 3, 3 4 5 and 5 6: each id but the first is a target once.
    """
    positions = len(encoded.ids) - 1
    pieces = [
        Encoded(*(array[start : start + row_length + 1].copy() for array in encoded))
        for start in range(0, positions, row_length)
    ][:count]
    for piece in pieces:
        piece.weights[0] = 0
    lost = positions - sum(len(piece.ids) - 1 for piece in pieces)
    said = tuple((Turn(TEXT_ROLE, chat.tokenizer.decode(piece.ids[1:].tolist())),) for piece in pieces)
    return Fitted(tuple(pieces), positions, lost, 0, said)
