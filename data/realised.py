"""The share of each language and source in what has been served so far, counted from the plan."""

import numpy as np

from data.cells import amounts
from data.dataset import Dataset
from data.plan import Plan


class RealisedShares:
    """Shares after so many rows, in the mixture's unit; asked for rising numbers of rows, each row is counted once."""

    def __init__(self, dataset: Dataset, plan: Plan):
        self._dataset, self._plan = dataset, plan
        self._amount_N = amounts(dataset)[plan.summary["unit"]]
        self._counted = 0
        self._languages_R = np.zeros(len(dataset.facts.languages))
        self._sources_R = np.zeros(len(dataset.facts.sources))

    def after(self, rows: int) -> dict[str, dict[str, float]]:
        """`{"languages": {tag: share}, "sources": {name: share}}` of the plan's first `rows` rows."""
        if rows < self._counted:
            self._counted, self._languages_R[:], self._sources_R[:] = 0, 0, 0
        first, last = (int(self._plan.row_offsets[row]) for row in (self._counted, rows))
        examples = np.asarray(self._plan.row_examples[first:last])
        amounts = np.asarray(self._amount_N[examples], np.float64)
        for ids_N, totals_R in ((self._dataset.language, self._languages_R), (self._dataset.source, self._sources_R)):
            totals_R += np.bincount(ids_N[examples], weights=amounts, minlength=len(totals_R))
        self._counted = rows
        facts = self._dataset.facts
        return {
            "languages": _shares(facts.languages, self._languages_R),
            "sources": _shares(facts.sources, self._sources_R),
        }


def _shares(names: tuple[str, ...], totals_R: np.ndarray) -> dict[str, float]:
    whole = totals_R.sum()
    return {name: round(float(total / whole), 6) for name, total in zip(names, totals_R, strict=True) if total}
