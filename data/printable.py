"""Text of unknown origin, made safe to look at: nothing in it can command a terminal or turn a line around."""

import re
import unicodedata

NAMES = {
    0x7F: "␡", 0x85: "⟨NEL⟩", 0x2028: "⟨LS⟩", 0x2029: "⟨PS⟩",
    0x202A: "⟨LRE⟩", 0x202B: "⟨RLE⟩", 0x202C: "⟨PDF⟩", 0x202D: "⟨LRO⟩", 0x202E: "⟨RLO⟩",
    0x2066: "⟨LRI⟩", 0x2067: "⟨RLI⟩", 0x2068: "⟨FSI⟩", 0x2069: "⟨PDI⟩",
}  # fmt: skip
"""Signs for DEL, line and paragraph ends, and the bidi controls that reach beyond a letter. Marks (LRM, RLM), joiners
and zero-width spaces belong to writing and stay."""
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def make_printable(text: str, *, limit: int | None = None) -> str:
    """Returns the text with a visible sign for each control character, tabs and line feeds excepted.

    NUL becomes `␀`, ESC `␛`, a right-to-left override `⟨RLO⟩`, a lone surrogate `⟨D800⟩`. With `limit`, what lies past
    that many characters is counted instead of shown.
    """
    left = 0 if limit is None else len(text) - limit
    shown = UNSAFE.sub(_name, text if left <= 0 else text[:limit])
    return shown if left <= 0 else f"{shown} … ({left:,} more characters)"


def isolate(name: str) -> str:
    """A name for a cell of a table: a right-to-left one is followed by a mark that keeps it from turning the row."""
    return f"{name}\u200e" if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name) else name


def _name(found: re.Match[str]) -> str:
    code = ord(found[0])
    return NAMES.get(code) or (chr(0x2400 + code) if code < 0x20 else f"⟨{code:02X}⟩")
