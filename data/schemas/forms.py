"""The forms of rows that are known without a mapping: one table, and whether a row has a form.

| form | the row must have | it may have |
|---|---|---|
| messages | messages: list of {role, content} | system, tools |
| conversations | conversations: list of {from, value} | system, tools |
| instruction | instruction, output: texts | input, system, history, tools |
| prompt_completion | prompt, completion: texts or lists of messages | system, tools |
| preference | prompt, chosen, rejected: texts or lists of messages | system, tools |
| ranked | instruction: text; output: list of texts, best first | input, system, history, tools |
| text | text, and no other field but what `BESIDE_TEXT` lists or begins with `_` | |
| tree | message_id, parent_id, role, text (`TreeFields`) | rank |

A `prompt` may be missing where `chosen` and `rejected` hold it: lists of messages, transcripts of HH-RLHF.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.schemas.messages import CONTENT_KEYS, ROLE_KEYS
from data.schemas.preference import is_transcript
from data.schemas.values import is_empty
from data.source_config import TreeFields

LANGUAGE_FIELDS = (
    "language_code", "lang_code", "language", "lang", "_lang", "locale", "language_id", "lang_id", "language_tag",
    "iso_code", "detected_lang",
)  # fmt: skip
"""What rows call their language, the most exact first."""
BESIDE_TEXT = frozenset(
    ("id", "uuid", "idx", "index", "source", "url", "meta", "metadata", "timestamp", "date", "license", "domain",
     "dataset", "title", "file", "path", "split", "score", "token_count", "tokens", "dump", "file_path",
     "language_score", "language_script", "top_langs", "minhash_cluster_size", *LANGUAGE_FIELDS)
)  # fmt: skip
"""Fields that say where a plain text is from; any other would be left untrained without a word."""
LOST_CONTEXT: frozenset[str] = frozenset(
    ("context", "passage", "paragraph", "document", "article", "choices", "options", "evidence", "table", "code",
     "history")
)  # fmt: skip
"""Fields that a question cannot be answered without, and that no form of question and answer reads."""


class Field(NamedTuple):
    """A field of a form: what it is called, what peers call it, and what it must hold to be recognised."""

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = False
    holds: Callable[[Any], bool] = lambda value: value is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the form's own first."""
        return (self.name, *self.aliases)


class Form(NamedTuple):
    """A form of rows."""

    name: str
    fields: tuple[Field, ...]
    keys: tuple[str, str] | None = None
    """What its messages call role and content; None where it has no lists of messages."""
    fits: Callable[[Mapping[str, Any]], bool] = lambda fields: True
    """What a row must fulfil besides having the required fields."""

    @property
    def required(self) -> tuple[Field, ...]:
        """The fields that make the form."""
        return tuple(field for field in self.fields if field.required)


def holds_text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def holds_texts(value: Any) -> bool:
    """Whether a value is a list of texts, and not an empty one."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def holds_messages(value: Any) -> bool:
    """Whether a value is a list of objects of which the first has a role and a content, by any of their names."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and _has_any(first, ROLE_KEYS) and _has_any(first, (*CONTENT_KEYS, "tool_calls"))


def holds_side(value: Any) -> bool:
    """Whether a value is text or a list of messages."""
    return holds_text(value) or holds_messages(value)


def is_only_text(fields: Mapping[str, Any], name: str = "text") -> bool:
    """Whether a row says nothing but a text, in the field `name`, and where it is from."""
    said = (other for other, value in fields.items() if not is_empty(value))
    return all(other == name or other in BESIDE_TEXT or other.startswith("_") for other in said)


def _has_any(message: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(name in message for name in names)


def _holds_sharegpt(value: Any) -> bool:
    return holds_messages(value) and "from" in value[0] and "value" in value[0]


def _holds_roles(value: Any) -> bool:
    """Messages that are not ShareGPT's, or JSON text that may be a list of them (tables of text hold no lists)."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{")
    return holds_messages(value) and not _holds_sharegpt(value)


def _has_prompt(fields: Mapping[str, Any]) -> bool:
    if any(holds_side(fields.get(name)) for name in PROMPT.names):
        return True
    sides = [fields.get(name) for field in (CHOSEN, REJECTED) for name in field.names if name in fields]
    return all(map(holds_messages, sides)) or all(map(is_transcript, sides))


LISTS = ("conversation", "dialog", "dialogue", "dialogs", "chat")
PROMPT = Field("prompt", ("question", "query", "inputs", "input", "problem", "human", "user"), holds=holds_side)
CHOSEN = Field("chosen", ("chosen_response", "preferred"), required=True, holds=holds_side)
REJECTED = Field("rejected", ("rejected_response", "dispreferred"), required=True, holds=holds_side)
ANSWER = ("response", "answer", "output", "targets", "solution", "assistant")
SYSTEM = Field("system", ("system_prompt", "system_message"))
TOOLS = Field("tools", ("functions",))
HISTORY = Field("history")

FORMS = (
    Form(
        "messages",
        (Field("messages", ("conversations", *LISTS), required=True, holds=_holds_roles), SYSTEM, TOOLS),
        keys=("role", "content"),
    ),
    Form(
        "conversations",
        (Field("conversations", ("messages", *LISTS), required=True, holds=_holds_sharegpt), SYSTEM, TOOLS),
        keys=("from", "value"),
    ),
    Form(
        "instruction",
        (
            Field("instruction", required=True, holds=holds_text),
            Field("output", ("response", "completion", "answer"), required=True, holds=holds_text),
            Field("input", ("context",)),
            SYSTEM,
            HISTORY,
            TOOLS,
        ),
    ),
    Form(
        "prompt_completion",
        (
            PROMPT._replace(required=True),
            Field("completion", ANSWER, required=True, holds=holds_side),
            SYSTEM,
            TOOLS,
        ),
        keys=("role", "content"),
    ),
    Form("preference", (CHOSEN, REJECTED, PROMPT, SYSTEM, TOOLS), keys=("role", "content"), fits=_has_prompt),
    Form(
        "ranked",
        (
            Field("instruction", ("prompt", "question", "query"), required=True, holds=holds_text),
            Field("output", ("outputs", "responses", "answers", "completions"), required=True, holds=holds_texts),
            Field("input"),
            SYSTEM,
            HISTORY,
            TOOLS,
        ),
    ),
    Form("text", (Field("text", required=True, holds=holds_text),), fits=is_only_text),
)


def tree_form(tree: TreeFields) -> Form:
    """The form of message trees whose fields are called as `tree` says. A root's parent may be null."""
    always = (tree.id, tree.parent, tree.role, tree.text)
    fields = tuple(Field(name, required=True, holds=holds_text) for name in (tree.id, tree.role, tree.text))
    return Form("tree", (*fields, Field(tree.parent), Field(tree.rank)), fits=lambda row: set(always) <= row.keys())
