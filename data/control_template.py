"""The chat template of SentencePiece tokenizers: control tokens are ids, never text.

    <bos> <user> Capital of Kenya? <end> <assistant> Nairobi <end>

Every turn is its role's token, its content as it is (nothing added or stripped), and the end-of-turn token.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from data.batch import Role
from data.encoded import (
    ANSWERS_ALONE,
    TURN_ROLES,
    Encoded,
    check_stop_ids,
    check_turns,
    encode_text,
    is_text,
    name_conversation,
    weigh_turns,
)
from data.schema import ROLES, Conversation, DataError, Turn
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.source_config import LossConfig

# What the template is, as data: change it and `template_hash` changes, so old checkpoints notice.
DEFINITION = {
    "version": 1,
    "conversation": ["bos", "turns"],
    "turn": ["role", "content", "end"],
    "roles": list(ROLES),
    "trained": {"assistant": ["content", "end"]},
}


def template_hash() -> str:
    """Returns the sha256 of the template's definition; it knows nothing of any tokenizer's ids."""
    return hashlib.sha256(json.dumps(DEFINITION, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlTemplate:
    """A `data.chat.ChatTemplate`. Raises DataError if a stop id is the pad id."""

    tokenizer: SentencePieceTokenizer
    extra_stop_ids: tuple[int, ...] = ()
    """Ids that end an answer besides the end-of-turn token."""

    def __post_init__(self) -> None:
        check_stop_ids(self.stop_ids, self.tokenizer.pad_id, name=self.name)

    @property
    def name(self) -> str:
        """What errors call it."""
        return "the control-token template"

    @property
    def hash(self) -> str:
        """sha256 of the template's definition."""
        return template_hash()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end-of-turn token's, then those given."""
        return tuple(dict.fromkeys((self.tokenizer.end_id, *self.extra_stop_ids)))

    @property
    def notices(self) -> tuple[str, ...]:
        """None: prompts are always how conversations begin."""
        return ()

    @property
    def jinja(self) -> str:
        """The template in Jinja; what it renders, its control tokens read as such, has the same ids."""
        spelled = {token: name for name, token in self.tokenizer.control_ids.items()}
        names = {role: spelled[self.tokenizer.role_ids[role]] for role in ROLES}
        end = json.dumps(spelled[self.tokenizer.end_id])
        return (
            f"{{%- set names = {json.dumps(names)} -%}}\n"
            f"{{{{- {json.dumps(spelled[self.tokenizer.bos_id])} -}}}}\n"
            "{%- for message in messages -%}\n"
            f"    {{{{- names[message.role] + message.content + {end} -}}}}\n"
            "{%- endfor -%}\n"
            "{%- if add_generation_prompt -%}\n"
            "    {{- names.assistant -}}\n"
            "{%- endif -%}\n"
        )

    def encode_conversation(self, conversation: Conversation, loss: LossConfig = ANSWERS_ALONE) -> Encoded:
        """Returns ids, roles, loss weights and turns of a conversation, trained as the policy and its marks say.

        user "2+2?", assistant "4", with one id per character:

            ids      <bos> <user>  2 + 2 ?  <end> <assistant>  4  <end>
            roles    HEADER HEADER USER USER USER USER USER HEADER ASSISTANT ASSISTANT
            weights  0      0      0    0    0    0    0    0      1         1
            turns    -1     -1     0    0    0    0    -1   -1     1         -1

        Raises DataError for an unknown role, an empty user or assistant turn, tools, calls or thoughts, which the
        template has no form for, or no assistant turn that is trained: such a conversation trains nothing, or trains
        the model to say nothing.
        """
        if is_text(conversation):
            return encode_text(conversation, self.tokenizer)
        weights = weigh_turns(conversation, loss)
        try:
            contents = self._encode_contents(conversation.turns, conversation.tools)
        except DataError as error:
            raise DataError(f"{name_conversation(conversation)}, {error}") from None
        tokenizer = self.tokenizer
        lengths = np.array([len(content) for content in contents])
        ids_T = np.array(
            [tokenizer.bos_id, *self._join(conversation.turns, contents)],
            np.int32,
        )
        roles_T = np.full(len(ids_T), Role.HEADER, np.int8)
        weights_T = np.zeros(len(ids_T), np.float32)
        turns_T = np.full(len(ids_T), -1, np.int16)
        starts = 2 + np.concatenate(([0], np.cumsum(lengths + 2)[:-1]))
        for index, (turn, start, end) in enumerate(
            zip(conversation.turns, starts.tolist(), (starts + lengths).tolist(), strict=True)
        ):
            roles_T[start : end + 1] = TURN_ROLES[turn.role]
            weights_T[start : end + (turn.role == "assistant")] = weights[index]
            turns_T[start:end] = index
        return Encoded(ids_T, roles_T, weights_T, turns_T)

    def encode_prompt(self, turns: Sequence[Turn], *, tools: str = "") -> list[int]:
        """Returns the ids up to and including the assistant's role token, from where the model answers.

        Exactly a prefix of `encode_conversation` of the same turns followed by an assistant turn.
        Raises DataError as `encode_conversation` does.
        """
        contents = self._encode_contents(turns, tools)
        return [self.tokenizer.bos_id, *self._join(turns, contents), self.tokenizer.role_ids["assistant"]]

    def _join(self, turns: Sequence[Turn], contents: Sequence[list[int]]) -> list[int]:
        ids: list[int] = []
        role_ids, end_id = self.tokenizer.role_ids, self.tokenizer.end_id
        for turn, content in zip(turns, contents, strict=True):
            ids.append(role_ids[turn.role])
            ids += content
            ids.append(end_id)
        return ids

    def _encode_contents(self, turns: Sequence[Turn], tools: str) -> list[list[int]]:
        check_turns(turns)
        _check_forms(turns, tools)
        contents = []
        for index, turn in enumerate(turns):
            try:
                contents.append(self.tokenizer.encode(turn.content))
            except DataError as error:
                raise DataError(f"turn {index}: {error}") from None
            if turn.role in ("user", "assistant") and not contents[-1]:
                raise DataError(f"turn {index}: the {turn.role} turn is empty; fix the row or leave it out")
        return contents


def _check_forms(turns: Sequence[Turn], tools: str) -> None:
    """Raises DataError for what the template would leave out."""
    found = "tools" if tools else ""
    for index, turn in enumerate(turns):
        if turn.tool_calls or turn.thoughts:
            found = f"{'tool calls' if turn.tool_calls else 'thoughts'} (turn {index})"
            break
    if found:
        raise DataError(
            f"the control-token template has no form for {found}; use a tokenizer and a template that have one, such "
            "as qwen3, or take them out of the row"
        )
