"""The one form every example takes: a conversation, tagged with its language and where it came from."""

import msgspec


class Turn(msgspec.Struct, frozen=True):
    """One message. `role` is system, user, assistant or tool; `text` for a text without a conversation, by itself."""

    role: str
    content: str
    train: bool | None = None
    """The row's own word on whether this turn is trained; None: the source's loss policy decides."""
    thoughts: str = ""
    """What the assistant thought before it answered (`reasoning_content`), apart from the content."""
    tool_calls: str = ""
    """JSON text of the list of an assistant's calls, each `{"type": "function", "function": {"name", "arguments"}}`."""
    tool_call_id: str = ""
    """Which call a tool turn answers."""
    name: str = ""
    """Of the tool that answers."""


def texts_of(turn: Turn) -> tuple[str, ...]:
    """What a turn says, as the row has it: its content, thoughts and calls, without those that are empty."""
    return tuple(text for text in (turn.content, turn.thoughts, turn.tool_calls) if text)


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Structured turns plus the facts that travel with every token.

    For evaluation the last turn is the reference answer and the turns before it are the prompt.
    """

    turns: tuple[Turn, ...]
    language: str
    """Standardised BCP-47 tag, e.g. `sw`, `zh-Hant`, `ace-Arab`."""
    source: str
    """Name of the source in the recipe (or of the task, in evaluation)."""
    task: str = ""
    """What is asked: `month_name`, `rewrite`, `translation` ... free text, used to group results."""
    id: str = ""
    """Stable within its source: file and line for files, the fact and phrasing for embedded data."""
    tools: str = ""
    """JSON text of the list of tools the assistant may call, as templates are given it; "" for none."""


ROLES = ("system", "user", "assistant", "tool")
TEXT_ROLE = "text"
"""Role of the only turn of a conversation that is a plain text: no template, every token trained."""


class DataError(ValueError):
    """Bad input data or a recipe that asks the impossible of it. The message names file, line and next action."""
