"""Counting words as readers see them, in scripts that separate them."""

import functools
import re
import unicodedata

from data.languages import script_of
from data.schema import DataError

SCRIPTS_WITHOUT_SPACES = frozenset(
    ("Ahom", "Bali", "Hani", "Hans", "Hant", "Hira", "Hrkt", "Java", "Jpan", "Kana", "Khmr", "Lana", "Laoo", "Mymr",
     "Talu", "Tavt", "Thai", "Tibt", "Yiii")
)  # fmt: skip
"""Where spaces are no ends of words: ideographs, and what UAX #14 breaks by dictionary, syllable or ideograph."""


def separates_words(tag: str) -> bool:
    """Whether the language's usual script puts spaces between words; yes for a tag that nobody knows."""
    try:
        return script_of(tag) not in SCRIPTS_WITHOUT_SPACES
    except DataError:
        return True


def count_words(text: str) -> int:
    """Returns how many words a text of a script with spaces has.

    A word is a run of letters, digits and the marks on them, which an apostrophe or full stop between two letters or
    digits does not end (UAX #29, WB4 to WB13): `don't` and `3.14` are one word, vowelled `هٰذَا` is one, `می‌خواهم` with
    its joiner is one, `well-known` is two; a dash or an emoji is none. Python's `\\w+` would end a word at every vowel
    sign of Hindi or vowelled Arabic.
    """
    return len(_word_pattern().findall(text))


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    inside = rf"[\w\u00ad\u200c\u200d\u2060{_marks()}]*"
    return re.compile(rf"\w{inside}(?:['.\u2019\u00b7\u05f3\u05f4]\w{inside})*")


def _marks() -> str:
    """Every combining mark: those of the first two planes, and the variation selectors far above them."""
    codes = (*range(0x20000), *range(0xE0100, 0xE01F0))
    return "".join(chr(code) for code in codes if unicodedata.category(chr(code)).startswith("M"))
