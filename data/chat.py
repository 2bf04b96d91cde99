"""The chat template: structured turns to ids, roles and loss weights. Control tokens are ids, never text.

    <bos> <user> Capital of Kenya? <end> <assistant> Nairobi <end>

Every turn is its role's token, its content as it is (nothing added or stripped), and the end-of-turn token.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.batch import Role
from data.schema import ROLES, Conversation, DataError, Turn
from data.tokenizer import Tokenizer

# What the template is, as data: change it and `template_hash` changes, so old checkpoints notice.
DEFINITION = {
    "version": 1,
    "conversation": ["bos", "turns"],
    "turn": ["role", "content", "end"],
    "roles": list(ROLES),
    "trained": {"assistant": ["content", "end"]},
}
TURN_ROLES = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT, "tool": Role.TOOL}


class Encoded(NamedTuple):
    """One conversation as three arrays of equal length. Roles and weights are of the id, not its target."""

    ids: np.ndarray
    """int32"""
    roles: np.ndarray
    """int8, `data.batch.Role`"""
    weights: np.ndarray
    """float32: 1 on assistant content and the end-of-turn that closes it, else 0"""


def template_hash() -> str:
    """Returns the sha256 of the template's definition; it knows nothing of any tokenizer's ids."""
    return hashlib.sha256(json.dumps(DEFINITION, sort_keys=True).encode()).hexdigest()


def encode_conversation(conversation: Conversation, tokenizer: Tokenizer) -> Encoded:
    """Returns ids, roles and loss weights of a conversation.

    user "2+2?", assistant "4", with one id per character:

        ids      <bos> <user>  2 + 2 ?  <end> <assistant>  4  <end>
        roles    HEADER HEADER USER USER USER USER USER HEADER ASSISTANT ASSISTANT
        weights  0      0      0    0    0    0    0    0      1         1

    Raises DataError for an unknown role, an empty user or assistant turn, or no assistant turn at all: such a
    conversation trains nothing, or trains the model to say nothing.
    """
    if not any(turn.role == "assistant" for turn in conversation.turns):
        raise DataError(f"{_where(conversation)} has no assistant turn, so it would train nothing; add one or drop it")
    ids, roles = [tokenizer.bos_id], [Role.HEADER]
    for index, turn in enumerate(conversation.turns):
        try:
            encoded = _encode_turn(turn, tokenizer)
        except DataError as error:
            raise DataError(f"{_where(conversation)}, turn {index}: {error}") from None
        ids += encoded
        roles += [Role.HEADER] + [TURN_ROLES[turn.role]] * (len(encoded) - 1)
    roles_T = np.array(roles, np.int8)
    return Encoded(np.array(ids, np.int32), roles_T, (roles_T == Role.ASSISTANT).astype(np.float32))


def encode_prompt(turns: Sequence[Turn], tokenizer: Tokenizer) -> list[int]:
    """Returns the ids up to and including the assistant's role token, from where the model answers.

    Exactly a prefix of `encode_conversation` of the same turns followed by an assistant turn.
    Raises DataError as `encode_conversation` does.
    """
    ids = [tokenizer.bos_id]
    for turn in turns:
        ids += _encode_turn(turn, tokenizer)
    return [*ids, tokenizer.role_ids["assistant"]]


def _encode_turn(turn: Turn, tokenizer: Tokenizer) -> list[int]:
    if turn.role not in TURN_ROLES:
        raise DataError(f"unknown role {turn.role!r}; use one of {', '.join(ROLES)}")
    content = tokenizer.encode(turn.content)
    if turn.role in ("user", "assistant") and (not turn.content.strip() or not content):
        raise DataError(f"the {turn.role} turn is empty; fix the row or leave it out")
    return [tokenizer.role_ids[turn.role], *content, tokenizer.end_id]


def _where(conversation: Conversation) -> str:
    return f"{conversation.source} {conversation.id}".strip() or "a conversation"
