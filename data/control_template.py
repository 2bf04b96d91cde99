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
    TURN_ROLES,
    Encoded,
    check_answered,
    check_stop_ids,
    check_turns,
    name_conversation,
)
from data.schema import ROLES, Conversation, DataError, Turn
from data.sentencepiece_tokenizer import SentencePieceTokenizer

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

    def encode_conversation(self, conversation: Conversation) -> Encoded:
        """Returns ids, roles, loss weights and turns of a conversation.

        user "2+2?", assistant "4", with one id per character:

            ids      <bos> <user>  2 + 2 ?  <end> <assistant>  4  <end>
            roles    HEADER HEADER USER USER USER USER USER HEADER ASSISTANT ASSISTANT
            weights  0      0      0    0    0    0    0    0      1         1
            turns    -1     -1     0    0    0    0    -1   -1     1         -1

        Raises DataError for an unknown role, an empty user or assistant turn, or no assistant turn at all: such a
        conversation trains nothing, or trains the model to say nothing.
        """
        check_answered(conversation)
        try:
            contents = self._encode_contents(conversation.turns)
        except DataError as error:
            raise DataError(f"{name_conversation(conversation)}, {error}") from None
        ids, roles, turns = [self.tokenizer.bos_id], [Role.HEADER], [-1]
        for index, (turn, content) in enumerate(zip(conversation.turns, contents, strict=True)):
            ids += [self.tokenizer.role_ids[turn.role], *content, self.tokenizer.end_id]
            roles += [Role.HEADER] + [TURN_ROLES[turn.role]] * (len(content) + 1)
            turns += [-1, *[index] * len(content), -1]
        roles_T = np.array(roles, np.int8)
        weights_T = (roles_T == Role.ASSISTANT).astype(np.float32)
        return Encoded(np.array(ids, np.int32), roles_T, weights_T, np.array(turns, np.int16))

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids up to and including the assistant's role token, from where the model answers.

        Exactly a prefix of `encode_conversation` of the same turns followed by an assistant turn.
        Raises DataError as `encode_conversation` does.
        """
        ids = [self.tokenizer.bos_id]
        for turn, content in zip(turns, self._encode_contents(turns), strict=True):
            ids += [self.tokenizer.role_ids[turn.role], *content, self.tokenizer.end_id]
        return [*ids, self.tokenizer.role_ids["assistant"]]

    def _encode_contents(self, turns: Sequence[Turn]) -> list[list[int]]:
        check_turns(turns)
        contents = []
        for index, turn in enumerate(turns):
            try:
                contents.append(self.tokenizer.encode(turn.content))
            except DataError as error:
                raise DataError(f"turn {index}: {error}") from None
            if turn.role in ("user", "assistant") and not contents[-1]:
                raise DataError(f"turn {index}: the {turn.role} turn is empty; fix the row or leave it out")
        return contents
