"""Good rows of every form, and what they should become."""

import json

import msgspec

from data.formats.rows import Row
from data.schema import Turn
from data.schemas.converter import Converter, make_converter
from data.source_config import FileSource

CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Dodoma"}}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
Q, A = Turn("user", "Habari?"), Turn("assistant", "Nzuri.")
SAID = [{"role": "user", "content": "Habari?"}, {"role": "assistant", "content": "Nzuri."}]

GOOD = {
    "messages": {
        "messages": [
            {"role": "system", "content": "Kuwa mfupi."},
            {"role": "user", "content": [{"type": "text", "text": "Hali ya "}, {"type": "text", "text": "hewa?"}]},
            {"role": "assistant", "content": None, "tool_calls": CALLS, "reasoning_content": "Nitauliza."},
            {"role": "tool", "content": "31", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": "Joto.", "train": True},
        ],
        "tools": TOOLS,
    },
    "conversations": {
        "conversations": [
            {"from": "human", "value": "Hali ya hewa?"},
            {"from": "function_call", "value": json.dumps(CALLS[0]["function"])},
            {"from": "observation", "value": "31"},
            {"from": "gpt", "value": "Joto.", "weight": 1},
        ],
        "system": "Kuwa mfupi.",
        "tools": json.dumps([tool["function"] for tool in TOOLS]),
    },
    "instruction": {
        "instruction": "Tafsiri.",
        "input": "good",
        "output": "nzuri",
        "system": "Kuwa mfupi.",
        "history": [["Habari?", "Nzuri."]],
    },
    "prompt_completion": {"prompt": "Habari?", "completion": "Nzuri."},
    "preference": {"prompt": SAID[:1], "chosen": SAID[1:], "rejected": "Sijui."},
    "ranked": {"instruction": "Habari?", "input": "", "output": ["Nzuri.", "Sawa.", "Sijui."], "history": []},
    "text": {"text": "Hapo zamani za kale.\n"},
}
"""Every form with all that it may have, in Swahili."""

TURNS = {
    "messages": (
        Turn("system", "Kuwa mfupi."),
        Turn("user", "Hali ya hewa?"),
        Turn("assistant", "", thoughts="Nitauliza.", tool_calls=json.dumps(CALLS)),
        Turn("tool", "31", tool_call_id="c1", name="weather"),
        Turn("assistant", "Joto.", train=True),
    ),
    "conversations": (
        Turn("system", "Kuwa mfupi."),
        Turn("user", "Hali ya hewa?"),
        Turn("assistant", "", tool_calls=json.dumps(CALLS)),
        Turn("tool", "31"),
        Turn("assistant", "Joto.", train=True),
    ),
    "instruction": (Turn("system", "Kuwa mfupi."), Q, A, Turn("user", "Tafsiri.\n\ngood"), Turn("assistant", "nzuri")),
    "prompt_completion": (Q, A),
    "preference": (Q, A),
    "ranked": (Q, A),
    "text": (Turn("text", "Hapo zamani za kale.\n"),),
}


def row(fields: dict, *, line: int = 1, file: str = "rows.jsonl") -> Row:
    return Row(fields, file, line)


def converter_of(*rows: dict, **settings) -> Converter:
    """The converter of a source in Swahili whose first rows are these."""
    settings = {"language": {"constant": "sw"}} | settings
    source = convert_source(**settings)
    return make_converter(source, [row(each, line=n) for n, each in enumerate(rows, start=1)], place="data.sources.0")


def convert_source(**settings) -> FileSource:
    return msgspec.convert({"kind": "files", "name": "x", "path": "rows.jsonl"} | settings, FileSource)


def turns_of(fields: dict, *sample: dict, **settings) -> tuple[Turn, ...]:
    """The turns of a row, read in the form of the sample, or of itself."""
    conversation = converter_of(*(sample or (fields,)), **settings).convert(row(fields))
    assert conversation is not None
    return conversation.turns
