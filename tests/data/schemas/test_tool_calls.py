"""Tools and calls in all their spellings, written in the one that templates are given."""

import json

import pytest

from data.schema import DataError
from data.schemas.tools import read_calls, read_tools

FUNCTION = {"name": "weather", "description": "Hali ya hewa", "parameters": {"type": "object"}}
WRAPPED = [{"type": "function", "function": FUNCTION}]
CALL = {"name": "weather", "arguments": {"city": "Dodoma", "days": 2}}
WRITTEN = [{"type": "function", "function": CALL}]


@pytest.mark.parametrize("given", [WRAPPED, [FUNCTION], json.dumps(WRAPPED), json.dumps([FUNCTION])])
def test_tools_are_wrapped_once_and_stay_readable(given):
    assert json.loads(read_tools(given, "tools")) == WRAPPED
    assert "Hali ya hewa" in read_tools(given, "tools")


@pytest.mark.parametrize("given", [None, "", [], "[]"])
def test_no_tools_are_no_text(given):
    assert read_tools(given, "tools") == read_calls(given, "calls") == ""


@pytest.mark.parametrize(
    "given",
    [
        WRITTEN, CALL, [CALL], json.dumps(CALL), json.dumps(WRITTEN),
        [{"function": CALL | {"arguments": json.dumps(CALL["arguments"])}}],
    ],
)  # fmt: skip
def test_arguments_are_objects_however_they_were_given(given):
    """A template that prints a string of JSON escapes it: the model would learn backslashes."""
    assert json.loads(read_calls(given, "calls")) == WRITTEN


def test_a_call_keeps_its_id():
    assert json.loads(read_calls([{"id": "c1", **WRITTEN[0]}], "calls")) == [{"id": "c1", **WRITTEN[0]}]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{", "calls is text that is not JSON"),
        ("7", r"calls\[0\] is a number \(7\), not a call"),
        (["weather"], r"calls\[0\] is the text 'weather', not a call"),
        ([{"function": "weather"}], r"the function of calls\[0\] is the text 'weather'"),
        ([{"arguments": {}}], r"the name of calls\[0\] is null, not text"),
        ([CALL, {"name": "f"}], r"the arguments of calls\[1\] are null, not an object"),
        ([{"name": "f", "arguments": "city"}], r"the arguments of calls\[0\] is text that is not JSON"),
        ([{"name": "f", "arguments": "[1]"}], r"the arguments of calls\[0\] are a list, not an object"),
        ([{"name": "f", "arguments": {"x": float("nan")}}], "calls cannot be written as JSON"),
        ([CALL | {"id": 7}], r"the id of calls\[0\]"),
    ],
)
def test_a_call_that_is_none_is_refused(given, reason):
    with pytest.raises(DataError, match=reason):
        read_calls(given, "calls")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("weather", "not JSON"), ({"name": "f"}, "is an object, not a list"), ([3], r"tools\[0\] is a number"),
        ([{"type": "function"}], r"the name of tools\[0\]"), ([{"name": "\ud800"}], "lone surrogate"),
        ([{"name": "f", "x": b"1"}], "cannot be written as JSON"),
    ],
)  # fmt: skip
def test_a_tool_that_is_none_is_refused(given, reason):
    with pytest.raises(DataError, match=reason):
        read_tools(given, "tools")
