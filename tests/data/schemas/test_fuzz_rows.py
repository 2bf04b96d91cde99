"""Rows mutated at random: each becomes a conversation whose every word stands in the row, or a DataError."""

import contextlib
import copy
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from rows_of_forms import GOOD, converter_of, row

from data.schema import Conversation, DataError

MUTATIONS = 250
"""Of each form."""
DEEP: Any = json.loads("[" * 200 + "]" * 200)
JUNK = [
    None, True, False, 0, -1, 0.5, float("nan"), float("inf"), 10**5000, "", " \n", "\ud800", "x" * 50_000, b"bytes",
    [], {}, [[]], [None], {"a": 1}, {"role": "user"}, ["a", "b"], [["a", "b"]], "{'a': 1}", '{"a": 1}', "[]", "null",
    DEEP, {"name": "f", "arguments": {"x": DEEP}}, {"type": "text", "text": "part"}, [{"type": "text", "text": 5}],
    (1, 2), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "assistant", "user", "system",
    "tool", "[" * 100_000, '{"name": "f", "arguments": "{}"}',
]  # fmt: skip
NAMES = [
    "", " ", "role ", "Role", "\u202erole", "ro\u0301le", "\ud800", "角色", "content", "text", "value", "from", "role",
    "messages", "system", "prompt", "output", "response", "tool_calls", "tools", "history", "train", "weight", "images",
    "thinking", "rejected", "x" * 5000, "__class__", "name",
]  # fmt: skip
ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "observation": "tool",
    "user": "user", "assistant": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
FIELD_ROLES = {
    "system": "system", "instruction": "user", "input": "user", "prompt": "user", "output": "assistant",
    "completion": "assistant", "response": "assistant", "chosen": "assistant", "text": "text",
}  # fmt: skip


def walk(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of everything in a value, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        if len(path) < 6:
            yield from walk(inner, (*path, key))


def mutate(fields: dict, random: random.Random) -> dict:
    """A copy of a row with one to three things wrong (or at least other) somewhere in it."""
    fields = copy.deepcopy(fields)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        paths = list(walk(fields))
        if not paths:
            break
        *parents, key = random.choice(paths)
        holder: Any = fields
        for part in parents:
            holder = holder[part]
        value = holder[key]
        kind = random.randrange(9)
        if kind <= 3:
            holder[key] = copy.deepcopy(random.choice(JUNK))
        elif kind == 4:
            holder[key] = random.choice(([value], {"a": value}, {"text": value}, [value, value], [[value]]))
        elif kind == 5:
            del holder[key]
        elif kind == 6 and isinstance(holder, dict):
            holder[random.choice(NAMES)] = holder.pop(key)
        elif kind == 7 and isinstance(holder, dict):
            holder[random.choice(NAMES)] = copy.deepcopy(random.choice([value, *JUNK]))
        elif isinstance(holder, list):
            random.shuffle(holder)
        elif isinstance(value, dict | list):
            with contextlib.suppress(ValueError):  # a number of 5,000 digits
                holder[key] = json.dumps(value, default=repr)
    return fields


def said_in(value: Any) -> Iterator[tuple[str, str]]:
    """(role, text) of everything that a row says, by this test's own reading of it."""
    if isinstance(value, dict):
        yield from said_by(value)
    if isinstance(value, list) and len(value) == 2:  # a pair of a history
        yield from ((role, text) for role, text in zip(("user", "assistant"), value, strict=True) if type(text) is str)
    for inner in inner_of(value):
        yield from said_in(inner)
    if isinstance(value, str) and not isinstance(parsed(value), str):
        yield from said_in(parsed(value))


def said_by(holder: dict) -> Iterator[tuple[str, str]]:
    """What a message, or the fields of a row, say themselves."""
    for role in (ROLES.get(name.lower()) for key in ("role", "from") if isinstance(name := holder.get(key), str)):
        for content in (holder.get("content"), holder.get("value"), holder.get("text")):
            yield from ((role, text) for text in texts_of(content) if role is not None)
    for name, role in FIELD_ROLES.items():
        given = holder.get(name)
        answers = parsed(given) if name == "output" else None
        every = [given, *(answers if isinstance(answers, list) else ())]
        yield from ((role, text) for text in every if isinstance(text, str))
    yield "user", "\n\n".join(str(holder[name]) for name in ("instruction", "input") if type(holder.get(name)) is str)


def parsed(value: Any) -> Any:
    """What JSON text says; everything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def inner_of(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def texts_of(content: Any) -> list[str]:
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return ["".join(part["text"] for part in content if isinstance(part.get("text"), str))]
    return [content] if isinstance(content, str) else []


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        if not isinstance(parsed(value), str):
            yield from leaves(parsed(value))
    for inner in inner_of(value):
        yield from leaves(inner)


def check(conversation: Conversation, fields: dict) -> None:
    said, words = set(said_in(fields)), set(leaves(fields))
    for turn in conversation.turns:
        if turn.tool_calls:
            for call in json.loads(turn.tool_calls):
                assert isinstance(call["function"]["name"], str) and isinstance(call["function"]["arguments"], dict)
        assert (turn.role, turn.content) in said or (turn.content == "" and (turn.tool_calls or turn.role == "tool"))
        for text in (turn.thoughts, turn.tool_call_id, turn.name):
            assert text == "" or text in words
    assert conversation.turns[-1].role in ("assistant", "text")
    assert conversation.language == "sw"
    assert isinstance(json.loads(conversation.tools or "[]"), list)


def survive(convert, fields: dict) -> str:
    """What became of a row: `read`, or the reason it was refused with, fit to be written anywhere."""
    try:
        conversation = convert()
    except DataError as error:
        reason = str(error)
        assert reason.strip() and len(reason) < 2500
        reason.encode("utf-8")
        return "refused"
    check(conversation, fields)
    return "read"


@pytest.mark.parametrize("form", GOOD)
def test_a_mutated_row_is_read_as_it_stands_or_refused_with_a_reason(form):
    random_ = random.Random(form)
    converter = converter_of(GOOD[form])
    became = []
    for _ in range(MUTATIONS):
        fields = mutate(GOOD[form], random_)
        became.append(survive(lambda fields=fields: converter.convert(row(fields)), fields))
    assert became.count("refused") > MUTATIONS / 5
    assert became.count("read") > MUTATIONS / 20


@pytest.mark.parametrize("form", GOOD)
def test_a_source_of_mutated_rows_is_detected_right_or_refused(form):
    random_ = random.Random(form + "detected")
    became = []
    for _ in range(MUTATIONS):
        fields = mutate(GOOD[form], random_)
        became.append(survive(lambda fields=fields: converter_of(fields).convert(row(fields)), fields))
    assert became.count("refused") > MUTATIONS / 10
    assert became.count("read") > MUTATIONS / 20


def test_a_mapping_survives_mutated_rows_too():
    messages = [
        {"each": "history", "messages": [{"role": "user", "content": "{{ item[0] }}"}]},
        {"role": "user", "content": "{{ instruction }}"},
        {"role": "assistant", "content": "{{ output }}"},
    ]
    converter = converter_of(GOOD["instruction"], messages=messages, where="output != instruction")
    random_ = random.Random("mapping")
    refused = 0
    for _ in range(MUTATIONS):
        try:
            converter.convert(row(mutate(GOOD["instruction"], random_)))
        except DataError as error:
            str(error).encode("utf-8")
            refused += 1
    assert MUTATIONS / 20 < refused < MUTATIONS
