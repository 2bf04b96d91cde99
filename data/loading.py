"""Sources of a recipe opened for preparing: how their rows are read, and the pieces of work they make."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from data.bad_rows import BadRows
from data.config import DataConfig
from data.encoding import SourceSetup, load_conversations
from data.schemas.converter import SAMPLE_ROWS, TREE, Converter, make_converter
from data.source_config import FileSource, LossConfig, Source
from data.source_rows import find_source_files, iter_source_chunks, sample_rows
from data.sources import check_sources, load_source
from data.works import LoadedFacts, Work, group_chunks, group_conversations


class OpenedSource(NamedTuple):
    """A source of the recipe, ready to be read from the beginning as often as asked."""

    source: Source
    setup: SourceSetup
    form: str
    """How rows spell conversations, as the first of them show it (`_describe_reading`); "" where the source is loaded
    as a whole."""
    notices: tuple[str, ...]
    works: Callable[[], Iterator[Work]]
    size: int
    """Bytes of its files; 0 for embedded data."""


def open_sources(config: DataConfig) -> list[OpenedSource]:
    """Opens every source. Raises DataError where files are missing, or rows have no form that is known."""
    check_sources(config.sources)
    return [_open(source, index, config) for index, source in enumerate(config.sources)]


def load_all_texts(opened: list[OpenedSource]) -> Iterator[str]:
    """Yields the contents of all turns of all sources, in order; bad rows give none. Memory holds one piece of work."""
    for source in opened:
        for work in source.works():
            for conversation in load_conversations(source.setup, work, BadRows("skip")):
                for turn in conversation.turns:
                    yield turn.content


def _open(source: Source, index: int, config: DataConfig) -> OpenedSource:
    place = f"data.sources.{index}"
    if not isinstance(source, FileSource):
        return _open_whole(source, index, config, ())
    files = find_source_files(source, config.root)
    size = sum(max(file.size, 0) for file in files)
    sample = sample_rows(source, files, SAMPLE_ROWS)
    if not sample:
        return _open_whole(source, index, config, ())  # which says why all of its rows are bad
    converter = make_converter(source, sample, place=place)
    if converter.form == TREE:
        return _open_whole(source, index, config, converter.notices, size=size)

    def works() -> Iterator[Work]:
        return group_chunks(index, iter_source_chunks(source, files), size)

    setup = SourceSetup(source.name, source.loss, converter)
    return OpenedSource(source, setup, _describe_reading(converter), converter.notices, works, size)


def _describe_reading(converter: Converter) -> str:
    """All that a converter took from the first rows: form, columns, fields not to meet, where the language stands.

    A later row is read by it, so it is part of what that row's shard is made from.
    """
    shape = converter.shape
    return msgspec.json.encode((shape.form, shape.columns, shape.unseen, converter.rule), order="sorted").decode()


def _open_whole(
    source: Source, index: int, config: DataConfig, notices: tuple[str, ...], *, size: int = 0
) -> OpenedSource:
    """A source whose rows only make sense together: loaded anew each time it is asked for."""

    def works() -> Iterator[Work]:
        bad_rows = BadRows(config.bad_rows)
        conversations = load_source(source, root=config.root, bad_rows=bad_rows, place=f"data.sources.{index}")
        left_out = Counter(bad_rows.left_out[source.name])
        facts = LoadedFacts(
            read=bad_rows.read[source.name] or len(conversations),
            bad_rows=tuple(bad_rows.rows),
            left_out={reason: count for reason, count in left_out.items() if count},
        )
        return group_conversations(index, conversations, facts)

    loss = source.loss if isinstance(source, FileSource) else LossConfig()
    return OpenedSource(source, SourceSetup(source.name, loss, None), "", notices, works, size)
