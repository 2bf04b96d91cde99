"""The phrase book: how the embedded tasks are worded in each language, for training and held out from it."""

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import Literal

import msgspec
from ruamel.yaml import YAML

from data.languages import standardize
from data.schema import DataError

Split = Literal["train", "heldout"]


class Phrasings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task's wordings in one language, with placeholders for `str.format`."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    """Rewordings made of the training wordings' vocabulary, never trained on."""

    def of(self, split: Split) -> tuple[tuple[str, str], ...]:
        """The split's (label, wording) pairs, labelled p1, p2, ... in training and h1, h2, ... held out."""
        letter, wordings = ("p", self.train) if split == "train" else ("h", self.heldout)
        return tuple((f"{letter}{number}", wording) for number, wording in enumerate(wordings, start=1))


@functools.cache
def phrase_languages() -> tuple[str, ...]:
    """The languages of the phrase book, as standard BCP-47 tags in alphabetical order."""
    names = (entry.name for entry in resources.files("data.phrases").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


@functools.cache
def read_phrases(language: str) -> Mapping[str, Phrasings]:
    """A language's wordings by task. Raises DataError for a language not in the book, or a broken file."""
    file = resources.files("data.phrases") / f"{language}.yaml"
    if not file.is_file():
        raise DataError(f"the phrase book has no language {language!r}; it has {', '.join(phrase_languages())}")
    try:
        text = file.read_text(encoding="utf-8")
        return MappingProxyType(msgspec.convert(YAML(typ="safe").load(text), dict[str, Phrasings]))
    except msgspec.ValidationError as error:
        raise DataError(f"data/phrases/{language}.yaml: {error}; compare with data/phrases/en.yaml") from error


def choose_languages(wanted: Sequence[str], *, source: str) -> tuple[str, ...]:
    """The wanted languages as the phrase book writes them, all of it if none is wanted.

    Raises DataError for a language that is not in the phrase book, or wanted twice.
    """
    return choose_names([standardize(tag) for tag in wanted], phrase_languages(), what="language", source=source)


def choose_names(wanted: Sequence[str], known: Iterable[str], *, what: str, source: str) -> tuple[str, ...]:
    """The wanted names, or all known ones. Raises DataError for an unknown or repeated name."""
    known = tuple(known)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"source {source!r}: unknown {what} {name!r}; {hint}Known: {', '.join(known)}")
        if list(wanted).count(name) > 1:
            raise DataError(f"source {source!r}: {what} {name!r} is listed more than once; list it once")
    return tuple(wanted) or known
