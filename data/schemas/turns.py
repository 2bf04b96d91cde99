"""Turns, whatever form they were read from: what each must be, and what a conversation of them must be."""

from collections.abc import Sequence

import msgspec

from data.schema import ROLES, DataError, Turn

ROLE_ALIASES = {
    "developer": "system",
    "human": "user",
    "prompter": "user",  # OASST1
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",  # Gemini
    "bot": "assistant",
    "chatbot": "assistant",  # Cohere
    "ai": "assistant",
    "function": "tool",
    "ipython": "tool",  # Llama 3
    "observation": "tool",  # ShareGPT
    "tool_response": "tool",
    "tool_result": "tool",
}
"""What others call the four roles, in lower case; `function_call` is a turn of its own, see `messages`."""


def find_role(name: str, place: str) -> str:
    """Returns one of the four roles. Raises DataError for a name that nobody uses."""
    role = ROLE_ALIASES.get(name.lower(), name.lower())
    if role not in ROLES:
        known = ", ".join((*ROLES, *ROLE_ALIASES))
        raise DataError(f"unknown role {name[:40]!r} ({place}); known are {known}, function_call, tool_call")
    return role


def check_turn(turn: Turn, place: str) -> Turn:
    """Returns the turn. Raises DataError if it is an empty user or assistant turn, or no Unicode text.

    An assistant turn with tool calls may be empty; thoughts alone are no answer.
    """
    if turn.role in ("user", "assistant") and not turn.content.strip() and not turn.tool_calls:
        raise DataError(f"empty {turn.role} turn ({place})")
    for text in (turn.content, turn.thoughts, turn.tool_calls, turn.tool_call_id, turn.name):
        if not is_unicode(text):
            check_unicode(text, f"in the {turn.role} turn ({place})")
    return turn


def is_unicode(text: str) -> bool:
    """Whether a text is free of halves of surrogate pairs, which no UTF-8 can hold."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unicode(text: str, place: str) -> str:
    """Returns the text. Raises DataError if it holds half of a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"lone surrogate {text[error.start]!a} {place}, not Unicode text") from None
    return text


def check_order(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Returns the turns of a conversation. Raises DataError if there are none, a system turn comes after others,
    or the last one is not the assistant's: what follows is asked and never answered."""
    if not turns:
        raise DataError("the row has no turns")
    for index, turn in enumerate(turns):
        if turn.role == "system" and index > 0:
            raise DataError(f"turn {index + 1} is a system turn; it must be the first and the only one")
    if turns[-1].role != "assistant":
        raise DataError(f"the conversation ends with a {turns[-1].role} turn; end it with the assistant's")
    return tuple(turns)


def add_system(system: str, turns: Sequence[Turn], place: str) -> tuple[Turn, ...]:
    """Returns the turns with a system turn first, unless it is blank or already there in the same words.

    Raises DataError if the turns begin with another one.
    """
    if not system.strip():
        return tuple(turns)
    first = check_turn(Turn("system", system), place)
    if not turns or turns[0].role != "system":
        return (first, *turns)
    if turns[0].content != system:
        raise DataError(f"{place} and the first message are two different system prompts; keep one")
    return tuple(turns)


def leave_untrained(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Returns the turns of a prompt: what the assistant said before is not trained, unless a turn says so itself."""
    return tuple(
        msgspec.structs.replace(turn, train=False) if turn.role == "assistant" and turn.train is None else turn
        for turn in turns
    )
