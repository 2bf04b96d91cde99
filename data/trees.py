"""Message trees (OASST1): rows that point at their parents, read as the best-ranked path of each tree."""

import collections
import math
from pathlib import Path
from typing import NamedTuple

from data.bad_rows import BadRows
from data.jsonl import Row, find_files, note_bad, read_rows
from data.mapping import check_turn, find_language
from data.schema import Conversation, DataError, Turn
from data.source_config import TreeSource

# Reasons for leaving a message out, as they stand in `BadRows.left_out`.
NOT_BEST, UNANSWERED, BELOW_BAD = "not on the best path", "no answer", "below a bad message"


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


def load_trees(source: TreeSource, *, root: Path, bad_rows: BadRows) -> list[Conversation]:
    """Returns one conversation per tree: its root, the best-ranked reply, that one's best-ranked reply, ...

    A user message that nobody answered is cut off the end. Trees without any answer, and messages off the
    best path, are counted in `bad_rows.left_out`. A message whose parent is nowhere is a bad row.
    """
    messages = _read_messages(source, root=root, bad_rows=bad_rows)
    children: Children = collections.defaultdict(list)
    for message in messages.values():
        children[message.parent].append(message)
    left_out = bad_rows.left_out[source.name]
    conversations, reached = [], set[str]()
    for start in list(children[None]):
        tree = _reach(start, children)
        path = _best_path(start, children)
        reached |= tree
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


def _read_messages(source: TreeSource, *, root: Path, bad_rows: BadRows) -> dict[str, Message]:
    messages: dict[str, Message] = {}
    files = find_files(source.path, root)
    for row in read_rows(files, root=root, source=source.name, bad_rows=bad_rows):
        try:
            message = _read_message(row, source)
            if message.id in messages:
                first = messages[message.id].row
                raise DataError(f"{source.id_field} {message.id!r} is also at {first.file}:{first.line}")
            messages[message.id] = message
        except DataError as error:
            note_bad(bad_rows, row, source=source.name, reason=str(error))
    return messages


def _read_message(row: Row, source: TreeSource) -> Message:
    names = (source.id_field, source.parent_field, source.role_field, source.text_field)
    if missing := [name for name in names if name not in row.fields]:
        raise DataError(f"no field {missing[0]!r}; fields are {', '.join(row.fields)}")
    identity, parent, role, text = (row.fields[name] for name in names)
    for name, value in zip(names, (identity, parent or "", role, text), strict=True):
        if not isinstance(value, str):
            raise DataError(f"field {name!r} is {value!r}, not text")
    rank = row.fields.get(source.rank_field)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float) or math.isnan(rank)):
        raise DataError(f"field {source.rank_field!r} is {rank!r}, neither a number nor null")
    roles = {source.assistant_role: "assistant", "system": "system"}
    turn = check_turn(Turn(roles.get(role, "user"), text), f"field {source.text_field!r}")
    language = find_language(source.language, row=row.fields, file_name=Path(row.file).name)
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
        return f"parent {message.parent!r} is in no good row of the source"
    above, seen = messages[message.parent], set[str]()
    while above.id not in seen and above.parent in messages:
        if above.id == message.id:
            return "the message is its own ancestor"
        seen.add(above.id)
        above = messages[above.parent]
    return ""


def _make_conversation(path: list[Message], source: TreeSource) -> Conversation:
    row = path[0].row
    return Conversation(
        turns=tuple(message.turn for message in path),
        language=path[0].language,
        source=source.name,
        task=source.task,
        id=f"{row.file}:{row.line}",
    )
