"""The row checks of a recipe, made once and shipped to every process that reads rows."""

import functools
from pathlib import Path

import msgspec

from data.cleaning.contamination import build_index, find_contamination
from data.cleaning.identification import check_language, load_identifier
from data.cleaning.limits import check_length, check_ratio, check_repetition
from data.cleaning.phrases import find_phrase, load_phrases
from data.cleaning.reason import Predicate, Reason, Verdict
from data.cleaning.scripts import check_script, read_scripts
from data.cleaning_config import CleaningConfig
from data.schema import Conversation


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """Predicates over one conversation, in the order they are asked. Pickles: functions by name, tables by value."""

    predicates: tuple[tuple[str, Predicate], ...]
    """Name in the recipe, and the predicate; none if the recipe asks for none."""
    notes: tuple[str, ...] = ()
    """Sentences for the report on what was set up."""

    def judge(self, conversation: Conversation) -> Verdict:
        """Returns why the conversation is left out, if it is, and which predicates before that could not judge it."""
        not_judged = []
        for name, predicate in self.predicates:
            finding = predicate(conversation)
            if finding.detail:
                return Verdict(Reason(name, finding.detail), tuple(not_judged))
            if not finding.is_judged:
                not_judged.append(name)
        return Verdict(None, tuple(not_judged))


def make_checks(config: CleaningConfig, *, root: str) -> Checks:
    """Returns the row checks that the recipe asks for; duplicates are sought apart, in `data.cleaning.duplicates`.

    `root` is `data.root`. Reads phrase files and evaluation sets, and loads the language identifier once to see that
    it is there; each process loads its own again (py3langid: 0.5 s and 100 MB, shared if forked from this one).
    Raises DataError, naming the recipe's key, for a file or package that is missing and for what is no language.
    """
    predicates: list[tuple[str, Predicate]] = []
    notes: tuple[str, ...] = ()
    if (limits := config.length) is not None:
        predicates.append(("length", functools.partial(check_length, limits=limits)))
    if (limits := config.ratio) is not None:
        predicates.append(("ratio", functools.partial(check_ratio, limits=limits)))
    if (limit := config.repetition) is not None:
        predicates.append(("repetition", functools.partial(check_repetition, limit=limit)))
    if (check := config.script_mismatch) is not None:
        check = msgspec.structs.replace(check, scripts=read_scripts(check.scripts))
        predicates.append(("script_mismatch", functools.partial(check_script, check=check)))
    if config.phrases is not None:
        table = load_phrases(config.phrases, root=root)
        predicates.append(("phrases", functools.partial(find_phrase, table=table)))
    if (check := config.language_mismatch) is not None:
        model = None if check.model is None else str(Path(root) / check.model)
        load_identifier(model)
        predicates.append(("language_mismatch", functools.partial(check_language, check=check, model=model)))
    if config.decontamination is not None:
        index = build_index(config.decontamination, root=root)
        notes = index.notes
        predicates.append(("decontamination", functools.partial(find_contamination, index=index)))
    return Checks(predicates=tuple(predicates), notes=notes)
