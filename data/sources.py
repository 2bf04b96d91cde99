"""Sources of a recipe as conversations: rows of files, converted one by one; trees, facts and procedures whole."""

import collections
from os import PathLike

from data.bad_rows import BadRows, note_bad
from data.formats.rows import Row
from data.schema import Conversation, DataError
from data.schemas.converter import SAMPLE_ROWS, TREE, Converter, check_file_source, make_converter
from data.source_config import CldrSource, FileSource, ProceduralSource, Source
from data.source_rows import find_source_files, read_rows, sample_rows
from data.trees import read_trees


def check_sources(sources: tuple[Source, ...]) -> None:
    """Raises DataError naming the recipe's key if names repeat, a template is no Jinja, or a language no tag.

    Reads no file: what a recipe says can be checked before anything is loaded.
    """
    if not sources:
        raise DataError("data.sources is empty; give at least one source")
    places: dict[str, str] = {}
    for index, source in enumerate(sources):
        place = f"data.sources.{index}"
        if source.name in places:
            raise DataError(f"{place}.name {source.name!r} is taken by {places[source.name]}; give each its own")
        places[source.name] = place
        if isinstance(source, FileSource):
            check_file_source(source, place)
        elif source.split == "heldout":
            raise DataError(f"{place}.split is heldout: it is kept for evaluation; train on split: train")


def load_source(source: Source, *, root: str | PathLike[str], bad_rows: BadRows, place: str = "") -> list[Conversation]:
    """Returns a source's conversations, the same list each time.

    `place` is the source's key in the recipe, for messages. Raises DataError, whatever the policy of
    `bad_rows`, if a file is missing or empty, the form of its rows is not clear, or nothing of the source is left.
    """
    place = place or f"source {source.name!r}"
    conversations = (
        _load_files(source, root=root, bad_rows=bad_rows, place=place)
        if isinstance(source, FileSource)
        else load_embedded(source)
    )
    if not conversations:
        reasons = _explain(source.name, bad_rows)
        raise DataError(f"{place}: every row of source {source.name!r} was left out: {reasons}")
    return conversations


def load_embedded(source: CldrSource | ProceduralSource) -> list[Conversation]:
    """Returns the conversations of a source that reads no file."""
    # Imported when asked for: reading CLDR for a recipe of files alone would be wasted start-up time.
    if isinstance(source, CldrSource):
        from data.cldr import cldr_conversations

        return cldr_conversations(source)
    from data.procedural import procedural_conversations

    return procedural_conversations(source)


def convert_row(row: Row, converter: Converter, *, bad_rows: BadRows) -> Conversation | None:
    """Returns a row's conversation; for every form but `tree`, whose rows make sense together only.

    None for a row that `where` leaves out, which is counted in `bad_rows.left_out`, and for a bad one, which is added
    to `bad_rows`.
    """
    name = converter.source.name
    try:
        conversation = converter.convert(row)
    except DataError as error:
        note_bad(bad_rows, row, source=name, reason=str(error), language=_language_of(row, converter))
        return None
    if conversation is None:
        bad_rows.left_out[name]["where"] += 1
    return conversation


def take_evenly(conversations: list[Conversation], limit: int | None) -> list[Conversation]:
    """Returns at most `limit` conversations, evenly spaced: of 10, limit 4 takes 0, 2, 5 and 7."""
    if limit is None or len(conversations) <= limit:
        return conversations
    return [conversations[index * len(conversations) // limit] for index in range(limit)]


def _load_files(source: FileSource, *, root: str | PathLike[str], bad_rows: BadRows, place: str) -> list[Conversation]:
    """Every row is converted, so a bad one is found wherever it stands, also where `limit` would not look."""
    check_file_source(source, place)
    files = find_source_files(source, root)
    # Looked at before and apart from reading, so that bad rows come up in the files' order.
    sample = sample_rows(source, files, SAMPLE_ROWS)
    rows = read_rows(source, files, bad_rows=bad_rows)
    if not sample:
        collections.deque(rows, maxlen=0)  # all bad: said by their own reasons, or counted
        return []
    converter = make_converter(source, sample, place=place)
    if converter.form == TREE:
        conversations = read_trees(rows, converter, bad_rows=bad_rows)
    else:
        found = (convert_row(row, converter, bad_rows=bad_rows) for row in rows)
        conversations = [conversation for conversation in found if conversation is not None]
    taken = take_evenly(conversations, source.limit)
    if len(taken) < len(conversations):
        bad_rows.left_out[source.name]["limit"] += len(conversations) - len(taken)
    return taken


def _language_of(row: Row, converter: Converter) -> str:
    """The row's tag as far as it has one, so that bad rows can be counted by language."""
    try:
        return converter.find_language(row)
    except DataError:
        return ""


def _explain(name: str, bad_rows: BadRows) -> str:
    counts = dict(bad_rows.left_out[name])
    if bad := bad_rows.by_source().get(name):
        first = next(row for row in bad_rows.rows if row.source == name)
        counts[f"bad, the first because: {first.file}:{first.line}: {first.reason}"] = bad
    return "; ".join(f"{count} {reason}" for reason, count in counts.items()) or "it gave none"
