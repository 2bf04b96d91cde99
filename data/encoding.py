"""One piece of work to one shard: rows are read, turned into conversations, checked, encoded and written."""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.bad_rows import EXCERPT_CHARACTERS, BadRow, BadRows, note_bad_line
from data.chat import ChatTemplate
from data.cleaning.checks import Checks
from data.cleaning.duplicates import signature, signature_size
from data.cleaning.report import CleaningReport
from data.cleaning_config import CleaningConfig
from data.encoded import Encoded
from data.fitting import Fitted, fit_example
from data.formats.reading import read_chunk
from data.formats.rows import BadLine
from data.schema import Conversation, DataError, Turn, texts_of
from data.schemas.converter import Converter
from data.shards import COLUMNS, Overlong, ShardFacts, digest_records, write_shard
from data.source_config import LossConfig
from data.sources import convert_row
from data.token_store import encode_record, id_bytes_for
from data.works import Work

OBJECTS_BETWEEN_COLLECTIONS = 100_000
NO_LIMIT = 1 << 31
"""A row length that everything fits."""


class SourceSetup(NamedTuple):
    """What a worker must know of a source."""

    name: str
    loss: LossConfig
    converter: Converter | None
    """None for sources that are loaded as conversations."""


class Setup(NamedTuple):
    """What a worker must know besides its piece of work; sent to each process once."""

    sources: tuple[SourceSetup, ...]
    chat: ChatTemplate
    cutting: Literal["truncate", "split"] | None
    """`data.packing.overlong` where it cuts examples; else examples of any length are encoded whole, and whoever picks
    examples for a run leaves out those too long for its rows."""
    row_length: int
    checks: Checks
    cleaning: CleaningConfig
    store: Path


class Done(NamedTuple):
    """A shard that is there."""

    key: str
    rows: int
    tokens: int
    bad: BadRow | None
    """The first bad row."""


class RowFailure(RuntimeError):
    """Something of ours failed on a row: the message says which, the cause says what."""


class _Example(NamedTuple):
    encoded: Encoded
    conversation: Conversation
    """The row's, whole, where the example is a part of it."""
    turns: tuple[Turn, ...]
    """Those of the example."""


class _Losses:
    """What a piece of work leaves out."""

    def __init__(self, work: Work, source: str, max_listed: int):
        self.bad_rows = BadRows("skip")
        if work.facts is not None:
            self.bad_rows.read[source] += work.facts.read
            self.bad_rows.rows += work.facts.bad_rows
            self.bad_rows.left_out[source].update(work.facts.left_out)
        self.cleaning = CleaningReport(max_listed=max_listed)
        self.dropped: dict[str, list[int]] = {}
        """Positions of examples too long for a row, by language."""
        self.cut: Counter[str] = Counter()


def encode_work(setup: Setup, work: Work, key: str) -> Done:
    """Writes the shard of a piece of work and says what it holds.

    Raises DataError where a file is damaged or the store cannot be written, RowFailure for a fault of ours on a row.
    """
    source = setup.sources[work.source]
    losses = _Losses(work, source.name, setup.cleaning.max_listed)
    examples: list[_Example] = []
    with _collecting_seldom():
        for conversation in load_conversations(source, work, losses.bad_rows):
            verdict = setup.checks.judge(conversation)
            losses.cleaning.note(conversation, verdict)
            if verdict.reason is None:
                examples += _encode(setup, source, conversation, losses)
        facts = _write(setup, source, key, examples, losses)
    return Done(key, facts.read, facts.tokens, next(iter(losses.bad_rows.rows), None))


@contextlib.contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Thousands of examples stay until their shard is written: looking them over for garbage after every 700 objects
    made costs as much as making them."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def load_conversations(source: SourceSetup, work: Work, bad_rows: BadRows) -> Iterator[Conversation]:
    """Yields the conversations of a piece of work; bad rows are noted. Raises RowFailure for a fault of ours."""
    yield from work.conversations
    for chunk in work.chunks:
        assert source.converter is not None, "chunks of rows come with a converter"
        for row in read_chunk(chunk):
            bad_rows.read[source.name] += 1
            if isinstance(row, BadLine):
                note_bad_line(bad_rows, row, source=source.name)
                continue
            try:
                conversation = convert_row(row, source.converter, bad_rows=bad_rows)
            except DataError:
                raise  # the policy's word on a bad row
            except Exception as error:
                raise _blame(f"{row.file}:{row.line}", error) from error
            if conversation is not None:
                yield conversation


def place_of(conversation: Conversation) -> tuple[str, int]:
    """File and line in an example's id; the id itself and 0 for one that comes from no file."""
    file, _, line = conversation.id.rpartition(":")
    return (file, int(line)) if file and line.isdigit() else (conversation.id, 0)


def _encode(setup: Setup, source: SourceSetup, conversation: Conversation, losses: _Losses) -> list[_Example]:
    try:
        fitted = fit_example(
            conversation,
            setup.chat,
            loss=source.loss,
            row_length=setup.row_length if setup.cutting else NO_LIMIT,
            overlong=setup.cutting or "drop",
        )
    except DataError as error:
        losses.bad_rows.add(_bad_row(conversation, source, str(error)))
        return []
    except Exception as error:
        raise _blame(conversation.id, error) from error
    _count_lost(fitted, conversation.language, losses)
    return [_Example(encoded, conversation, turns) for encoded, turns in zip(fitted.kept, fitted.said, strict=True)]


def _count_lost(fitted: Fitted, language: str, losses: _Losses) -> None:
    if not fitted.kept:
        losses.dropped.setdefault(language, []).append(fitted.positions)
    elif fitted.lost_positions or len(fitted.kept) > 1:
        losses.cut[language] += 1


def _bad_row(conversation: Conversation, source: SourceSetup, reason: str) -> BadRow:
    file, line = place_of(conversation)
    excerpt = " ".join(turn.content for turn in conversation.turns)[:EXCERPT_CHARACTERS]
    return BadRow(
        source=source.name, file=file, line=line, reason=reason, language=conversation.language, excerpt=excerpt
    )


def _blame(place: str, error: Exception) -> RowFailure:
    return RowFailure(f"{place}: {type(error).__name__} on this row, which is a fault of polytune's: {error}")


def _write(setup: Setup, source: SourceSetup, key: str, examples: list[_Example], losses: _Losses) -> ShardFacts:
    id_bytes = id_bytes_for(setup.chat.tokenizer.vocab_size)
    records = [encode_record(example.encoded, id_bytes) for example in examples]
    languages = sorted({example.conversation.language for example in examples})
    places = [place_of(example.conversation) for example in examples]
    files = list(dict.fromkeys(file for file, _ in places))
    facts = ShardFacts(
        key=key,
        source=source.name,
        examples=len(examples),
        tokens=sum(len(example.encoded.ids) for example in examples),
        id_bytes=id_bytes,
        largest_id=max((int(example.encoded.ids.max()) for example in examples), default=0),
        digest=digest_records(records),
        languages=tuple(languages),
        tasks=tuple(sorted({example.conversation.task for example in examples})),
        files=tuple(files),
        read=losses.bad_rows.read[source.name],
        left_out=dict(losses.bad_rows.left_out[source.name]),
        bad_rows=tuple(losses.bad_rows.rows),
        overlong=_sum_overlong(losses),
        cleaning=losses.cleaning,
    )
    columns = _tabulate(examples, places, facts)
    write_shard(setup.store, facts, records, columns, _sign(setup.cleaning, examples))
    return facts


def _tabulate(examples: list[_Example], places: list[tuple[str, int]], facts: ShardFacts) -> dict[str, np.ndarray]:
    ids = {table: {name: index for index, name in enumerate(names)} for table, names in _tables(facts).items()}
    columns = {name: np.zeros(len(examples), dtype) for name, dtype in COLUMNS.items()}
    for index, ((encoded, conversation, turns), (file, line)) in enumerate(zip(examples, places, strict=True)):
        texts = [text for turn in turns for text in texts_of(turn)]
        columns["positions"][index] = len(encoded.ids) - 1
        columns["targets"][index] = np.count_nonzero(encoded.weights[1:])
        columns["language"][index] = ids["language"][conversation.language]
        columns["task"][index] = ids["task"][conversation.task]
        columns["content_bytes"][index] = sum(len(text.encode()) for text in texts)
        columns["characters"][index] = sum(map(len, texts))
        columns["file"][index] = ids["file"][file]
        columns["line"][index] = line
    return columns


def _tables(facts: ShardFacts) -> dict[str, tuple[str, ...]]:
    return {"language": facts.languages, "task": facts.tasks, "file": facts.files}


def _sign(config: CleaningConfig, examples: list[_Example]) -> np.ndarray:
    size = signature_size(config)
    if not size:
        return np.zeros((len(examples), 0), np.uint8)
    signatures = b"".join(signature(config, example.conversation) for example in examples)
    return np.frombuffer(signatures, np.uint8).reshape(-1, size)


def _sum_overlong(losses: _Losses) -> tuple[Overlong, ...]:
    return tuple(
        Overlong(
            language=language,
            dropped=len(losses.dropped.get(language, ())),
            cut=losses.cut[language],
            shortest=min(losses.dropped.get(language, (0,))),
        )
        for language in sorted({*losses.dropped, *losses.cut})
    )
