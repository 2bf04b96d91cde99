"""Sources of a recipe opened for preparing: how their rows are read, and the pieces of work they make."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from data.bad_rows import BadRows
from data.config import DataConfig
from data.encoding import SourceSetup, load_texts
from data.files import DataFile, find_files
from data.formats.reading import iter_chunks, read_chunk
from data.formats.rows import Chunk, Row
from data.schemas.convert import Converter, make_converter
from data.source_config import FileSource, LossConfig, Source
from data.sources import check_sources, load_source
from data.works import LoadedFacts, Work, group_chunks, group_conversations

SAMPLE_ROWS = 64
"""The first rows of a source, by whose fields its form is told."""


class OpenedSource(NamedTuple):
    """A source of the recipe, ready to be read from the beginning as often as asked."""

    source: Source
    setup: SourceSetup
    form: str
    """How rows spell conversations; "" where the source is loaded as a whole."""
    notices: tuple[str, ...]
    works: Callable[[], Iterator[Work]]
    size: int
    """Bytes of its files; 0 for embedded data."""


def open_sources(config: DataConfig) -> list[OpenedSource]:
    """Opens every source. Raises DataError where files are missing, or rows have no form that is known."""
    check_sources(config.sources)
    return [_open(source, index, config) for index, source in enumerate(config.sources)]


def load_all_texts(opened: list[OpenedSource]) -> Iterator[str]:
    """Yields the contents of all turns of all sources, in order, one row in memory at a time."""
    for source in opened:
        for work in source.works():
            yield from load_texts(source.setup, work)


def _open(source: Source, index: int, config: DataConfig) -> OpenedSource:
    place = f"data.sources.{index}"
    if not isinstance(source, FileSource):
        return _open_whole(source, index, config, ())
    files = find_files(source.path, config.root, format=source.format)
    converter = _make_converter(source, files, place)
    if converter.form == "tree":
        return _open_whole(source, index, config, converter.notices, size=sum(file.size for file in files))

    def works() -> Iterator[Work]:
        return group_chunks(index, _chunks(source, files))

    setup = SourceSetup(source.name, source.loss, converter)
    size = sum(file.size for file in files)
    return OpenedSource(source, setup, converter.form, converter.notices, works, size)


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


def _make_converter(source: FileSource, files: list[DataFile], place: str) -> Converter:
    rows = (row for chunk in _chunks(source, files) for row in read_chunk(chunk) if isinstance(row, Row))
    return make_converter(source, list(islice(rows, SAMPLE_ROWS)), place=place)


def _chunks(source: FileSource, files: list[DataFile]) -> Iterator[Chunk]:
    for file in files:
        yield from iter_chunks(file, source.format, split=source.split)
