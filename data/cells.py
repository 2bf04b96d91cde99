"""What a plan needs to know of a dataset, and its examples counted by source and language."""

from typing import Protocol, runtime_checkable

import numpy as np

from data.dataset import DatasetFacts
from data.mixture import Cell


@runtime_checkable
class Examples(Protocol):
    """N examples as a plan sees them: sizes and labels, no tokens. `Dataset` is one."""

    def __len__(self) -> int: ...
    @property
    def lengths(self) -> np.ndarray:
        """Positions each example fills."""
        ...

    @property
    def target_tokens(self) -> np.ndarray:
        """Positions of each example whose target is trained on."""
        ...

    @property
    def language(self) -> np.ndarray:
        """Ids into `facts.languages`."""
        ...

    @property
    def source(self) -> np.ndarray:
        """Ids into `facts.sources`."""
        ...

    @property
    def content_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each example's content."""
        ...

    @property
    def characters(self) -> np.ndarray:
        """Characters of each example's content."""
        ...

    @property
    def facts(self) -> DatasetFacts:
        """Names and counts."""
        ...


def tabulate(dataset: Examples) -> tuple[list[Cell], np.ndarray]:
    """The dataset's cells in a fixed order, and for each example the index of its cell."""
    key_N = dataset.source.astype(np.int64) * len(dataset.facts.languages) + dataset.language
    keys, cell_N = np.unique(key_N, return_inverse=True)
    counted = [np.bincount(cell_N, weights=amount_N) for amount_N in amounts(dataset).values()]
    cells = []
    for index, key in enumerate(keys.tolist()):
        source, language = divmod(key, len(dataset.facts.languages))
        sums = (int(sums_C[index]) for sums_C in counted)
        cells.append(Cell(dataset.facts.sources[source], dataset.facts.languages[language], *sums))
    return cells, cell_N


def amounts(dataset: Examples) -> dict[str, np.ndarray]:
    """What each example counts, by unit, in the order of `Cell`."""
    return {
        "examples": np.ones(len(dataset)),
        "tokens": np.asarray(dataset.lengths),
        "target_tokens": np.asarray(dataset.target_tokens),
        "bytes": np.asarray(dataset.content_bytes),
        "characters": np.asarray(dataset.characters),
    }
