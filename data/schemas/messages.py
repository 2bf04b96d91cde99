"""Lists of messages: `messages` (role, content) and ShareGPT's `conversations` (from, value)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from data.schema import ROLES, DataError, Turn
from data.schemas.tools import read_calls
from data.schemas.turns import check_turn, find_role, is_unicode
from data.schemas.values import check_text, describe, is_empty, show_names, take_list

ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
TRAIN_KEYS = ("train", "training", "weight")
CALL_ROLES = ("function_call", "tool_call")
"""Roles of ShareGPT whose content is the call itself, as JSON."""
MEDIA = ("images", "image", "audios", "audio", "videos", "video")
"""What a message or a row holds beside text; a model of text cannot be trained to answer about it."""
UNREADABLE = ("train_detail",)
"""Keys that would change what is trained, and that nothing here reads."""


class MessageKeys(NamedTuple):
    """What messages call their role and their content."""

    role: str = "role"
    content: str = "content"


def read_messages(value: Any, keys: MessageKeys, place: str) -> tuple[Turn, ...]:
    """Returns the turns of a list of messages (or of JSON text of one); blank system messages are left out.

    Raises DataError naming the message, from 1, for an unknown role, content that is not text, an image, a call
    without a name, a mark of training that is neither true nor false.
    """
    turns = []
    for number, message in enumerate(take_list(value, place), start=1):
        turn = _read_plain(message, keys) or _read_message(message, keys, f"{place}, message {number}")
        if turn.role != "system" or turn.content.strip():
            turns.append(turn)
    return tuple(turns)


def refuse_media(fields: Mapping[str, Any], place: str) -> None:
    """Raises DataError if a row or message holds images, sounds or films."""
    for name in MEDIA:
        if not is_empty(fields.get(name)):
            raise DataError(f"{place} has {name!r}: only text can be trained; leave such rows out with `where`")


def _read_plain(message: Any, keys: MessageKeys) -> Turn | None:
    """What `_read_message` makes of most messages: a role and some text, nothing else; None for any other."""
    if type(message) is not dict or len(message) != 2:
        return None
    role, content = message.get(keys.role), message.get(keys.content)
    if role not in ROLES or type(content) is not str or keys.role == keys.content:
        return None
    return Turn(role, content) if content.strip() and is_unicode(content) else None


def _read_message(message: Any, keys: MessageKeys, place: str) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{place} is {describe(message)}, not a message with {keys.role} and {keys.content}")
    _check_keys(message, keys, place)
    name = check_text(message[keys.role], f"the {keys.role} ({place})")
    if name.lower() in CALL_ROLES:
        calls = read_calls(message.get(keys.content), f"the call ({place})")
        return check_turn(Turn("assistant", "", _read_train(message, place), tool_calls=calls), place)
    role = find_role(name, place)
    calls = read_calls(_one_of(message, ("tool_calls", "function_call"), place), f"tool_calls ({place})")
    content = message.get(keys.content)
    turn = Turn(
        role,
        "" if content is None and calls else _read_content(content, f"the {keys.content} ({place})"),
        _read_train(message, place),
        thoughts=_read_optional(_one_of(message, THOUGHT_KEYS, place), f"the thoughts ({place})"),
        tool_calls=calls,
        tool_call_id=_read_optional(message.get("tool_call_id"), f"tool_call_id ({place})"),
        name=_read_optional(message.get("name"), f"name ({place})") if role == "tool" else "",
    )
    _check_role_fits(turn, place)
    return check_turn(turn, place)


def _check_keys(message: Mapping[str, Any], keys: MessageKeys, place: str) -> None:
    """Refuses a message without a role, and one that says its role or content twice."""
    if keys.role not in message:
        raise DataError(f"no {keys.role!r} ({place}); it has {show_names(message)}")
    for chosen, others in ((keys.role, ROLE_KEYS), (keys.content, CONTENT_KEYS)):
        for other in others:
            if other != chosen and not is_empty(message.get(other)):
                raise DataError(f"{other!r} beside {chosen!r} ({place}): only one of them can be read; keep one")
    refuse_media(message, place)
    for name in UNREADABLE:
        if not is_empty(message.get(name)):
            raise DataError(f"{name!r} is not read ({place}); mark whole messages with `train: false`")


def _read_content(content: Any, place: str) -> str:
    """Text as it is, and parts of type text joined without anything between."""
    if not isinstance(content, list):
        return check_text(content, place)
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise DataError(f"{place} has a part that is {describe(part)}, not an object with type and text")
        if part.get("type") != "text":
            raise DataError(f"{place} has a part of type {describe(part.get('type'))}; only text can be trained")
        texts.append(check_text(part.get("text"), f"a part of {place}"))
    return "".join(texts)


def _read_train(message: Mapping[str, Any], place: str) -> bool | None:
    """The message's own word on whether it is trained; None if it says nothing."""
    marks = set()
    for name in TRAIN_KEYS:
        value = message.get(name)
        if value is None:
            continue
        numbers = name == "weight" and not isinstance(value, bool) and isinstance(value, int | float)
        if not isinstance(value, bool) and not (numbers and value in (0, 1)):
            wanted = "0 or 1" if name == "weight" else "true or false"
            raise DataError(f"{name!r} is {describe(value)}, not {wanted} ({place})")
        marks.add(bool(value))
    if len(marks) > 1:
        raise DataError(f"the message says both that it is trained and that it is not ({place})")
    return marks.pop() if marks else None


def _one_of(message: Mapping[str, Any], names: tuple[str, ...], place: str) -> Any:
    """The value of the one name that the message uses; None if it uses none."""
    given = [name for name in names if not is_empty(message.get(name))]
    if len(given) > 1 and any(message[name] != message[given[0]] for name in given):
        raise DataError(f"{' and '.join(given)} say different things ({place}); keep one")
    return message[given[0]] if given else None


def _read_optional(value: Any, place: str) -> str:
    return "" if value is None else check_text(value, place)


def _check_role_fits(turn: Turn, place: str) -> None:
    """Thoughts and calls are the assistant's, the id of a call is a tool's."""
    if turn.role != "assistant" and (turn.thoughts or turn.tool_calls):
        what = "tool calls" if turn.tool_calls else "thoughts"
        raise DataError(f"{what} in a {turn.role} turn ({place}); only an assistant has them")
    if turn.role != "tool" and turn.tool_call_id:
        raise DataError(f"tool_call_id in a {turn.role} turn ({place}); only a tool's answer has one")
