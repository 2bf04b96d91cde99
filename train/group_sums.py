"""What is summed by language and by source over some steps, and how it is written down: as sums, a reader divides."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.loss import GroupSums


class RunningSums:
    """Losses, weights, gradients and tokens by name, since it was cleared."""

    def __init__(self, names: Sequence[str]):
        self._names = names
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._loss_X = np.zeros(len(self._names))
        self._weight_X = np.zeros(len(self._names))
        self._gradient_X: np.ndarray | None = None
        self._tokens_X = np.zeros(len(self._names), np.int64)

    def add(self, sums: GroupSums | None, tokens_X: np.ndarray) -> None:
        """Adds those of a step: of its losses (None: it was skipped), and its real positions."""
        self._tokens_X += tokens_X
        if sums is None:
            return
        self._loss_X += sums.loss_X
        self._weight_X += sums.weight_X
        if sums.gradient_X is not None:
            self._gradient_X = np.asarray(sums.gradient_X) + (0.0 if self._gradient_X is None else self._gradient_X)

    def fields(self) -> dict[str, dict[str, Any]]:
        """The sums of every name that was seen, for a record; id 0 is padding's."""
        seen = [i for i in range(1, len(self._names)) if self._tokens_X[i]]
        found: dict[str, dict[str, Any]] = {
            "loss_sum": {self._names[i]: round(float(self._loss_X[i]), 4) for i in seen},
            "weight": {self._names[i]: float(self._weight_X[i]) for i in seen},
            "tokens": {self._names[i]: int(self._tokens_X[i]) for i in seen},
        }
        if self._gradient_X is not None:
            found["gradient"] = {self._names[i]: round(float(self._gradient_X[i]), 6) for i in seen}
        return found


def scalars_of(fields: dict[str, dict[str, Any]], what: str) -> dict[str, float]:
    """Mean loss and gradient share of each name, for trackers; `what` is language or source."""
    loss = {
        f"loss_by_{what}/{name}": fields["loss_sum"][name] / weight
        for name, weight in fields["weight"].items()
        if weight
    }
    gradient = fields.get("gradient", {})
    total = sum(gradient.values())
    return loss | {f"gradient_share/{what}/{name}": sum_ / total for name, sum_ in gradient.items() if total}
