"""Values of a row, taken as what they must be or refused by what they are."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from data.schema import DataError

SHOWN_NAMES, SHOWN_CHARACTERS = 20, 40
"""How much of a row's field names and values an error shows."""


def take_text(fields: Mapping[str, Any], name: str) -> str:
    """Returns a field that must be text. Raises DataError if it is missing, null or anything else."""
    if name not in fields:
        raise DataError(f"no field {name!r}; fields are {show_names(fields)}")
    return check_text(fields[name], f"field {name!r}")


def take_optional_text(fields: Mapping[str, Any], name: str) -> str:
    """Returns a field that is text, or "" where it is missing or null. Raises DataError for anything else."""
    value = fields.get(name)
    return "" if value is None else check_text(value, f"field {name!r}")


def check_text(value: Any, place: str) -> str:
    """Returns the value. Raises DataError unless it is text: numbers and objects are never printed into a turn."""
    if not isinstance(value, str):
        raise DataError(f"{place} is {describe(value)}, not text")
    return value


def take_list(value: Any, place: str) -> list[Any]:
    """Returns a list, or the list that JSON text spells (tables of text have no other way to hold one)."""
    found = parse_json(value, place) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise DataError(f"{place} is {describe(value)}, not a list")
    return found


def parse_json(text: str, place: str) -> Any:
    """Returns what JSON text says. Raises DataError naming `place` if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is text that is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is JSON that cannot be read: {error}") from None


def write_json(value: Any, place: str) -> str:
    """Returns a value as JSON text, keys in their order. Raises DataError for what JSON cannot say (NaN, bytes)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{place} cannot be written as JSON: {error}") from None


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, or text or a list without content."""
    return value is None or (isinstance(value, str | list | tuple | dict) and len(value) == 0)


def describe(value: Any) -> str:
    """What a value is, as errors say it: `null`, `a number (42)`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, int) and abs(value) < 10**SHOWN_CHARACTERS:
        return f"a number ({value})"
    if isinstance(value, float):
        return f"a number ({value:g})"
    if isinstance(value, str):
        return f"the text {value[:SHOWN_CHARACTERS]!r}{' ...' if len(value) > SHOWN_CHARACTERS else ''}"
    names = {int: "a huge number", dict: "an object", list: "a list", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def show_names(names: Iterable[str]) -> str:
    """Field names as errors list them, cut where there are very many or very long ones."""
    every = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..." for name in map(str, names)]
    more = f" and {len(every) - SHOWN_NAMES} more" if len(every) > SHOWN_NAMES else ""
    return printable(", ".join(every[:SHOWN_NAMES]) + more or "none")


def printable(text: str) -> str:
    """The text as any log can hold it: rows may hold half surrogate pairs, in names too."""
    return text.encode("utf-8", errors="backslashreplace").decode()
