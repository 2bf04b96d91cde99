"""The predicate `phrases`: refusals and boiler-plate, looked for in every turn of an assistant."""

import functools
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType

import langcodes
import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from data.cleaning.characters import SCRIPTS, UNSPACED, script_table
from data.cleaning.reason import KEPT, NOT_JUDGED, Finding
from data.cleaning.texts import fold
from data.cleaning_config import PhraseCheck
from data.languages import standardize
from data.schema import TEXT_ROLE, Conversation, DataError

SHIPPED = "phrases.yaml"
EVERYWHERE = "en"
"""Sets made with English models leak its phrases into every language, so these are looked for in all of them."""
LEADING = " \t\n\"'«»“”„「『(（[*_#>-–—¡¿!…."
"""What may stand before an opening phrase."""


class Phrases(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is looked for in one language."""

    opening: tuple[str, ...] = ()
    """A turn begins with it."""
    within: tuple[str, ...] = ()
    """It stands anywhere in a turn."""


PhraseTable = Mapping[str, Phrases]
"""By standardised tag, folded."""


def find_phrase(conversation: Conversation, *, table: PhraseTable) -> Finding:
    """Whether a turn of the assistant begins with or holds a phrase of its language, or an English one."""
    tags = [tag for tag in dict.fromkeys((*_fallbacks(conversation.language), EVERYWHERE)) if tag in table]
    has_own = any(tag in table for tag in _fallbacks(conversation.language))
    for turn in conversation.turns:
        if turn.role not in ("assistant", TEXT_ROLE):
            continue
        text = fold(turn.content)
        beginning = text[:200].lstrip(LEADING)
        for tag in tags:
            if (phrase := _find_opening(beginning, table[tag].opening)) is not None:
                return Finding(f"answer begins with {phrase!r} ({tag})")
            if (phrase := _find_within(text, table[tag].within)) is not None:
                return Finding(f"answer holds {phrase!r} ({tag})")
    return KEPT if has_own else NOT_JUDGED


def load_phrases(check: PhraseCheck, *, root: str) -> dict[str, Phrases]:
    """Returns the phrases of the recipe, folded. Raises DataError for a file that is missing or not of the form."""
    tables = [dict(shipped_phrases())] if check.shipped else []
    if check.file is not None:
        path = Path(root) / check.file
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.cleaning.phrases.file: cannot read {path}: {error}") from None
        tables.append(read_phrase_table(text, place=str(path)))
    tags = dict.fromkeys(tag for table in tables for tag in table)
    return {tag: _join([table[tag] for table in tables if tag in table]) for tag in tags}


@functools.cache
def shipped_phrases() -> PhraseTable:
    """Returns the phrases that come with polytune, folded."""
    text = (resources.files("data.cleaning") / SHIPPED).read_text(encoding="utf-8")
    return MappingProxyType(read_phrase_table(text, place=f"data/cleaning/{SHIPPED}"))


def read_phrase_table(text: str, *, place: str) -> dict[str, Phrases]:
    """Returns a table of phrases written in YAML, folded, by standardised tag.

    Raises DataError naming the place if it is no such table, a tag is no language, or a phrase is so short that it
    would be found anywhere.
    """
    try:
        table = msgspec.convert(YAML(typ="safe").load(text), dict[str, Phrases])
    except (YAMLError, msgspec.ValidationError) as error:
        shown = str(error).replace("\n", " ")
        raise DataError(
            f"{place}: {shown}; the form is `sw: {{opening: [...], within: [...]}}`, as in data/cleaning/{SHIPPED}"
        ) from None
    return {standardize(tag): _fold(phrases, f"{place}: {tag}") for tag, phrases in table.items()}


def _find_opening(beginning: str, phrases: Iterable[str]) -> str | None:
    found = (phrase for phrase in phrases if beginning.startswith(phrase))
    return next((phrase for phrase in found if _is_whole(beginning, 0, phrase)), None)


def _find_within(text: str, phrases: Iterable[str]) -> str | None:
    for phrase in phrases:
        at = text.find(phrase)
        while at >= 0:
            if _is_whole(text, at, phrase):
                return phrase
            at = text.find(phrase, at + 1)
    return None


def _is_whole(text: str, at: int, phrase: str) -> bool:
    """Whether a phrase found in a text begins and ends with words, where its script has them: `als KI` is not in
    `als Kind`. In Hangul endings are joined to a word, in Arabic and Hebrew `and` is joined to the next."""
    starts, ends = _edges(phrase)
    end = at + len(phrase)
    return not (starts and at and text[at - 1].isalnum()) and not (ends and end < len(text) and text[end].isalnum())


@functools.lru_cache(maxsize=16384)
def _edges(phrase: str) -> tuple[bool, bool]:
    """Whether a word must begin where the phrase does, and end where it ends."""
    first, last = SCRIPTS[script_table()[ord(phrase[0])]], SCRIPTS[script_table()[ord(phrase[-1])]]
    return first in ("Latn", "Cyrl", "Grek", "Armn"), last != "" and last not in UNSPACED and last != "Hang"


def _fold(phrases: Phrases, place: str) -> Phrases:
    for phrase in (*phrases.opening, *phrases.within):
        if len(fold(phrase)) < 3:
            raise DataError(f"{place}: the phrase {phrase!r} would be found in any text; give three characters or more")
    folded = {name: tuple(dict.fromkeys(map(fold, getattr(phrases, name)))) for name in ("opening", "within")}
    return Phrases(**folded)


def _join(all_phrases: list[Phrases]) -> Phrases:
    return Phrases(
        opening=tuple(dict.fromkeys(phrase for phrases in all_phrases for phrase in phrases.opening)),
        within=tuple(dict.fromkeys(phrase for phrases in all_phrases for phrase in phrases.within)),
    )


def _fallbacks(tag: str) -> tuple[str, str]:
    """The tag itself, then its language alone: `pt-BR` finds the phrases of `pt`, `zh-Hant` those of `zh`."""
    return tag, langcodes.Language.get(tag).language or tag
