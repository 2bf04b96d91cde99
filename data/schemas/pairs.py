"""A question and its answer in fields of their own, and plain texts."""

from collections.abc import Mapping
from typing import Any

from data.schema import TEXT_ROLE, DataError, Turn
from data.schemas.messages import MessageKeys, read_messages
from data.schemas.turns import add_system, check_turn, check_unicode, leave_untrained
from data.schemas.values import describe, parse_json, take_list, take_optional_text, take_text

Fields = Mapping[str, Any]
Columns = Mapping[str, str]
"""Fields of a form, and what the rows call them."""


def read_instruction(fields: Fields, columns: Columns) -> tuple[Turn, ...]:
    """Returns the turns of `instruction`, `input`, `output`, `system` and `history` (a list of pairs, oldest first).

    A blank line stands between instruction and input. Raises DataError for values that are no text.
    """
    answer = check_turn(Turn("assistant", take_text(fields, columns["output"])), f"field {columns['output']!r}")
    return (*read_asked(fields, columns), answer)


def read_asked(fields: Fields, columns: Columns) -> tuple[Turn, ...]:
    """Returns the turns of an instruction up to its answer: system, history, instruction with input."""
    instruction = take_text(fields, columns["instruction"])
    given = take_optional_text(fields, columns["input"])
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    place = f"field {columns['instruction']!r}"
    turns = (*_read_history(fields.get(columns["history"]), columns["history"]), check_turn(Turn("user", asked), place))
    return add_system(take_optional_text(fields, columns["system"]), turns, f"field {columns['system']!r}")


def read_prompt_completion(fields: Fields, columns: Columns) -> tuple[Turn, ...]:
    """Returns the turns of a prompt and its completion, each a text or a list of messages.

    The completion is what is trained: assistant turns of the prompt are not, unless they say so themselves.
    """
    prompt = read_side(fields, columns["prompt"], columns, role="user")
    completion = read_answer(fields, columns["completion"], columns, prompt)
    turns = (*leave_untrained(prompt), *completion)
    return add_system(take_optional_text(fields, columns["system"]), turns, f"field {columns['system']!r}")


def read_side(fields: Fields, name: str, columns: Columns, *, role: str) -> tuple[Turn, ...]:
    """Returns the turns of a field that is a text, by `role`, or a list of messages, not an empty one."""
    value = fields.get(name)
    if not isinstance(value, list):
        text = take_text(fields, name)
        if _spells_messages(text, columns):
            raise DataError(
                f"field {name!r} is a list of messages spelled as JSON text, which would be trained letter by letter; "
                "keep the rows in a format that holds lists (JSON lines, Parquet), or as `messages`"
            )
        return (check_turn(Turn(role, text), f"field {name!r}"),)
    turns = read_messages(value, MessageKeys(columns["role"], columns["content"]), f"field {name!r}")
    if not turns:
        raise DataError(f"field {name!r} is a list without messages")
    return turns


def read_answer(fields: Fields, name: str, columns: Columns, prompt: tuple[Turn, ...] = ()) -> tuple[Turn, ...]:
    """Returns the turns of an answer, without the prompt where its messages begin by repeating it.

    Raises DataError if the answer begins with another question: it would be asked twice.
    """
    turns = read_side(fields, name, columns, role="assistant")
    size = len(prompt)
    answer = turns[size:] if size and turns[:size] == prompt else turns
    if not answer or answer[0].role in ("system", "user"):
        found = f"begins with a {answer[0].role} turn" if answer else "is the prompt again"
        raise DataError(
            f"field {name!r} {found}; an answer begins with the assistant, or repeats the prompt word by word"
        )
    return answer


def read_text(fields: Fields, columns: Columns) -> tuple[Turn, ...]:
    """Returns a plain text as the only turn. Raises DataError if it is blank."""
    text = check_unicode(take_text(fields, columns["text"]), f"in field {columns['text']!r}")
    if not text.strip():
        raise DataError(f"field {columns['text']!r} is empty")
    return (Turn(TEXT_ROLE, text),)


def _spells_messages(text: str, columns: Columns) -> bool:
    """Whether a text is JSON of a list of messages, as tables that hold texts alone end up with."""
    if not text.lstrip().startswith("[{"):
        return False
    try:
        found = parse_json(text, "")
    except DataError:
        return False
    keys = {columns["role"], columns["content"]}
    return isinstance(found, list) and all(isinstance(each, dict) and keys <= each.keys() for each in found)


def _read_history(value: Any, name: str) -> list[Turn]:
    if value is None or value == "":
        return []
    turns = []
    for number, pair in enumerate(take_list(value, f"field {name!r}"), start=1):
        place = f"field {name!r}, pair {number}"
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"{place} is {describe(pair)}, not a list of two texts, question and answer")
        turns += [check_turn(Turn(role, text), place) for role, text in zip(("user", "assistant"), pair, strict=True)]
    return turns
