"""The predicate `script_mismatch`: words that are not of the tag's script."""

import functools
from collections.abc import Mapping

import langcodes
from langcodes.data_dicts import LIKELY_SUBTAGS

from data.cleaning.characters import SCRIPTS, count_scripts
from data.cleaning.reason import KEPT, NOT_JUDGED, Finding
from data.cleaning.texts import leave_out_code, read_part
from data.cleaning.units import count_unit_scripts
from data.cleaning_config import ScriptCheck
from data.languages import script_of, standardize
from data.schema import Conversation, DataError

# ISO 15924 codes that stand for several scripts of Unicode, or for a style of one. Simplified and traditional
# characters are one script to Unicode: they are not told apart.
COMPOSITES = {
    "Jpan": ("Hani", "Hira", "Kana"), "Hrkt": ("Hira", "Kana"), "Kore": ("Hang", "Hani"), "Jamo": ("Hang",),
    "Hans": ("Hani", "Bopo"), "Hant": ("Hani", "Bopo"), "Hanb": ("Hani", "Bopo"), "Aran": ("Arab",),
    "Latf": ("Latn",), "Latg": ("Latn",), "Cyrs": ("Cyrl",), "Geok": ("Geor",), "Syre": ("Syrc",), "Syrj": ("Syrc",),
    "Syrn": ("Syrc",),
}  # fmt: skip
# Languages commonly written in a second script, where a tag without one leaves it open. Source: CLDR supplemental
# data, languageData, scripts in modern use. Data that says `sr-Cyrl` loses that mark when its tag is standardised.
SECOND_SCRIPTS = {
    "az": ("Cyrl",), "ber": ("Latn", "Tfng"), "bs": ("Cyrl",), "cr": ("Latn", "Cans"), "ha": ("Arab",), "iu": ("Latn",),
    "jv": ("Java",), "kk": ("Latn", "Arab"), "ku": ("Arab",), "ky": ("Latn", "Arab"), "mn": ("Mong",), "ms": ("Arab",),
    "sh": ("Cyrl", "Latn"), "shi": ("Latn", "Tfng"), "sr": ("Latn",), "su": ("Sund",), "taq": ("Tfng",),
    "tg": ("Latn", "Arab"), "tk": ("Cyrl",), "tt": ("Latn",), "tzm": ("Latn", "Tfng"), "ug": ("Cyrl", "Latn"),
    "uz": ("Cyrl", "Arab"), "zgh": ("Latn",),
}  # fmt: skip


def check_script(conversation: Conversation, *, check: ScriptCheck) -> Finding:
    """Whether enough words are of the script that the conversation's tag stands for."""
    if conversation.task and conversation.task in check.except_tasks:
        return NOT_JUDGED
    accepted = {*accepted_scripts(conversation.language), *check.scripts.get(conversation.language, ())}
    if not any(script in SCRIPTS for script in accepted):
        return NOT_JUDGED
    text = leave_out_code(read_part(conversation, check.part))
    if sum(count_scripts(text).values()) < check.min_letters:
        return NOT_JUDGED
    counts = count_unit_scripts(text)
    units = sum(counts.values())
    share = sum(count for script, count in counts.items() if script in accepted) / max(units, 1)
    if not units or share >= check.min_share:
        return KEPT
    most = max(counts, key=lambda script: counts[script])
    return Finding(
        f"{share:.0%} of {units} words (characters, without spaces) are {'/'.join(sorted(accepted))}, fewer than "
        f"{check.min_share:.0%}; {counts[most] / units:.0%} are {most}"
    )


@functools.lru_cache(maxsize=4096)
def accepted_scripts(tag: str) -> tuple[str, ...]:
    """Returns the scripts of Unicode that text of a tag may be in: `ja` -> Hani, Hira, Kana; `sr` -> Cyrl, Latn.

    None for a bare tag whose script CLDR does not know, such as `orv`; it would be taken for Latin.
    """
    language = langcodes.Language.get(tag)
    if language.script is not None:
        return COMPOSITES.get(language.script, (language.script,))
    code = language.language or "und"
    if code not in LIKELY_SUBTAGS:
        code = langcodes.standardize_tag(code, macro=True)
    if code not in LIKELY_SUBTAGS:
        return ()
    script = script_of(tag) if code == language.language else script_of(code)
    return (*COMPOSITES.get(script, (script,)), *SECOND_SCRIPTS.get(code, ()))


def read_scripts(scripts: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Returns the recipe's further scripts by standardised tag. Raises DataError for what is no tag or no script."""
    known = {*SCRIPTS[1:], *COMPOSITES}
    read: dict[str, tuple[str, ...]] = {}
    for tag, codes in scripts.items():
        for code in codes:
            if code not in known:
                raise DataError(
                    f"data.cleaning.script_mismatch.scripts.{tag}: {code!r} is no script code of ISO 15924 that "
                    f"can be judged; known: {', '.join(sorted(known))}"
                )
        read[standardize(tag)] = tuple(part for code in codes for part in COMPOSITES.get(code, (code,)))
    return read
