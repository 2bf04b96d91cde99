"""One piece of work to one shard: rows are read, turned into conversations, checked, encoded and written."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.bad_rows import EXCERPT_CHARACTERS, BadRow, show_row
from data.chat import ChatTemplate
from data.cleaning.checks import Checks
from data.cleaning.report import CleaningReport, encode_report
from data.cleaning.signatures import signature, signature_bytes
from data.cleaning_config import CleaningConfig
from data.encoded import Encoded
from data.fitting import fit_example
from data.formats.reading import read_chunk
from data.formats.rows import BadLine, Row
from data.schema import Conversation, DataError
from data.schemas.convert import Converter
from data.shards import COLUMNS, Overlong, ShardFacts, digest_records, write_shard
from data.source_config import LossConfig
from data.token_store import encode_record, id_bytes_for
from data.works import Work

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
    cutting: str
    """`data.packing.overlong` where it cuts examples; else "", and examples of any length are encoded whole."""
    row_length: int
    checks: Checks | None
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
    file: str
    line: int


class _Loaded(NamedTuple):
    """A row on its way: a conversation with its place."""

    conversation: Conversation
    file: str
    line: int


class _Losses:
    """What a piece of work leaves out."""

    def __init__(self, work: Work):
        facts = work.facts
        self.read = facts.read if facts else 0
        self.bad_rows: list[BadRow] = list(facts.bad_rows) if facts else []
        self.left_out: Counter[str] = Counter(facts.left_out if facts else {})
        self.cleaning = CleaningReport()
        self.dropped: dict[str, list[int]] = {}
        """Positions of examples too long for a row, by language."""
        self.cut: Counter[str] = Counter()


def encode_work(setup: Setup, work: Work, key: str) -> Done:
    """Writes the shard of a piece of work and says what it holds.

    Raises DataError where a file is damaged or the store cannot be written, RowFailure for a fault of ours on a row.
    """
    losses = _Losses(work)
    examples = [example for loaded in _load(setup, work, losses) for example in _encode(setup, work, loaded, losses)]
    _write(setup, work, key, examples, losses)
    first_bad = losses.bad_rows[0] if losses.bad_rows else None
    return Done(key, losses.read, sum(len(example.encoded.ids) for example in examples), first_bad)


def load_texts(setup_source: SourceSetup, work: Work) -> Iterator[str]:
    """Yields the contents of the turns of a piece of work, for training a tokenizer; bad rows give none."""
    losses = _Losses(work)
    for loaded in _load_rows(setup_source, work, losses):
        for turn in loaded.conversation.turns:
            yield turn.content


def place_of(conversation: Conversation) -> tuple[str, int]:
    """File and line in an example's id; the id itself and 0 for one that comes from no file."""
    file, _, line = conversation.id.rpartition(":")
    return (file, int(line)) if file and line.isdigit() else (conversation.id, 0)


def _load(setup: Setup, work: Work, losses: _Losses) -> Iterator[_Loaded]:
    for loaded in _load_rows(setup.sources[work.source], work, losses):
        reason = setup.checks.find_reason(loaded.conversation) if setup.checks else None
        if reason is None:
            yield loaded
        else:
            losses.cleaning.add(reason, loaded.conversation, file=loaded.file, line=loaded.line)


def _load_rows(source: SourceSetup, work: Work, losses: _Losses) -> Iterator[_Loaded]:
    for conversation in work.conversations:
        yield _Loaded(conversation, *place_of(conversation))
    for chunk in work.chunks:
        for row in read_chunk(chunk):
            losses.read += 1
            if isinstance(row, BadLine):
                losses.bad_rows.append(
                    BadRow(source=source.name, file=row.file, line=row.line, reason=row.reason, excerpt=row.excerpt)
                )
                continue
            conversation = _convert(source, row, losses)
            if conversation is not None:
                yield _Loaded(conversation, row.file, row.line)


def _convert(source: SourceSetup, row: Row, losses: _Losses) -> Conversation | None:
    assert source.converter is not None, "chunks of rows come with a converter"
    try:
        conversation = source.converter.convert(row)
    except DataError as error:
        losses.bad_rows.append(
            BadRow(source=source.name, file=row.file, line=row.line, reason=str(error), excerpt=show_row(row.fields))
        )
        return None
    except Exception as error:
        raise RowFailure(f"{row.file}:{row.line}: {type(error).__name__} while reading this row: {error}") from error
    if conversation is None:
        losses.left_out["where"] += 1
    return conversation


def _encode(setup: Setup, work: Work, loaded: _Loaded, losses: _Losses) -> Iterator[_Example]:
    conversation, file, line = loaded
    source = setup.sources[work.source]
    try:
        fitted = fit_example(
            conversation,
            setup.chat,
            loss=source.loss,
            row_length=setup.row_length if setup.cutting else NO_LIMIT,
            overlong=setup.cutting or "drop",
        )
    except DataError as error:
        losses.bad_rows.append(
            BadRow(
                source=source.name,
                file=file,
                line=line,
                reason=str(error),
                language=conversation.language,
                excerpt=" ".join(turn.content for turn in conversation.turns)[:EXCERPT_CHARACTERS],
            )
        )
        return
    except Exception as error:
        raise RowFailure(f"{file}:{line}: {type(error).__name__} while encoding this row: {error}") from error
    if fitted.dropped_positions:
        losses.dropped.setdefault(conversation.language, []).append(fitted.dropped_positions)
    elif fitted.cut:
        losses.cut[conversation.language] += 1
    for encoded in fitted.encoded:
        yield _Example(encoded, conversation, file, line)


def _write(setup: Setup, work: Work, key: str, examples: list[_Example], losses: _Losses) -> None:
    id_bytes = id_bytes_for(setup.chat.tokenizer.vocab_size)
    records = [encode_record(example.encoded, id_bytes) for example in examples]
    languages = sorted({example.conversation.language for example in examples})
    tasks = sorted({example.conversation.task for example in examples})
    files = list(dict.fromkeys(example.file for example in examples))
    columns = {name: np.zeros(len(examples), dtype) for name, dtype in COLUMNS.items()}
    width = signature_bytes(setup.cleaning)
    signatures = np.zeros((len(examples), width), np.uint8)
    file_ids = {name: index for index, name in enumerate(files)}
    for index, example in enumerate(examples):
        turns = example.conversation.turns
        columns["positions"][index] = len(example.encoded.ids) - 1
        columns["targets"][index] = np.count_nonzero(example.encoded.weights[1:])
        columns["language"][index] = languages.index(example.conversation.language)
        columns["task"][index] = tasks.index(example.conversation.task)
        columns["content_bytes"][index] = sum(len(turn.content.encode()) for turn in turns)
        columns["characters"][index] = sum(len(turn.content) for turn in turns)
        columns["file"][index] = file_ids[example.file]
        columns["line"][index] = example.line
        if width:
            signatures[index] = np.frombuffer(signature(setup.cleaning, example.conversation), np.uint8)
    facts = ShardFacts(
        key=key,
        source=setup.sources[work.source].name,
        examples=len(examples),
        tokens=sum(len(example.encoded.ids) for example in examples),
        id_bytes=id_bytes,
        largest_id=max((int(example.encoded.ids.max()) for example in examples), default=0),
        digest=digest_records(records),
        languages=tuple(languages),
        tasks=tuple(tasks),
        files=tuple(files),
        read=losses.read,
        left_out=dict(losses.left_out),
        bad_rows=tuple(losses.bad_rows),
        overlong=_sum_overlong(losses),
        cleaning=encode_report(losses.cleaning),
    )
    write_shard(setup.store, facts, records, columns, signatures)


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
