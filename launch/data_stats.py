"""`polytune data stats`: what a recipe's sources hold, and what one or several tokenizers make of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from data.bad_rows import BadRow, BadRows
from data.config import DataConfig
from data.counting import Meter, make_meter, measure
from data.encoding import load_conversations, place_of
from data.loading import load_all_texts, open_sources
from data.printable import make_printable
from data.schema import Conversation, DataError
from data.statistics import write_statistics
from data.tokenizer import load_tokenizer, train_tokenizer
from data.works import Work
from launch.config import Recipe
from launch.statistics_table import print_statistics

PACE = 1000
"""Rows between two looks at the counter."""


def run_data_stats(
    recipe: Recipe,
    *,
    tokenizers: Sequence[str] = (),
    json_file: str | None = None,
    limit_rows: int | None = None,
    workers: int = 0,
    console: Console,
) -> int:
    """Prints, and with `json_file` writes, the statistics of the recipe's sources.

    Rows are counted as they are loaded: before cleaning, before overlong ones are dropped, before the mixture.
    `limit_rows` is at most so many rows of each source, taken evenly over it. Where the recipe's run has a plan, they
    are kept beside it for the report (not with `limit_rows`). Raises DataError for bad rows as training would.
    """
    if limit_rows is not None and limit_rows < 1:
        raise DataError(f"--limit-rows {limit_rows}; give at least 1, or leave it out to read everything")
    if workers < 0:
        raise DataError(f"--workers {workers}; give 0 to count in this process, or the number of processes")
    meters = [make_meter(path, load_tokenizer(path)) for path in tokenizers] or [_make_own(recipe)]
    bad_rows = BadRows(recipe.data.bad_rows)
    conversations = _load(recipe.data, bad_rows, limit_rows)
    with console.status("reading") as status:
        counted = _show_progress(conversations, lambda rows: status.update(f"{rows:,} rows read"))
        statistics = measure(
            counted, meters, workers=workers, reject=lambda conversation, error: _reject(conversation, error, bad_rows)
        )
    bad_rows.check_dropped(recipe.data.max_dropped)
    written = [Path(json_file)] if json_file is not None else []
    plan_dir = Path(recipe.run.dir) / "plan"
    if plan_dir.is_dir() and limit_rows is None:
        written.append(plan_dir / "statistics.json")  # where the report finds them
    for path in written:
        write_statistics(statistics, path)
    print_statistics(statistics, console, file=json_file)
    _print_left_out(bad_rows, console)
    for path in written:
        console.print(Text(f"wrote {path}"), soft_wrap=True)
    return 0


def _load(config: DataConfig, bad_rows: BadRows, limit_rows: int | None) -> Iterator[Conversation]:
    """The conversations of all sources, one piece of work in memory at a time; at most so many of each, evenly."""
    for source in open_sources(config):
        found = (
            conversation
            for work in source.works()
            for conversation in load_conversations(source.setup, work, _with_loaded(work, source.setup.name, bad_rows))
        )
        if limit_rows is None:
            yield from found
            continue
        rows = sum(work.rows for work in source.works())
        for index, conversation in enumerate(found):
            if rows <= limit_rows or (index + 1) * limit_rows // rows > index * limit_rows // rows:
                yield conversation


def _with_loaded(work: Work, source: str, bad_rows: BadRows) -> BadRows:
    """The bad rows, with those of a source that was loaded as a whole."""
    if work.facts is not None:
        bad_rows.read[source] += work.facts.read
        bad_rows.rows += work.facts.bad_rows
    return bad_rows


def _make_own(recipe: Recipe) -> Meter:
    """The tokenizer the recipe trains with: given, the one its model or run directory has, or trained on all rows."""
    config = recipe.tokenizer
    if config.path is None and isinstance(recipe.model, str):
        # Imported when asked for: a model to start from brings jax along.
        from launch.origin import open_origin
        from launch.runtime import use_mesh
        from model.parallel import MeshConfig

        with use_mesh(MeshConfig()):
            config = open_origin(recipe).tokenizer
    kept = Path(recipe.run.dir) / "tokenizer"
    path = config.path or (str(kept) if kept.is_dir() else None)
    if path is not None:
        return make_meter(path, load_tokenizer(path))
    texts = load_all_texts(open_sources(recipe.data))
    return make_meter(f"trained on these sources, {config.vocab_size:,} pieces", train_tokenizer(texts, config))


def _show_progress(conversations: Iterable[Conversation], show: Callable[[int], None]) -> Iterator[Conversation]:
    for index, conversation in enumerate(conversations):
        if index % PACE == 0:
            show(index)
        yield conversation


def _reject(conversation: Conversation, error: DataError, bad_rows: BadRows) -> None:
    """Notes a row that a tokenizer cannot spell, or raises, as the recipe says of bad rows."""
    file, line = place_of(conversation)
    bad_rows.add(
        BadRow(source=conversation.source, file=file, line=line, reason=str(error), language=conversation.language)
    )


def _print_left_out(bad_rows: BadRows, console: Console) -> None:
    for source, count in bad_rows.by_source().items():
        first = next(row for row in bad_rows.rows if row.source == source)
        words = f"{count:,} bad rows of {source} not counted; the first: {first.file}:{first.line}: {first.reason}"
        console.print(Text(make_printable(words, limit=600), "yellow"), soft_wrap=True)
