"""The predicate `language_mismatch`: an identifier that is sure of another language than the tag's."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import langcodes

from data.cleaning.characters import count_scripts
from data.cleaning.reason import KEPT, NOT_JUDGED, Finding
from data.cleaning.scripts import accepted_scripts
from data.cleaning.texts import leave_out_code, read_part
from data.cleaning_config import LanguageCheck
from data.languages import LanguageError, standardize
from data.schema import Conversation, DataError

SHIPPED_MODEL = "data/model.npz.xz"
"""Inside the package py3langid."""
CLOSE = 14
"""Languages at most this far apart in CLDR's languageMatching, one way or the other, are not told apart: Arabic and its
dialects, Bosnian, Croatian and Serbian, Danish and Bokmål, Indonesian and Malay, Dari and Persian, Wu and Chinese."""
SAME = 10
"""A language that the identifier does not know by name is judged as one that it knows, if at most this far apart."""
# Further ones that identifiers mix up and CLDR does not rank: Nynorsk is 20 from Bokmål, Cantonese 64 from Chinese.
CLOSE_GROUPS = (
    frozenset(("nb", "nn", "no", "da")),
    frozenset(("zh", "yue", "wuu", "gan", "hsn", "hak", "nan", "lzh")),
    frozenset(("ar", "arz", "ary", "apc", "acm", "acq", "aeb", "ajp", "ars", "arq", "apd", "ayl")),
)


class Identifier(NamedTuple):
    """A model that names the language of a text."""

    tags: frozenset[str]
    """Standard tags of the languages it knows, with a script where it knows them in an unusual one."""
    identify: Callable[[str], tuple[str, float]]
    """One of them (or `und`) and its probability, of a text on one line."""


def check_language(conversation: Conversation, *, check: LanguageCheck, model: str | None) -> Finding:
    """Whether the identifier is sure of another language than the conversation's tag says.

    `model` is the path of a fastText model, None for the one that comes with py3langid. It is loaded once a process.
    """
    if conversation.task and conversation.task in check.except_tasks:
        return NOT_JUDGED
    if not is_known(conversation.language, model):
        return NOT_JUDGED
    text = leave_out_code(read_part(conversation, check.part))
    if sum(count_scripts(text).values()) < check.min_letters:
        return NOT_JUDGED
    found, confidence = load_identifier(model).identify(" ".join(text.split()))
    if found == "und" or confidence < check.confidence or is_close(conversation.language, found):
        return KEPT
    return Finding(f"tagged {conversation.language}, but {check.part} identified as {found} ({confidence:.2f})")


@functools.cache
def load_identifier(model: str | None) -> Identifier:
    """Returns the identifier of a path (None: py3langid's own). Raises DataError if package or file is missing."""
    return _load_py3langid() if model is None else _load_fasttext(model)


@functools.lru_cache(maxsize=4096)
def is_known(tag: str, model: str | None) -> bool:
    """Whether the identifier knows a tag's language, or nearly the same one, in one of the tag's scripts.

    A model that has seen Arabic in Arabic letters knows nothing of Arabic in Latin ones.
    """
    scripts = {*accepted_scripts(tag)}
    same = (known for known in load_identifier(model).tags if is_close(tag, known, distance=SAME))
    return any(scripts & {*accepted_scripts(known)} for known in same)


@functools.lru_cache(maxsize=65536)
def is_close(left: str, right: str, *, distance: int = CLOSE) -> bool:
    """Whether two tags' languages count as one, because identifiers are at odds over them. Scripts do not matter."""
    left, right = _subtag_of(left), _subtag_of(right)
    if left == right or any(left in group and right in group for group in CLOSE_GROUPS):
        return True
    # In one script, or Croatian and Serbian would be far apart for their letters.
    left, right = f"{left}-Latn", f"{right}-Latn"
    return min(langcodes.tag_distance(left, right), langcodes.tag_distance(right, left)) <= distance


def _subtag_of(tag: str) -> str:
    return langcodes.Language.get(tag).language or "und"


def _load_py3langid() -> Identifier:
    try:
        from py3langid.langid import LanguageIdentifier
    except ModuleNotFoundError:
        raise DataError(
            "data.cleaning.language_mismatch needs the package py3langid; pip install 'polytune[clean]'"
        ) from None
    model = LanguageIdentifier.from_model_file(SHIPPED_MODEL, norm_probs=True)
    tags = {label: _read_label(label) for label in model.labels}

    def identify(text: str) -> tuple[str, float]:
        label, probability = model.classify(text)
        return tags[label], float(probability)

    return Identifier(frozenset(tags.values()) - {"und"}, identify)


def _load_fasttext(path: str) -> Identifier:
    try:
        import fasttext  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise DataError(
            "data.cleaning.language_mismatch.model needs a reader of fastText models; pip install 'polytune[fasttext]'"
        ) from None
    if not Path(path).is_file():
        raise DataError(f"data.cleaning.language_mismatch.model: no file {path}; give a fastText model (`model.bin`)")
    try:
        model = fasttext.load_model(path)
    except ValueError as error:
        raise DataError(f"data.cleaning.language_mismatch.model: {path} is no fastText model: {error}") from None

    def identify(text: str) -> tuple[str, float]:
        labels, probabilities = model.predict(text, k=1)
        return (_read_label(labels[0]), float(probabilities[0])) if labels else ("und", 0.0)

    labels, _ = model.predict("", k=-1)  # the package that only predicts has no other way to list them
    tags = frozenset(map(_read_label, labels)) - {"und"}
    if not tags:
        raise DataError(
            f"data.cleaning.language_mismatch.model: no label of {path} is a language ({', '.join(labels[:3])} ...); "
            "give a model whose labels are like __label__swh_Latn or __label__sw"
        )
    return Identifier(tags, identify)


@functools.lru_cache(maxsize=65536)
def _read_label(label: str) -> str:
    """The standard tag of a model's label (`sw`, `__label__swh_Latn`); `und` for noise, `zxx` and what is no tag."""
    try:
        return standardize(label.removeprefix("__label__"))
    except LanguageError:
        return "und"
