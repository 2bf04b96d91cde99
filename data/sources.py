"""Sources of a recipe, loaded as conversations: JSON Lines, message trees, embedded facts, procedures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.bad_rows import BadRows
from data.config import DataConfig
from data.jsonl import Row, find_files, note_bad, read_rows
from data.mapping import (
    CompiledMapping,
    check_language_rule,
    compile_mapping,
    find_language,
    is_wanted,
    make_context,
    render_turns,
)
from data.schema import Conversation, DataError
from data.source_config import CldrSource, FileSource, ProceduralSource, Source, TreeSource
from data.trees import load_trees


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
        if isinstance(source, CldrSource | ProceduralSource) and source.split == "heldout":
            raise DataError(f"{place}.split is heldout: it is kept for evaluation; train on split: train")
        if isinstance(source, FileSource | TreeSource):
            check_language_rule(source.language, f"{place}.language")
        if isinstance(source, FileSource):
            compile_mapping(source, place)


def load_sources(config: DataConfig, *, bad_rows: BadRows) -> list[Conversation]:
    """Returns the conversations of every source, in the recipe's order.

    Raises DataError as `check_sources` and `load_source` do, and if more than `max_dropped` of one is bad.
    """
    check_sources(config.sources)
    conversations: list[Conversation] = []
    for index, source in enumerate(config.sources):
        place = f"data.sources.{index}"
        conversations += load_source(source, root=Path(config.root), bad_rows=bad_rows, place=place)
    bad_rows.check_dropped(config.max_dropped)
    return conversations


def load_source(source: Source, *, root: Path, bad_rows: BadRows, place: str = "") -> list[Conversation]:
    """Returns a source's conversations, the same list each time.

    `place` is the source's key in the recipe, for messages. Raises DataError, whatever the policy of
    `bad_rows`, if a file is missing or empty, or nothing of the source is left.
    """
    loaders: dict[type, Callable[..., list[Conversation]]] = {
        FileSource: load_jsonl,
        TreeSource: _load_trees,
        CldrSource: _load_cldr,
        ProceduralSource: _load_procedural,
    }
    place = place or f"source {source.name!r}"
    conversations = loaders[type(source)](source, root=root, bad_rows=bad_rows, place=place)
    if not conversations:
        reasons = _explain(source.name, bad_rows)
        raise DataError(f"{place}: every row of source {source.name!r} was left out: {reasons}")
    return conversations


def load_jsonl(source: FileSource, *, root: Path, bad_rows: BadRows, place: str) -> list[Conversation]:
    """Returns the rows of JSON Lines files that pass `where`, mapped to conversations; at most `limit`,
    evenly spaced over all of them. Every row is mapped, so a bad one is found wherever it stands."""
    mapping = compile_mapping(source, place)
    conversations = []
    for row in read_rows(find_files(source.path, root), root=root, source=source.name, bad_rows=bad_rows):
        conversation = _map_row(row, source, mapping=mapping, bad_rows=bad_rows)
        if conversation is not None:
            conversations.append(conversation)
    if source.limit is None or len(conversations) <= source.limit:
        return conversations
    bad_rows.left_out[source.name]["limit"] += len(conversations) - source.limit
    return [conversations[index * len(conversations) // source.limit] for index in range(source.limit)]


def _map_row(row: Row, source: FileSource, *, mapping: CompiledMapping, bad_rows: BadRows) -> Conversation | None:
    language = ""
    try:
        language = find_language(source.language, row=row.fields, file_name=Path(row.file).name)
        context = make_context(row.fields, language=language, line=row.line)
        if not is_wanted(mapping, context):
            bad_rows.left_out[source.name]["where"] += 1
            return None
        turns = render_turns(mapping, context)
    except DataError as error:
        note_bad(bad_rows, row, source=source.name, reason=str(error), language=language)
        return None
    return Conversation(
        turns=turns, language=language, source=source.name, task=source.task, id=f"{row.file}:{row.line}"
    )


def _load_trees(source: TreeSource, *, root: Path, bad_rows: BadRows, place: str) -> list[Conversation]:
    del place
    return load_trees(source, root=root, bad_rows=bad_rows)


def _load_cldr(source: CldrSource, **_: Any) -> list[Conversation]:
    # Imported when asked for: reading CLDR for a recipe of files alone would be wasted start-up time.
    from data.cldr import cldr_conversations

    return cldr_conversations(source)


def _load_procedural(source: ProceduralSource, **_: Any) -> list[Conversation]:
    from data.procedural import procedural_conversations

    return procedural_conversations(source)


def _explain(name: str, bad_rows: BadRows) -> str:
    counts = dict(bad_rows.left_out[name])
    if bad := bad_rows.by_source().get(name):
        counts[f"bad, the first because: {next(row.reason for row in bad_rows.rows if row.source == name)}"] = bad
    return "; ".join(f"{count} {reason}" for reason, count in counts.items()) or "it gave none"
