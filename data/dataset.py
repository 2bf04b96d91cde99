"""The examples of a run: a table in memory maps, one row an example, over tokens that stay in their shards."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from data.schema import DataError
from data.token_store import ShardStore, Tokens, TokenStore, records_path, table_path

ARRAYS = {
    "positions": np.int32,
    "targets": np.int32,
    "language": np.int16,
    "source": np.int16,
    "task": np.int16,
    "content_bytes": np.int64,
    "characters": np.int64,
    "record": np.int64,
    "file": np.int32,
    "line": np.int64,
}
HASHED = tuple(name for name in ARRAYS if name not in ("file", "line"))
FORMAT = 2


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Examples of one source and language left out because they are longer than a row."""

    source: str
    language: str
    count: int
    shortest: int
    """Positions the shortest of them needs."""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """Examples of one source and language that are shorter than their rows of the source, or were split."""

    source: str
    language: str
    count: int


class ShardList(msgspec.Struct, frozen=True, kw_only=True):
    """The shards that records are numbered through, in order."""

    id_bytes: int
    keys: tuple[str, ...]
    counts: tuple[int, ...]
    """Records of each."""
    digests: tuple[str, ...]
    """sha256 of each one's records."""


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a dataset that is not an array; `dataset.json`."""

    format: int = FORMAT
    languages: tuple[str, ...]
    """Tags by language id; id 0 is "" and means padding."""
    sources: tuple[str, ...]
    tasks: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Names of files, and ids of examples that come from none, by file id."""
    pad_id: int
    prompt_weights: tuple[float, ...]
    """What weight code 2 stands for, by source id."""
    tokenizer_hash: str
    template_hash: str
    largest_id: int
    """The largest id any example holds."""
    shards: ShardList | None = None
    dropped: tuple[Dropped, ...] = ()
    cut: tuple[Cut, ...] = ()
    bad_rows: dict[str, int] = {}
    """Rows refused with a reason, by language; "" where the language itself is unreadable."""
    left_out: dict[str, dict[str, int]] = {}
    """Rows left out on purpose, by source and reason."""
    cleaned: dict[str, int] = {}
    """Examples left out by cleaning, by predicate; `plan/cleaning.json` has them by source and language."""
    hash: str = ""
    """sha256 of the arrays, tables and records, hence of everything a batch can hold."""


class Dataset(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """N encoded examples: one row each in the arrays below, their tokens in `store`."""

    positions: np.ndarray
    """int32, positions an example fills in a row: its ids less one."""
    targets: np.ndarray
    """int32, positions whose target is trained on. An example's first id is never a target."""
    language: np.ndarray
    """int16 ids into `facts.languages`; likewise source and task."""
    source: np.ndarray
    task: np.ndarray
    content_bytes: np.ndarray
    """int64, UTF-8 bytes of what all turns say: contents, thoughts, calls."""
    characters: np.ndarray
    """int64, code points of the same."""
    record: np.ndarray
    """int64, which record of `store` holds the tokens."""
    file: np.ndarray
    """int32 ids into `facts.files`."""
    line: np.ndarray
    """int64, line or row in the file, from 1; 0 for examples that come from none."""
    facts: DatasetFacts
    store: TokenStore
    directory: Path | None = None
    """Where the arrays are mapped from; None when they live in memory only."""

    def __len__(self) -> int:
        return len(self.positions)

    def __reduce__(self):
        # A mapped dataset crosses to a loader process as its path, never as a copy of its arrays.
        if self.directory is not None:
            return read_dataset, (self.directory,)
        return _restore, (msgspec.structs.asdict(self),)

    @property
    def lengths(self) -> np.ndarray:
        """Positions each example fills in a row: its ids less one."""
        return self.positions

    @property
    def target_tokens(self) -> np.ndarray:
        """Positions of each example whose target is trained on."""
        return self.targets

    def read(self, examples: Sequence[int] | np.ndarray) -> Tokens:
        """Returns the tokens of these examples, in this order. Raises DataError where a shard is gone or damaged."""
        return self.store.read(self.record[np.asarray(examples, np.int64)])

    def name_example(self, example: int) -> str:
        """File and line of an example, or the id of one that comes from no file."""
        file, line = self.facts.files[self.file[example]], int(self.line[example])
        return f"{file}:{line}" if line else file


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the shards of a dataset on disk are; `store.json`, apart from what the dataset is."""

    store: str


def write_dataset(dataset: Dataset, directory: Path, *, store: Path) -> None:
    """Writes one `.npy` per array, where the shards are, then `dataset.json`; without the latter it is incomplete."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(directory / f"{name}.npy", getattr(dataset, name), allow_pickle=False)
    point_at_store(directory, store)
    (directory / "dataset.json").write_bytes(msgspec.json.encode(dataset.facts))


def point_at_store(directory: Path, store: Path) -> None:
    """Says where the shards of a dataset on disk are."""
    (directory / "store.json").write_bytes(msgspec.json.encode(_Place(store=str(store.resolve()))))


def read_dataset(directory: Path) -> Dataset:
    """The dataset written to a folder, its arrays mapped read-only. Raises DataError if incomplete."""
    try:
        facts = msgspec.json.decode((directory / "dataset.json").read_bytes(), type=DatasetFacts)
        place = msgspec.json.decode((directory / "store.json").read_bytes(), type=_Place)
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        shards = facts.shards
        complete = facts.format == FORMAT and shards is not None and len({len(a) for a in arrays.values()}) == 1
        complete = complete and all(arrays[name].dtype == kind for name, kind in ARRAYS.items())
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{directory} is no complete dataset ({error}); delete it and prepare again") from error
    if not complete or shards is None:
        raise DataError(f"{directory} is damaged or of another format; delete it and prepare again")
    store = ShardStore(Path(place.store), shards.keys, shards.counts, shards.id_bytes)
    return Dataset(**arrays, facts=facts, store=store, directory=directory)


def find_missing_shards(dataset: Dataset) -> list[str]:
    """Keys of the shards that are no longer where the dataset says."""
    if dataset.facts.shards is None or not isinstance(dataset.store, ShardStore):
        return []
    store = dataset.store.store
    paths = ((key, records_path(store, key), table_path(store, key)) for key in dataset.facts.shards.keys)
    return [key for key, records, table in paths if not records.exists() or not table.exists()]


def hash_dataset(dataset: Dataset) -> str:
    """sha256 over the arrays' bytes, the tables their ids index, and the digests of the records.

    What files are called and where rows stand in them is left out: it changes nothing that is trained.
    """
    digest = hashlib.sha256()
    facts = dataset.facts
    shards = facts.shards
    tables = (facts.languages, facts.sources, facts.tasks, facts.pad_id, facts.prompt_weights)
    records = (shards.counts, shards.digests) if shards else ()
    digest.update(msgspec.json.encode((FORMAT, *tables, records)))
    for name in HASHED:
        array = np.ascontiguousarray(getattr(dataset, name), ARRAYS[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _restore(fields: dict) -> Dataset:
    return Dataset(**fields)
