"""The one form every example takes: a conversation, tagged with its language and where it came from."""

import msgspec


class Turn(msgspec.Struct, frozen=True):
    """One message. `role` is system, user, assistant or tool."""

    role: str
    content: str


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


ROLES = ("system", "user", "assistant", "tool")


class DataError(ValueError):
    """Bad input data or a recipe that asks the impossible of it. The message names file, line and next action."""
