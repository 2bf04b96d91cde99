"""Tools and calls of tools, in the one spelling that templates are given."""

from typing import Any

from data.schema import DataError
from data.schemas.turns import check_unicode
from data.schemas.values import check_text, describe, is_empty, parse_json, take_list, write_json


def read_tools(value: Any, place: str) -> str:
    """Returns JSON text of a list of `{"type": "function", "function": {"name", ...}}`, or "" for none.

    `value` is a list, or JSON text of one; a tool without the wrapping gets it. Raises DataError for a tool
    without a name.
    """
    if is_empty(value):
        return ""
    tools = [_wrap(tool, f"{place}[{index}]") for index, tool in enumerate(take_list(value, place))]
    return check_unicode(write_json(tools, place), f"in {place}") if tools else ""


def read_calls(value: Any, place: str) -> str:
    """Returns JSON text of a list of calls, arguments as objects, or "" for none.

    `value` is a list of calls, one call, or JSON text of either; arguments may be JSON text themselves. A call
    keeps its `id`. Raises DataError for a call without a name, or with arguments that are no object.
    """
    if is_empty(value):
        return ""
    found = parse_json(value, place) if isinstance(value, str) else value
    calls = found if isinstance(found, list) else [found]
    read = [_read_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]
    return write_json(read, place) if read else ""


def _wrap(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise DataError(f"{place} is {describe(tool)}, not an object that describes a tool")
    wrapped = tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool}
    check_text(wrapped["function"].get("name"), f"the name of {place}")
    return wrapped


def _read_call(call: Any, place: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise DataError(f"{place} is {describe(call)}, not a call with name and arguments")
    function = call if call.get("function") is None else call["function"]
    if not isinstance(function, dict):
        raise DataError(f"the function of {place} is {describe(function)}, not an object")
    name = check_text(function.get("name"), f"the name of {place}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"the arguments of {place}")
    if not isinstance(arguments, dict):
        raise DataError(f"the arguments of {place} are {describe(arguments)}, not an object or JSON text of one")
    read = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return read if call.get("id") is None else {"id": check_text(call["id"], f"the id of {place}"), **read}
