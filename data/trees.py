"""Message trees (OASST1): rows that point at their parents, read as the best-ranked path of each tree."""

import collections
import math
from collections.abc import Iterable
from typing import NamedTuple

from data.bad_rows import BadRows, note_bad
from data.formats.rows import Row
from data.schema import Conversation, DataError, Turn
from data.schemas.converter import Converter
from data.schemas.turns import check_turn, find_role
from data.schemas.values import SHOWN_CHARACTERS, check_text, describe, show_names
from data.source_config import FileSource, TreeFields

# Reasons for leaving a message out, as they stand in `BadRows.left_out`.
NOT_BEST, UNANSWERED, BELOW_BAD, WHERE = "not on the best path", "no answer", "below a bad message", "where"


class Message(NamedTuple):
    """One message of a tree."""

    id: str
    parent: str | None
    rank: float
    turn: Turn
    language: str
    row: Row


Children = dict[str | None, list[Message]]
"""Messages by the id of their parent, in the file's order; under None the roots."""


def read_trees(rows: Iterable[Row], converter: Converter, *, bad_rows: BadRows) -> list[Conversation]:
    """Returns one conversation per tree: its root, the best-ranked reply, that one's best-ranked reply, ...

    A user message that nobody answered is cut off the end. Trees without any answer, messages off the best path, and
    trees whose root `where` leaves out are counted in `bad_rows.left_out`, by messages. A message whose parent is
    nowhere is a bad row.
    """
    source = converter.source
    messages = _read_messages(rows, converter, bad_rows=bad_rows)
    children: Children = collections.defaultdict(list)
    for message in messages.values():
        children[message.parent].append(message)
    left_out = bad_rows.left_out[source.name]
    conversations, reached = [], set[str]()
    for start in list(children[None]):
        tree = _reach(start, children)
        reached |= tree
        try:
            wanted = converter.is_wanted(start.row, language=start.language)
        except DataError as error:
            note_bad(bad_rows, start.row, source=source.name, reason=str(error), language=start.language)
            left_out[BELOW_BAD] += len(tree) - 1
            continue
        if not wanted:
            left_out[WHERE] += len(tree)
            continue
        path = _best_path(start, children)
        if path:
            conversations.append(_make_conversation(path, source))
        left_out[NOT_BEST if path else UNANSWERED] += len(tree) - len(path)
    for message in messages.values():
        if message.id in reached:
            continue
        reason = _explain_unreached(message, messages)
        if reason:
            note_bad(bad_rows, message.row, source=source.name, reason=reason, language=message.language)
        else:
            left_out[BELOW_BAD] += 1
    return conversations


def _read_messages(rows: Iterable[Row], converter: Converter, *, bad_rows: BadRows) -> dict[str, Message]:
    messages: dict[str, Message] = {}
    tree = converter.source.tree
    for row in rows:
        try:
            message = _read_message(row, tree, converter)
            if message.id in messages:
                first = messages[message.id].row
                raise DataError(f"{tree.id} {_shorten(message.id)} is also at {first.file}:{first.line}")
            messages[message.id] = message
        except DataError as error:
            note_bad(bad_rows, row, source=converter.source.name, reason=str(error))
    return messages


def _read_message(row: Row, tree: TreeFields, converter: Converter) -> Message:
    names = (tree.id, tree.parent, tree.role, tree.text)
    if missing := [name for name in names if name not in row.fields]:
        raise DataError(f"no field {missing[0]!r}; fields are {show_names(row.fields)}")
    identity, parent, role, text = (row.fields[name] for name in names)
    for name, value in zip(names, (identity, "" if parent is None else parent, role, text), strict=True):
        check_text(value, f"field {name!r}")
    rank = row.fields.get(tree.rank)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float) or math.isnan(rank)):
        raise DataError(f"field {tree.rank!r} is {describe(rank)}, neither a number nor null")
    kind = "assistant" if role == tree.assistant_role else find_role(role, f"field {tree.role!r}")
    turn = check_turn(Turn(kind, text), f"field {tree.text!r}")
    language = converter.find_language(row)
    return Message(identity, parent or None, math.inf if rank is None else rank, turn, language, row)


def _best_path(start: Message, children: Children) -> list[Message]:
    """The best-ranked path down from `start` as far as its last answer; empty if it has none."""
    path = [start]
    while replies := children.get(path[-1].id):
        path.append(min(replies, key=lambda message: message.rank))
    while path and path[-1].turn.role != "assistant":
        path.pop()
    return path


def _reach(start: Message, children: Children) -> set[str]:
    """Ids of `start` and everything below it."""
    found, waiting = set[str](), [start]
    while waiting:
        message = waiting.pop()
        found.add(message.id)
        waiting += children.get(message.id, [])
    return found


def _explain_unreached(message: Message, messages: dict[str, Message]) -> str:
    """Why no root leads to a message: its own fault, or "" if a message above it is to blame."""
    if message.parent not in messages:
        return f"parent {_shorten(message.parent or '')} is in no good row of the source"
    above, seen = messages[message.parent], set[str]()
    while above.id not in seen and above.parent in messages:
        if above.id == message.id:
            return "the message is its own ancestor"
        seen.add(above.id)
        above = messages[above.parent]
    return ""


def _shorten(name: str) -> str:
    """What a message is called, as an error says it."""
    return repr(name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}...")


def _make_conversation(path: list[Message], source: FileSource) -> Conversation:
    row = path[0].row
    return Conversation(
        turns=tuple(message.turn for message in path),
        language=path[0].language,
        source=source.name,
        task=source.task,
        id=f"{row.file}:{row.line}",
    )
