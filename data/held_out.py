"""Held-out rows of a run: a few examples of each language that training has not, packed into batches once."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from data.batch import Batch
from data.config import DataConfig, TokenizerConfig
from data.dataset import Dataset
from data.mixture_config import MixtureConfig
from data.packing import pack_best_fit
from data.pipeline import row_arrays
from data.prepare import NOBODY, Watch, prepare, read_prepared
from data.schema import DataError

FOLDER, CHOSEN = "held_out", "chosen.json"
"""Of a run directory, and in it: which of the folder's examples are looked at."""
CHUNK = 65536
"""Examples compared at a time."""


class _Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Which examples are looked at, and of what that was decided."""

    made_of: tuple[str, str, int]
    """Hashes of the held-out dataset and of training's, and most examples of a language."""
    examples: tuple[int, ...]


class HeldOutRows(NamedTuple):
    """What is looked at: rows of examples, to be cut into batches."""

    dataset: Dataset
    rows: list[list[int]]
    row_length: int

    @property
    def languages(self) -> tuple[str, ...]:
        """Tags by the language id that batches hold."""
        return self.dataset.facts.languages

    def batches(self, *, rows: int, index: int, count: int) -> list[Batch]:
        """The `index`-th of `count` equal parts of every batch of so many rows; empty rows fill up the last."""
        padded = self.rows + [[]] * (-len(self.rows) % rows)
        part = rows // count
        starts = range(index * part, len(padded), rows)
        return [row_arrays(self.dataset, padded[start : start + part], self.row_length) for start in starts]


def prepare_held_out(
    config: DataConfig,
    *,
    training: Dataset,
    run_dir: Path,
    store: Path,
    seed: int,
    extra_stop_ids: tuple[int, ...] = (),
    watch: Watch = NOBODY,
) -> None:
    """Encodes `data.held_out` with the run's tokenizer and template into `run_dir/held_out`, and chooses its examples.

    Raises DataError where every example of it is trained on too.
    """
    assert config.held_out is not None, "asked for by launch.preparing only where there is one"
    own = msgspec.structs.replace(
        config, sources=config.held_out.sources, mixture=MixtureConfig(), held_out=None
    )  # fmt: skip
    folder = run_dir / FOLDER
    prepared = prepare(
        own,
        TokenizerConfig(path=str(run_dir / "tokenizer")),
        steps=None,
        epochs=1,
        batch_rows=1,
        seed=seed,
        run_dir=folder,
        store=store,
        extra_stop_ids=extra_stop_ids,
        watch=watch._replace(notice=lambda text: watch.notice(f"data.held_out: {text}")),
    )
    made_of = (prepared.dataset.facts.hash, training.facts.hash, config.held_out.examples)
    if _read_chosen(folder, made_of) is None:
        examples = _choose(prepared.dataset, training, most=config.held_out.examples, watch=watch)
        chosen = _Chosen(made_of=made_of, examples=tuple(examples.tolist()))
        (folder / CHOSEN).write_bytes(msgspec.json.encode(chosen))


def read_held_out(config: DataConfig, *, training: Dataset, run_dir: Path) -> HeldOutRows | None:
    """What `prepare_held_out` left in a run directory; None where the recipe asks for none.

    Raises DataError when it was made of something else.
    """
    if config.held_out is None:
        return None
    folder = run_dir / FOLDER
    dataset = read_prepared(folder).dataset
    examples = _read_chosen(folder, (dataset.facts.hash, training.facts.hash, config.held_out.examples))
    if examples is None:
        raise DataError(f"{folder / CHOSEN} does not belong to this run's data; delete {folder} and start again")
    length = config.packing.row_length
    bins = pack_best_fit(dataset.lengths[examples], length)
    return HeldOutRows(dataset, [examples[members].tolist() for members in bins], length)


def _read_chosen(folder: Path, made_of: tuple[str, str, int]) -> np.ndarray | None:
    try:
        chosen = msgspec.json.decode((folder / CHOSEN).read_bytes(), type=_Chosen)
    except (OSError, msgspec.MsgspecError):
        return None
    return np.array(chosen.examples, np.int64) if chosen.made_of == made_of else None


def _choose(dataset: Dataset, training: Dataset, *, most: int, watch: Watch) -> np.ndarray:
    """Examples that train something and that training has not, at most so many of a language, evenly spread."""
    trained_N = find_shared(dataset, training)
    free_N = ~trained_N & (np.asarray(dataset.targets) > 0)
    language_N = np.asarray(dataset.language)
    if trained_N.any():
        counts = np.bincount(language_N[trained_N], minlength=len(dataset.facts.languages))
        named = ", ".join(f"{dataset.facts.languages[i]} {counts[i]}" for i in np.flatnonzero(counts)[:12].tolist())
        watch.notice(
            f"data.held_out: {int(trained_N.sum())} of {len(dataset)} examples are trained on too, token for token, "
            f"and left out ({named})"
        )
    if not free_N.any():
        raise DataError(
            "every example of data.held_out is trained on too: its loss would say nothing of new rows; give sources "
            "that data.sources does not have"
        )
    chosen = []
    for language in np.unique(language_N[free_N]).tolist():
        of_it = np.flatnonzero(free_N & (language_N == language))
        chosen.append(of_it[np.arange(min(most, len(of_it))) * len(of_it) // min(most, len(of_it))])
    return np.concatenate(chosen)


def find_shared(dataset: Dataset, other: Dataset) -> np.ndarray:
    """For each example whether the other dataset has one of the same ids; only those of a length of ours are read."""
    length_N, lengths = np.asarray(dataset.positions), np.unique(dataset.positions)
    candidates = np.flatnonzero(np.isin(other.positions, lengths))
    ours = _by_content(dataset, np.arange(len(length_N)))
    shared_N = np.zeros(len(length_N), bool)
    for start in range(0, len(candidates), CHUNK):
        for key in _by_content(other, candidates[start : start + CHUNK]):
            shared_N[ours.get(key, [])] = True
    return shared_N


def _by_content(dataset: Dataset, examples: np.ndarray) -> dict[bytes, list[int]]:
    """The examples by the bytes of their ids."""
    found: dict[bytes, list[int]] = {}
    tokens = dataset.read(examples)
    for place, example in enumerate(examples.tolist()):
        ids = tokens.ids[tokens.offsets[place] : tokens.offsets[place + 1]]
        found.setdefault(np.asarray(ids, np.int32).tobytes(), []).append(example)
    return found
