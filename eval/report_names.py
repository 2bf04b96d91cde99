"""How the report calls languages, scripts and amounts."""

import math
import unicodedata
from collections.abc import Iterable

import msgspec
from babel import Locale

from data.languages import english_name, own_name, script_of
from data.printable import make_printable
from eval.bars import Number

SCRIPT_NAMES = {"Hans": "Simplified Han", "Hant": "Traditional Han"}
"""Where CLDR's name of a script does not stand alone."""


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """A language as a reader of its script, or of English, finds it."""

    tag: str
    own: str
    english: str
    script: str
    """English name of the script: `Arabic`."""

    @property
    def search_key(self) -> str:
        """What the search box looks through."""
        return f"{self.own} {self.english} {self.tag} {self.script}".casefold()


def describe_language(tag: str) -> Language:
    """Names and script of a tag; a tag nobody knows stands for itself, so that its numbers still show."""
    try:
        code = script_of(tag)
        script = SCRIPT_NAMES.get(code) or Locale("en").scripts.get(code, code)
        return Language(tag=tag, own=own_name(tag), english=english_name(tag), script=script)
    except ValueError:
        return Language(tag=tag, own=tag, english=tag, script="Unknown script")


def describe_languages(tags: Iterable[str]) -> dict[str, Language]:
    """One description per tag; the empty tag of padding is left out."""
    return {tag: describe_language(tag) for tag in sorted(set(tags)) if tag}


def format_percent(share: Number | None) -> str:
    """`86.2%`, `0.70%`, `0.0031%`: below one percent finer, so that rare languages do not read as zero."""
    if share is None or not math.isfinite(share):
        return "–"
    percent = 100 * share
    if 0 < percent < 1:
        return f"{percent:.2f}%" if percent >= 0.1 else f"{percent:.2g}%"
    return f"{percent:.1f}%"


def format_count(amount: Number | None) -> str:
    """`1,234`, from a hundred thousand on `123 k`, `1.23 M`, `4.56 G`; a dash for what is not known."""
    if amount is None or not math.isfinite(amount):
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(amount) >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount / 1e3:.0f} k" if abs(amount) >= 1e5 else f"{amount:,.0f}"


def format_duration(seconds: Number | None) -> str:
    """`42 s`, `3 min 12 s`, `5 h 07 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def text_direction(text: str) -> str:
    """`rtl` or `ltr` by the more frequent kind of letters, `auto` for text without any.

    Neither the first letter nor the language decides: an Arabic question may begin with a Latin name, and a
    question on Arabic text may be asked in English.
    """
    kinds = [unicodedata.bidirectional(character) for character in text]
    right, left = sum(kind in ("R", "AL") for kind in kinds), kinds.count("L")
    return "rtl" if right > left else "ltr" if left else "auto"


def visible(text: str, *, limit: int = 600) -> str:
    """Text with signs for control characters (␀, ␛, ⟨RLO⟩), and a long tail counted instead of shown."""
    return make_printable(text, limit=limit)
