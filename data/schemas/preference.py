"""Answers with an order: `prompt, chosen, rejected`, and lists of answers from best to worst."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.schema import DataError, Turn
from data.schemas.messages import MessageKeys, read_messages
from data.schemas.pairs import Columns, Fields, read_answer, read_asked, read_side
from data.schemas.turns import add_system, check_order, check_turn, leave_untrained
from data.schemas.values import check_text, describe, take_list, take_optional_text, take_text

TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
"""Where a turn begins in the texts of Anthropic's HH-RLHF, prompt and answer in one."""
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Ranked(NamedTuple):
    """A prompt and its answers, the best first. Every answer ends with an assistant turn."""

    prompt: tuple[Turn, ...]
    answers: tuple[tuple[Turn, ...], ...]


def read_ranked(fields: Fields, *, form: str, columns: Columns) -> Ranked:
    """Returns prompt and answers of a row of form `preference` or `ranked`, all of them checked.

    `form` and `columns` are those of the converter (`Converter.shape`). A row without a prompt of its own gives
    what `chosen` and `rejected` begin with alike, as long as each keeps an answer. Assistant turns of the prompt
    are marked as not trained. Raises DataError if any answer, the rejected ones too, could not be trained.
    """
    readers: dict[str, Callable[[Fields, Columns], Ranked]] = {"preference": _read_pair, "ranked": _read_list}
    ranked = readers[form](fields, columns)
    system = take_optional_text(fields, columns["system"])
    prompt = add_system(system, leave_untrained(ranked.prompt), f"field {columns['system']!r}")
    for answer in ranked.answers:
        check_order((*prompt, *answer))
    return Ranked(prompt, ranked.answers)


def read_best(form: str) -> Callable[[Fields, Columns], tuple[Turn, ...]]:
    """Returns the reader of a form's prompt with its best answer, which is what instruction tuning trains."""

    def read(fields: Fields, columns: Columns) -> tuple[Turn, ...]:
        ranked = read_ranked(fields, form=form, columns=columns)
        return (*ranked.prompt, *ranked.answers[0])

    return read


def is_transcript(value: Any) -> bool:
    """Whether a value is one text of several turns, as HH-RLHF writes them."""
    return isinstance(value, str) and value.startswith("\n\nHuman:") and "\n\nAssistant:" in value


def _read_pair(fields: Fields, columns: Columns) -> Ranked:
    names = (columns["chosen"], columns["rejected"])
    if fields.get(columns["prompt"]) is None:
        return _split_pair(tuple(_read_whole(fields, name, columns) for name in names), names)
    prompt = read_side(fields, columns["prompt"], columns, role="user")
    return Ranked(prompt, tuple(read_answer(fields, name, columns, prompt) for name in names))


def _split_pair(whole: tuple[tuple[Turn, ...], ...], names: tuple[str, ...]) -> Ranked:
    size = 0
    for one, other in zip(whole[0][:-1], whole[1][:-1], strict=False):
        if one != other:
            break
        size += 1
    if size == 0:
        raise DataError(f"no prompt: {names[0]!r} and {names[1]!r} do not begin alike; give a field with `columns`")
    return Ranked(whole[0][:size], tuple(turns[size:] for turns in whole))


def _read_whole(fields: Fields, name: str, columns: Columns) -> tuple[Turn, ...]:
    """The turns of an answer that holds its prompt: messages, or a transcript."""
    value = fields.get(name)
    if isinstance(value, list):
        return read_messages(value, MessageKeys(columns["role"], columns["content"]), f"field {name!r}")
    text = take_text(fields, name)
    if not is_transcript(text):
        raise DataError(
            f"no prompt: field {columns['prompt']!r} is missing, and {name!r} is neither a list of messages nor a "
            "transcript of '\\n\\nHuman:' and '\\n\\nAssistant:'; give the prompt's field with `columns`"
        )
    _, *parts = TRANSCRIPT.split(text)
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(check_turn(Turn(SPEAKERS[who], said.strip()), f"field {name!r}") for who, said in spoken)


def _read_list(fields: Mapping[str, Any], columns: Columns) -> Ranked:
    name = columns["output"]
    if name not in fields:
        take_text(fields, name)
    answers = take_list(fields[name], f"field {name!r}")
    if not answers:
        raise DataError(f"field {name!r} is {describe(fields[name])} without answers")
    texts = (check_text(text, f"field {name!r}, answer {number}") for number, text in enumerate(answers, start=1))
    turns = tuple((check_turn(Turn("assistant", text), f"field {name!r}"),) for text in texts)
    return Ranked(read_asked(fields, columns), turns)
