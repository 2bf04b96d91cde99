"""What counts as right: filters, exact match, numbers in any script, and choice by likelihood."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-"})
_MARKS = str.maketrans(
    {"٫": ".", "．": ".", "٬": "'", "，": ",", "’": "'", "\u00a0": "'", "\u202f": "'", "\u2009": "'"}
)
_NUMBER = re.compile(r"(-?)([0-9]+(?:[.,'][0-9]+)*)")
_MARK = re.compile(r"[.,']")
_GROUPED = re.compile(r"(?!0[.,'])[0-9]{1,3}([.,'])(?:[0-9]{2,3}\1)*[0-9]{3}")
_FILTERS = {"strip": str.strip, "nfc": lambda text: unicodedata.normalize("NFC", text)}


class Choice(NamedTuple):
    """The option chosen by each way of comparing log-likelihoods of unequally long options."""

    acc: int
    """By the sum over tokens."""
    acc_norm: int
    """By the sum per character."""
    acc_bytes: int
    """By the sum per UTF-8 byte."""
    acc_tokens: int
    """By the sum per token."""


def apply_filters(text: str, filters: Sequence[str]) -> str:
    """`text` after the named filters, in order."""
    for name in filters:
        text = _FILTERS[name](text)
    return text


def is_exact_match(answer: str, reference: str) -> bool:
    """The two are equal, code point by code point."""
    return answer == reference


def is_number_match(answer: str, reference: str) -> bool:
    """The last number of each is the same; false when either has none."""
    found = extract_number(answer)
    return found is not None and found == extract_number(reference)


def extract_number(text: str) -> Decimal | None:
    """The last number in `text`, written in the decimal digits of any script; None when there is none.

    Digits are those of Unicode's decimal property: `١٢`, `१२` and `１２` are 12; `²` and `十` are none.
    A mark (. , ' or a non-breaking space) before a last group of three digits groups thousands, as in 1,234
    and 1.234 and 1,00,000; another single or last mark is the decimal mark, as in 3,5 and 0.125 and 1.234,50.
    A minus counts unless it joins two words or numbers, as in 5-3 and COVID-19.
    """
    ascii_text = "".join(map(_to_ascii_digit, text.translate(_MINUS).translate(_MARKS)))
    found = list(_NUMBER.finditer(ascii_text))
    if not found:
        return None
    last = found[-1]
    value = _read_number(last[2])
    return -value if last[1] and not _joins(ascii_text[: last.start()][-1:]) else value


def choose_options(log_likelihoods: Sequence[float], options: Sequence[str], token_counts: Sequence[int]) -> Choice:
    """The index of the likeliest option under each normalisation; of equals the first.

    Source: the `acc`, `acc_norm` and `acc_bytes` of lm-evaluation-harness; `acc_norm` counts code points.
    """
    lengths = (
        [1] * len(options),
        [len(option) for option in options],
        [len(option.encode()) for option in options],
        token_counts,
    )
    return Choice(*(_first_best([ll / n for ll, n in zip(log_likelihoods, each, strict=True)]) for each in lengths))


def _first_best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def _joins(before: str) -> bool:
    """A minus after this character is a hyphen: a digit, or a letter of a script with upper and lower case.

    Scripts without word spaces have no case: there a minus may follow a letter.
    """
    return before.isdigit() or before.lower() != before.upper()


def _to_ascii_digit(character: str) -> str:
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def _read_number(digits: str) -> Decimal:
    """The value of digits and marks, e.g. `1.234,50`; of what is several numbers (`1,2,3`), the last."""
    if _GROUPED.fullmatch(digits):
        return Decimal(_MARK.sub("", digits))
    whole, last_group = _MARK.sub(" ", digits).rpartition(" ")[::2]
    mark = digits[len(whole) : len(whole) + 1]
    is_whole = whole.isdigit() or (_GROUPED.fullmatch(digits[: len(whole)]) and mark not in digits[: len(whole)])
    if mark in (".", ",") and is_whole:
        return Decimal(whole.replace(" ", "") + "." + last_group)
    return Decimal(last_group)
