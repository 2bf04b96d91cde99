"""Values of columns and arrays as plain ones, as templates and JSON have them."""

import datetime
import decimal
import uuid
from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """Returns a value made of dicts, lists, text, numbers, booleans and None alone.

    Times become ISO 8601 text, decimals and UUIDs text, bytes the UTF-8 text they hold, arrays lists. Raises ValueError
    for a value that has no such form: bytes that are no text, nanoseconds, an image.
    """
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    if kind is dict:
        return {name: to_plain(item) for name, item in value.items()}
    if kind in (list, tuple):
        return [to_plain(item) for item in value]
    if kind is bytes:
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, datetime.datetime | datetime.date | datetime.time) and not getattr(value, "nanosecond", 0):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise ValueError(f"it is a {kind.__name__}")
