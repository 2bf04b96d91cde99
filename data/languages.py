"""Language tags: one standard form for the many codes data uses, and what follows from a tag."""

import collections
import contextlib
import difflib
import functools
from collections.abc import Mapping

import babel
import langcodes
from langcodes.tag_parser import LanguageTagError

from data.schema import DataError

# Scripts of the Unicode Character Database whose letters have the direction class R or AL.
RTL_SCRIPTS = frozenset(
    ("Adlm", "Arab", "Aran", "Hebr", "Mand", "Mend", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa", "Yezi")
)
NOT_A_LANGUAGE = frozenset(("und", "mul", "mis", "zxx"))
SHOWN_CHARACTERS = 60
"""How much of what is no language an error shows."""
LONGEST_NAME = 60
"""Names and tags that are longer resemble none."""


class LanguageError(DataError):
    """A language tag that names no language. The message gives the tag, what was wanted and near misses."""


def standardize(tag: str) -> str:
    """Returns the standard BCP-47 form of a BCP-47, ISO 639 or FLORES code.

    `swh_Latn` -> `sw`, `afr` -> `af`, `nob` -> `nb`, `iw` -> `he`: the macrolanguage stands for its main member,
    and a language's likely script is left out, so `sw`, `swh` and `swh_Latn` are one language. Raises
    LanguageError for anything else, `und`, `mul`, `mis` and `zxx` included.
    """
    if not isinstance(tag, str):
        raise LanguageError(_not_text(tag))
    return _standardize(tag)


def resolve(value: object, codes: Mapping[str, str] | None = None) -> str:
    """Returns the standard form of what data calls a language: a name in `codes`, a code, or CLDR's English name.

    `Swahili`, `swahili` and `swh` are `sw`. Raises LanguageError for anything else, for text that is the code of one
    language and, capitalised, the name of another (`Kom`), and for what is no text.
    """
    if not isinstance(value, str):
        raise LanguageError(_not_text(value))
    if codes and value in codes:
        return standardize(codes[value])
    return _resolve(value)


@functools.lru_cache(maxsize=4096)
def _resolve(value: str) -> str:
    named = _english_names().get(value.strip().lower())
    try:
        coded = _standardize(value)
    except LanguageError:
        if named is None:
            raise
        return named
    if named not in (None, coded) and value.strip().istitle():
        raise LanguageError(
            f"{value!r} is the code of {english_name(coded)} ({coded}) and the name of another language ({named}); "
            f"say which in `codes`: {{{value.strip()}: {named}}}"
        )
    return coded


@functools.cache
def _english_names() -> dict[str, str]:
    """Standard tags by CLDR's English names in lower case, those of one language only."""
    tags: dict[str, set[str]] = collections.defaultdict(set)
    for code, name in babel.Locale("en").languages.items():
        with contextlib.suppress(LanguageError):
            tags[str(name).lower()].add(_standardize(str(code)))
    return {name: min(found) for name, found in tags.items() if len(found) == 1}


@functools.lru_cache(maxsize=4096)
def _standardize(tag: str) -> str:
    try:
        standard = langcodes.standardize_tag(tag.strip().replace("_", "-"))
        language = langcodes.Language.get(standard, normalize=False)
    except LanguageTagError:
        raise LanguageError(_explain(tag)) from None
    name = language.language or "und"
    named = len(name) <= 3 and name not in NOT_A_LANGUAGE
    if not named or language.extlangs or not language.is_valid():
        raise LanguageError(_explain(tag))
    return _fold(language)


def _fold(language: langcodes.Language) -> str:
    """One tag for one language: CLDR's macrolanguage for its main member, no script where it is the likely one.

    Twi stays apart from Akan, which benchmarks such as SIB-200 hold side by side.
    """
    code = language.language or "und"
    if code != "tw":
        code = langcodes.standardize_tag(code, macro=True)
    likely = langcodes.Language.get(code)
    script = None if language.script == likely.maximize().script else language.script
    return langcodes.Language.make(code, script=script, territory=language.territory).to_tag()


@functools.lru_cache(maxsize=4096)
def script_of(tag: str) -> str:
    """Returns the ISO 15924 script of a tag (`Latn`, `Arab`, ...); CLDR's likely one if it names none."""
    return langcodes.Language.get(standardize(tag)).maximize().script or "Zyyy"


def is_rtl(tag: str) -> bool:
    """Whether the tag's script runs from right to left."""
    return script_of(tag) in RTL_SCRIPTS


@functools.lru_cache(maxsize=4096)
def english_name(tag: str) -> str:
    """Returns the English name in CLDR, with an unusual script in brackets; the tag where CLDR has none."""
    standard = standardize(tag)
    language = langcodes.Language.get(standard)
    english = babel.Locale("en")
    locale = _locale(standard)
    for key in _keys(language):
        if key in english.languages:
            return english.languages[key] + _script_note(language, key)
    if locale is not None and locale.language in english.languages:
        return english.languages[locale.language] + _script_note(language, locale.language)
    return standard


@functools.lru_cache(maxsize=4096)
def own_name(tag: str) -> str:
    """Returns the language's name in the language itself; else the English name, else the tag."""
    standard = standardize(tag)
    locale = _locale(standard)
    if locale is None:
        return english_name(standard)
    names = (locale.languages.get(key) for key in _keys(langcodes.Language.get(standard)))
    return next((name for name in names if name), None) or locale.language_name or english_name(standard)


def _keys(language: langcodes.Language) -> list[str]:
    """The keys of CLDR's table of names that fit the language, the most exact first."""
    parts = (language.language, language.script, language.territory)
    keys = [
        "_".join(part for part in parts if part),
        f"{language.language}_{language.script}",
        language.language,
    ]
    return [key for key in dict.fromkeys(keys) if key]


def _script_note(language: langcodes.Language, key: str) -> str:
    """` (Arabic)` where the tag's script is not its language's usual one and the name does not say so yet."""
    if language.script is None or "_" in key:
        return ""
    usual = langcodes.Language.get(language.language or "und").maximize().script
    return "" if language.script == usual else f" ({babel.Locale('en').scripts.get(language.script, language.script)})"


def _locale(standard: str) -> babel.Locale | None:
    try:
        return babel.Locale.parse(standard, sep="-")
    except (babel.UnknownLocaleError, ValueError):
        return None


def _not_text(value: object) -> str:
    hint = "; YAML and spreadsheets read a bare `no` as false, so quote it" if isinstance(value, bool) else ""
    return f"language tag{_shorten(value)} is not text but {type(value).__name__}{hint}"


def _shorten(value: object) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
        return ""
    return f" {shown if len(shown) <= SHOWN_CHARACTERS else f'{shown[:SHOWN_CHARACTERS]}...'}"


def _explain(tag: str) -> str:
    near = _suggestions(tag) if len(tag) <= LONGEST_NAME else []
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    shown = _shorten(tag).lstrip()
    return f"{shown} is not a language tag; give BCP-47, ISO 639 or FLORES (`sw`, `swh`, `zho_Hant`){hint}"


def _suggestions(tag: str) -> list[str]:
    """Tags the writer may have meant: a name, a country's code, or a script with a slip."""
    first, _, rest = tag.strip().replace("_", "-").partition("-")
    english = babel.Locale("en")
    if rest and langcodes.tag_is_valid(first):
        scripts = difflib.get_close_matches(rest.title(), list(map(str, english.scripts)), n=2, cutoff=0.7)
        return [f"{first}-{script}" for script in scripts] or [first]
    if first.upper() in english.territories and len(first) == 2:
        likely = langcodes.Language.get(f"und-{first.upper()}").maximize().language
        return [f"{likely} ({first.upper()} is a country)"]
    codes = {str(name).lower(): str(code).replace("_", "-") for code, name in english.languages.items()}
    names = difflib.get_close_matches(tag.strip().lower(), codes, n=2, cutoff=0.75)
    return [f"{codes[name]} ({name.title()})" for name in names]
