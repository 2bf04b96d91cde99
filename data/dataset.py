"""Encoded examples as flat arrays, which restarted runs and loader processes map from disk."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from data.chat import ChatTemplate
from data.encoded import Encoded
from data.schema import Conversation, DataError

ARRAYS = ("tokens", "roles", "weights", "offsets", "language", "source", "task", "content_bytes")
FORMAT = 1


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Examples of one source and language left out because they are longer than a row."""

    source: str
    language: str
    count: int
    shortest: int
    """Positions the shortest of them needs."""


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a dataset that is not an array; `dataset.json`."""

    format: int = FORMAT
    languages: tuple[str, ...]
    """Tags by language id; id 0 is "" and means padding."""
    sources: tuple[str, ...]
    tasks: tuple[str, ...]
    pad_id: int
    tokenizer_hash: str
    template_hash: str
    dropped: tuple[Dropped, ...] = ()
    bad_rows: dict[str, int] = {}
    """Rows refused with a reason, by language; "" where the language itself is unreadable."""
    hash: str = ""
    """sha256 of the arrays and tables, hence of everything a batch can hold."""


class Dataset(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """N encoded examples end to end; example i is `[offsets[i]:offsets[i + 1]]` of the token arrays."""

    tokens: np.ndarray
    """uint16 where the vocabulary allows, else int32."""
    roles: np.ndarray
    """int8, `Role` of each token."""
    weights: np.ndarray
    """float32, loss weight of each token as a target."""
    offsets: np.ndarray
    """int64, N + 1 of them."""
    language: np.ndarray
    """int16 ids into `facts.languages`, one an example; likewise source and task."""
    source: np.ndarray
    task: np.ndarray
    content_bytes: np.ndarray
    """int32, UTF-8 bytes of all turns' content."""
    facts: DatasetFacts
    directory: Path | None = None
    """Where the arrays are mapped from; None when they live in memory only."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self):
        # A mapped dataset crosses to a loader process as its path, never as a copy of its arrays.
        if self.directory is not None:
            return read_dataset, (self.directory,)
        return _restore, (msgspec.structs.asdict(self),)

    @property
    def lengths(self) -> np.ndarray:
        """Positions each example fills in a row: its ids less one."""
        return np.diff(self.offsets) - 1

    @property
    def target_tokens(self) -> np.ndarray:
        """Positions of each example whose target is trained on. Its first id is never a target."""
        trained = np.concatenate(([0], np.cumsum(np.asarray(self.weights) > 0)))
        return trained[self.offsets[1:]] - trained[self.offsets[:-1] + 1]


def encode_dataset(
    conversations: Sequence[Conversation],
    chat: ChatTemplate,
    *,
    row_length: int,
    overlong: Literal["drop", "error"] = "drop",
    reject: Callable[[Conversation, DataError], None] | None = None,
) -> Dataset:
    """The conversations as ids, roles and weights, in order, less those longer than a row.

    `reject` is told of each conversation that cannot be encoded, and whether it raises or notes decides
    whether the rest goes on; without it the first one raises. Overlong examples are counted, or raise
    DataError naming the example where `overlong` is "error". Raises DataError when nothing is left.
    """
    kept: list[tuple[Conversation, Encoded]] = []
    overlong_positions: dict[tuple[str, str], list[int]] = {}
    for conversation in conversations:
        try:
            encoded = _encode(conversation, chat)
        except DataError as error:
            if reject is None:
                raise
            reject(conversation, error)
            continue
        positions = len(encoded.ids) - 1
        if positions <= row_length:
            kept.append((conversation, encoded))
        elif overlong == "error":
            raise DataError(
                f"{_name(conversation)} fills {positions} positions but data.packing.row_length is "
                f"{row_length}; set it to {positions} or more, or data.packing.overlong to drop"
            )
        else:
            overlong_positions.setdefault((conversation.source, conversation.language), []).append(positions)
    dropped = tuple(
        Dropped(source=source, language=language, count=len(positions), shortest=min(positions))
        for (source, language), positions in sorted(overlong_positions.items())
    )
    if not kept:
        raise DataError(f"no example is left to train on: {_describe(dropped, row_length)}")
    return _assemble(kept, chat, dropped)


def write_dataset(dataset: Dataset, directory: Path) -> None:
    """Writes one `.npy` per array, then `dataset.json`; a folder without the latter is incomplete."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(directory / f"{name}.npy", getattr(dataset, name), allow_pickle=False)
    (directory / "dataset.json").write_bytes(msgspec.json.encode(dataset.facts))


def read_dataset(directory: Path) -> Dataset:
    """The dataset written to a folder, its arrays mapped read-only. Raises DataError if incomplete."""
    try:
        facts = msgspec.json.decode((directory / "dataset.json").read_bytes(), type=DatasetFacts)
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        dataset = Dataset(**arrays, facts=facts, directory=directory)
        complete = facts.format == FORMAT and int(dataset.offsets[-1]) == len(dataset.tokens)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{directory} is no complete dataset ({error}); delete it and prepare again") from error
    if not complete:
        raise DataError(f"{directory} is damaged or of another format; delete it and prepare again")
    return dataset


def hash_dataset(dataset: Dataset) -> str:
    """sha256 over the arrays' bytes and the tables their ids index."""
    digest = hashlib.sha256()
    tables = (dataset.facts.languages, dataset.facts.sources, dataset.facts.tasks, dataset.facts.pad_id)
    digest.update(msgspec.json.encode((FORMAT, *tables)))
    for name in ARRAYS:
        array = np.ascontiguousarray(getattr(dataset, name))
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _encode(conversation: Conversation, chat: ChatTemplate) -> Encoded:
    if not conversation.language or not conversation.source:
        raise DataError(f"{_name(conversation)} lacks a language or a source; every example needs both")
    encoded = chat.encode_conversation(conversation)
    if len(encoded.ids) < 2 or not np.any(encoded.weights[1:] > 0):
        raise DataError(f"{_name(conversation)} has no token to train on; give it an assistant message")
    return encoded


def _assemble(kept: list[tuple[Conversation, Encoded]], chat: ChatTemplate, dropped: tuple[Dropped, ...]) -> Dataset:
    conversations = [conversation for conversation, _ in kept]
    languages = _table(conversation.language for conversation in conversations)
    sources = _table(conversation.source for conversation in conversations)
    tasks = _table(conversation.task for conversation in conversations)
    token_dtype = np.uint16 if chat.tokenizer.vocab_size <= 1 << 16 else np.int32
    dataset = Dataset(
        tokens=np.concatenate([encoded.ids for _, encoded in kept]).astype(token_dtype),
        roles=np.concatenate([encoded.roles for _, encoded in kept]).astype(np.int8),
        weights=np.concatenate([encoded.weights for _, encoded in kept]).astype(np.float32),
        offsets=np.concatenate(([0], np.cumsum([len(encoded.ids) for _, encoded in kept]))).astype(np.int64),
        language=np.array([languages[conversation.language] for conversation in conversations], np.int16),
        source=np.array([sources[conversation.source] for conversation in conversations], np.int16),
        task=np.array([tasks[conversation.task] for conversation in conversations], np.int16),
        content_bytes=np.array([_content_bytes(conversation) for conversation in conversations], np.int32),
        facts=DatasetFacts(
            languages=tuple(languages),
            sources=tuple(sources),
            tasks=tuple(tasks),
            pad_id=chat.tokenizer.pad_id,
            tokenizer_hash=chat.tokenizer.hash,
            template_hash=chat.hash,
            dropped=dropped,
        ),
    )
    facts = msgspec.structs.replace(dataset.facts, hash=hash_dataset(dataset))
    return msgspec.structs.replace(dataset, facts=facts)


def _table(names: Iterable[str]) -> dict[str, int]:
    """Ids by name, 0 for the empty name, the others sorted."""
    return {name: index for index, name in enumerate(["", *sorted(set(names) - {""})])}


def _content_bytes(conversation: Conversation) -> int:
    return sum(len(turn.content.encode()) for turn in conversation.turns)


def _name(conversation: Conversation) -> str:
    return f"{conversation.id or 'an example'} of source {conversation.source!r} ({conversation.language})"


def _describe(dropped: tuple[Dropped, ...], row_length: int) -> str:
    if not dropped:
        return "the sources gave none; check their paths, `where` and `limit`"
    count, shortest = sum(item.count for item in dropped), min(item.shortest for item in dropped)
    return (
        f"all {count} are longer than data.packing.row_length={row_length} positions; "
        f"the shortest fills {shortest}, so set it to {shortest} or more"
    )


def _restore(fields: dict) -> Dataset:
    return Dataset(**fields)
