"""What a chat template makes of a conversation, and what every template refuses."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.batch import Role
from data.schema import ROLES, Conversation, DataError, Turn

TURN_ROLES = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT, "tool": Role.TOOL}
SHOWN = 240
"""Characters of a row that an error shows, at each end of it."""


class Encoded(NamedTuple):
    """One conversation as arrays of equal length. Roles and weights are of the id, not its target."""

    ids: np.ndarray
    """int32"""
    roles: np.ndarray
    """int8, `data.batch.Role`"""
    weights: np.ndarray
    """float32: 1 on what the model says in an assistant turn and the end-of-turn that closes it, else 0"""
    turns: np.ndarray
    """int16: index of the turn whose content the id spells, -1 for scaffolding and end-of-turn tokens"""


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises DataError for an unknown role or an empty user or assistant turn, with the turn's index."""
    for index, turn in enumerate(turns):
        if turn.role not in TURN_ROLES:
            raise DataError(f"turn {index}: unknown role {turn.role!r}; use one of {', '.join(ROLES)}")
        if turn.role in ("user", "assistant") and not turn.content.strip():
            raise DataError(f"turn {index}: the {turn.role} turn is empty; fix the row or leave it out")


def check_answered(conversation: Conversation) -> None:
    """Raises DataError for a conversation without an assistant turn: it would train nothing."""
    if not any(turn.role == "assistant" for turn in conversation.turns):
        where = name_conversation(conversation)
        raise DataError(f"{where} has no assistant turn, so it would train nothing; add one or drop it")


def check_stop_ids(stop_ids: Sequence[int], pad_id: int, *, name: str) -> None:
    """Raises DataError if padding looks like an end of turn: batches that hold both are ambiguous."""
    if pad_id in stop_ids:
        raise DataError(f"{name}: the pad id {pad_id} is also a stop id; give the tokenizer a pad token of its own")


def name_conversation(conversation: Conversation) -> str:
    """Source and id, for errors."""
    return f"{conversation.source} {conversation.id}".strip() or "a conversation"


def shorten(text: str) -> str:
    """The text as an error shows it: quoted, its middle left out where it is long."""
    if len(text) > 2 * SHOWN:
        text = f"{text[:SHOWN]} ... {text[-SHOWN:]}"
    return repr(text)
