"""Counting a corpus in one pass: conversation by conversation, or spread over worker processes."""

import concurrent.futures
import concurrent.futures.process
import functools
import itertools
import multiprocessing
import pickle
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.schema import TEXT_ROLE, Conversation, DataError, texts_of
from data.statistics import LONGEST, Cell, CorpusStatistics, LongRow, TokenCounts, TokenizerFacts, order_longest
from data.token_kinds import BYTES, UNKNOWN, TokenKinds, find_kinds
from data.tokenizer import Tokenizer
from data.words import count_words, separates_words

BATCH_ROWS, BATCH_CHARACTERS = 512, 1 << 20
"""A worker gets conversations until either is reached."""
PROMPT, ANSWER, TEXT = 0, 1, 2
"""Who speaks: system, user and tool turns; assistant turns; plain texts."""
SPEAKERS = {"assistant": ANSWER, TEXT_ROLE: TEXT}

Reject = Callable[[Conversation, DataError], None]
"""What becomes of a conversation that a tokenizer cannot spell: raises, or notes it; it is not counted."""


class Meter(NamedTuple):
    """A tokenizer that counts. Picklable."""

    facts: TokenizerFacts
    tokenizer: Tokenizer
    kinds: TokenKinds


class _Refused(NamedTuple):
    conversation: Conversation
    reason: str


def make_meter(name: str, tokenizer: Tokenizer) -> Meter:
    """The meter of a tokenizer, called by `name` in what it counts. Raises DataError for a kind that is not known."""
    kinds = find_kinds(tokenizer)
    facts = TokenizerFacts(
        name=name, hash=tokenizer.hash, vocab_size=tokenizer.vocab_size, has_unknown=kinds.has_unknown,
        byte_kind=kinds.byte_kind,
    )  # fmt: skip
    return Meter(facts, tokenizer, kinds)


class Tally:
    """Counts so far; what it holds grows with sources and languages, never with rows."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        self.meters = tuple(meters)
        self._cells: dict[tuple[str, str], _CellTally] = {}

    def add(self, conversation: Conversation) -> None:
        """Counts a conversation, its contents encoded by every tokenizer.

        Raises DataError naming tokenizer and row where one cannot spell it; then nothing of it is counted.
        """
        counts = [_count_contents(conversation, meter) for meter in self.meters]
        self._cell(conversation).add(conversation, counts)

    def freeze(self) -> CorpusStatistics:
        """The statistics of what was added."""
        cells = tuple(cell.freeze() for _, cell in sorted(self._cells.items()))
        return CorpusStatistics(tokenizers=tuple(meter.facts for meter in self.meters), cells=cells)

    def _cell(self, conversation: Conversation) -> "_CellTally":
        key = (conversation.source, conversation.language)
        if key not in self._cells:
            self._cells[key] = _CellTally(*key, len(self.meters))
        return self._cells[key]


_Counting = concurrent.futures.Future[tuple[CorpusStatistics, list[_Refused]]]


class _Counts(NamedTuple):
    """Of one conversation by one tokenizer: tokens by who speaks, and ids by kind."""

    by_speaker: Sequence[int]
    unknown: int
    spelled_in_bytes: int


class _CellTally:
    """One source in one language."""

    def __init__(self, source: str, language: str, meters: int) -> None:
        self.source, self.language = source, language
        self.has_words = separates_words(language)
        self.sums: Counter[str] = Counter()
        self.counts = [[0, 0, 0, 0, 0] for _ in range(meters)]
        self.longest: list[tuple[LongRow, ...]] = [()] * meters

    def add(self, conversation: Conversation, counts: Sequence[_Counts]) -> None:
        characters = 0
        for turn in conversation.turns:
            for text in texts_of(turn):
                characters += len(text)
                self.sums["size_bytes"] += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
                self.sums["words"] += count_words(text) if self.has_words else 0
        self.sums.update(rows=1, turns=len(conversation.turns), characters=characters)
        for index, one in enumerate(counts):
            own = (*one.by_speaker, one.unknown, one.spelled_in_bytes)
            self.counts[index] = [a + b for a, b in zip(self.counts[index], own, strict=True)]
            self._keep_longest(index, conversation, tokens=sum(one.by_speaker), characters=characters)

    def freeze(self) -> Cell:
        return Cell(
            source=self.source,
            language=self.language,
            words=self.sums["words"] if self.has_words else None,
            tokens=tuple(
                TokenCounts(prompt=prompt, answer=answer, text=text, unknown=unknown, spelled_in_bytes=spelled)
                for prompt, answer, text, unknown, spelled in self.counts
            ),
            longest=tuple(self.longest),
            **{name: self.sums[name] for name in ("rows", "turns", "characters", "size_bytes")},
        )

    def _keep_longest(self, index: int, conversation: Conversation, *, tokens: int, characters: int) -> None:
        kept = self.longest[index]
        own = LongRow(
            tokens=tokens, characters=characters, row=conversation.id, source=self.source, language=self.language
        )
        if len(kept) < LONGEST or tokens >= kept[-1].tokens:
            self.longest[index] = order_longest((*kept, own))


def measure(
    conversations: Iterable[Conversation], meters: Sequence[Meter], *, workers: int = 0, reject: Reject | None = None
) -> CorpusStatistics:
    """The statistics of conversations, read once and in order, never held all at once.

    With workers, batches are encoded in that many processes of their own; the result is the same. Raises DataError
    for the first conversation that a tokenizer cannot spell, unless `reject` takes it.
    """
    refuse = reject or _raise_refused
    if workers < 1:
        statistics, refused = _count_batch(conversations, meters, refuse)
        assert not refused
        return statistics
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        # Once on disk, not once in every task: a vocabulary is megabytes.
        Path(file.name).write_bytes(pickle.dumps(tuple(meters)))
        return _measure_in_processes(conversations, meters, file.name, workers=workers, refuse=refuse)


def _measure_in_processes(
    conversations: Iterable[Conversation], meters: Sequence[Meter], file: str, *, workers: int, refuse: Reject
) -> CorpusStatistics:
    whole = Tally(meters).freeze()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending: deque[_Counting] = deque()
        try:
            for batch in itertools.chain(_cut_batches(conversations), itertools.repeat(None)):
                if batch is not None:
                    pending.append(pool.submit(_count_in_worker, batch, file))
                if not pending:
                    return whole
                if batch is None or len(pending) > 2 * workers:
                    statistics, refused = _take(pending.popleft())
                    whole = whole.merge(statistics)
                    for one in refused:
                        refuse(one.conversation, DataError(one.reason))
        finally:
            for future in pending:
                future.cancel()
    raise AssertionError("batches end in None")


def _take(future: _Counting) -> tuple[CorpusStatistics, list[_Refused]]:
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise DataError(
            "a worker process ended while it counted, most likely for want of memory; give fewer --workers"
        ) from None


def _count_in_worker(batch: list[Conversation], file: str) -> tuple[CorpusStatistics, list[_Refused]]:
    return _count_batch(batch, _read_meters(file), None)


@functools.lru_cache(maxsize=1)
def _read_meters(file: str) -> tuple[Meter, ...]:
    return pickle.loads(Path(file).read_bytes())


def _count_batch(
    conversations: Iterable[Conversation], meters: Sequence[Meter], refuse: Reject | None
) -> tuple[CorpusStatistics, list[_Refused]]:
    """Statistics, and where nobody else takes them the conversations that were refused, with reasons."""
    tally, refused = Tally(meters), []
    for conversation in conversations:
        try:
            tally.add(conversation)
        except DataError as error:
            if refuse is None:
                refused.append(_Refused(conversation, str(error)))
            else:
                refuse(conversation, error)
    return tally.freeze(), refused


def _cut_batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    batch, characters = list[Conversation](), 0
    for conversation in conversations:
        batch.append(conversation)
        characters += sum(len(text) for turn in conversation.turns for text in texts_of(turn))
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _count_contents(conversation: Conversation, meter: Meter) -> _Counts:
    by_speaker, kinds = [0, 0, 0], np.zeros(3, np.int64)
    for turn in conversation.turns:
        for text in texts_of(turn):
            try:
                ids = meter.tokenizer.encode(text)
            except DataError as error:
                raise DataError(f"tokenizer {meter.facts.name}: {error}") from None
            by_speaker[SPEAKERS.get(turn.role, PROMPT)] += len(ids)
            kinds += np.bincount(meter.kinds.kind_V[np.asarray(ids, np.int64)], minlength=3)
    return _Counts(by_speaker, int(kinds[UNKNOWN]), int(kinds[BYTES]))


def _raise_refused(conversation: Conversation, error: DataError) -> None:
    raise DataError(
        f"{conversation.source} {conversation.id}: {error}; mend the row, leave it out with `where`, or set "
        "data.bad_rows to skip"
    )
