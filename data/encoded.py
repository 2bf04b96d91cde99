"""What a chat template makes of a conversation, and what every template refuses."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.batch import Role
from data.schema import ROLES, TEXT_ROLE, Conversation, DataError, Turn
from data.source_config import LossConfig
from data.tokenizer import Tokenizer

TURN_ROLES = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT, "tool": Role.TOOL}
SHOWN = 240
"""Characters of a row that an error shows, at each end of it."""

MOST_TURNS = np.iinfo(np.int16).max
"""Of one conversation: `Encoded.turns` counts them in 16 bits."""


class Encoded(NamedTuple):
    """One conversation as arrays of equal length. Roles and weights are of the id, not its target."""

    ids: np.ndarray
    """int32"""
    roles: np.ndarray
    """int8, `data.batch.Role`"""
    weights: np.ndarray
    """float32: 1 on what the model says in a trained turn and the end-of-turn that closes it, `prompt_weight` on the
    contents of other turns where the policy says so, else 0"""
    turns: np.ndarray
    """int16: index of the turn whose text (content, thoughts, calls) the id spells, -1 for scaffolding and
    end-of-turn tokens"""


ANSWERS_ALONE = LossConfig()
"""The loss policy where nobody asks for another."""


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises DataError for an unknown role or an empty user or assistant turn, with the turn's index.

    An assistant that calls a tool may say nothing else.
    """
    if len(turns) > MOST_TURNS:
        raise DataError(f"{len(turns)} turns are more than {MOST_TURNS}; split the row")
    for index, turn in enumerate(turns):
        if turn.role == TEXT_ROLE:
            raise DataError(f"turn {index}: a text stands by itself, with no other turn; put it into a row of its own")
        if turn.role not in TURN_ROLES:
            raise DataError(f"turn {index}: unknown role {turn.role!r}; use one of {', '.join(ROLES)}")
        if turn.role in ("user", "assistant") and not turn.content.strip() and not turn.tool_calls:
            raise DataError(f"turn {index}: the {turn.role} turn is empty; fix the row or leave it out")
        if turn.role != "assistant" and (turn.tool_calls or turn.thoughts):
            what = "tool_calls" if turn.tool_calls else "thoughts"
            raise DataError(f"turn {index}: the {turn.role} turn has {what}; only an assistant's can")


def weigh_turns(conversation: Conversation, loss: LossConfig) -> list[float]:
    """Returns the weight of what each turn says: 1 where it is trained, `prompt_weight` or 0 elsewhere.

    A turn's own `train` mark wins over the policy. Raises DataError where no assistant turn is trained.
    """
    turns, where = conversation.turns, name_conversation(conversation)
    last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise DataError(f"{where} has no assistant turn, so it would train nothing; add one or drop it")
    weights = []
    for index, turn in enumerate(turns):
        if turn.train is not None:
            weights.append(float(turn.train))
        elif turn.role == "assistant":
            weights.append(float(loss.turns == "all" or index == last))
        else:
            weights.append(loss.prompt_weight)
    if not any(weight and turn.role == "assistant" for turn, weight in zip(turns, weights, strict=True)):
        shown = shorten(" / ".join(turn.content for turn in turns))
        raise DataError(
            f"{where} trains none of its assistant turns: its `train` marks leave out all that loss.turns "
            f"{loss.turns!r} would; mark one, or drop the row: {shown}"
        )
    return weights


def is_text(conversation: Conversation) -> bool:
    """Whether the conversation is a plain text by itself."""
    return len(conversation.turns) == 1 and conversation.turns[0].role == TEXT_ROLE


def encode_text(conversation: Conversation, tokenizer: Tokenizer) -> Encoded:
    """Returns the ids of a plain text between the tokenizer's beginning and end of text, where it has these.

    Every id but the first is trained; control tokens that the text spells stay text.

        ids      <bos>  a     b     <eos>
        roles    HEADER TEXT  TEXT  TEXT
        weights  0      1     1     1
        turns    -1     0     0     -1

    Raises DataError naming the conversation for a text with fewer than one id to train.
    """
    where, (turn,) = name_conversation(conversation), conversation.turns
    try:
        content = tokenizer.encode(turn.content)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not turn.content.strip() or turn.train is False:
        fault = "is empty" if turn.train is not False else "is marked `train: false`"
        raise DataError(f"{where}: the text {fault}, so it would train nothing; drop it: {shorten(turn.content)}")
    before = [token for token in (tokenizer.bos_id,) if token is not None]
    after = [token for token in (tokenizer.eos_id,) if token is not None]
    ids_T = np.array([*before, *content, *after], np.int32)
    if len(ids_T) < 2:
        raise DataError(f"{where}: no token would be trained in the text {shorten(turn.content)}; drop it")
    roles_T = np.full(len(ids_T), Role.TEXT, np.int8)
    roles_T[: len(before)] = Role.HEADER
    weights_T = np.ones(len(ids_T), np.float32)
    weights_T[0] = 0
    turns_T = np.full(len(ids_T), -1, np.int16)
    turns_T[len(before) : len(before) + len(content)] = 0
    return Encoded(ids_T, roles_T, weights_T, turns_T)


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
