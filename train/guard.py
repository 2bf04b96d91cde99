"""Skipped steps: which rows were to blame, written down, and how many in a row end the run."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import model.transformer as transformer
from data.batch import Batch
from train.config import TrainConfig
from train.hosts import Share, is_first
from train.metrics import VERDICTS, StepRecord
from train.step import NON_FINITE, StepSpec, split_rows, token_losses

FILE = "offending_rows.jsonl"
MOST_NAMED = 8
"""Rows of a skipped step that are named, with their examples."""

DescribeRow = Callable[[int], list[dict[str, Any]]]
"""The examples of a global row: where they come from, their language, how they begin."""


PlaceBatch = Callable[[Batch], Batch]
"""Puts this process's share of a batch on the mesh, as part of the global one."""


class SkippedStepsError(ValueError):
    """Steps could not be made, or too many in a row; the message names the last one, its rows and what to do."""


class Guard:
    """Looks at every finished step of a run. `judge` is called alike by all processes: they compute together."""

    def __init__(
        self, run_dir: Path, config: TrainConfig, *, spec: StepSpec, share: Share, describe_row: DescribeRow | None
    ):
        self._path = run_dir / FILE
        self._config = config
        self._spec = spec
        self._share = share
        self._describe_row = describe_row
        self._in_a_row = dict.fromkeys(VERDICTS.values(), 0)

    def judge(self, record: StepRecord, params: transformer.Params, batch: Batch, place: PlaceBatch) -> str | None:
        """What to tell of a skipped step, once its rows are written down; None of one that was made.

        `batch` is this process's share of it; `params` may be one update further than those it was computed with.
        Raises SkippedStepsError when the recipe says to stop.
        """
        if record.skipped is None:
            self._in_a_row = dict.fromkeys(self._in_a_row, 0)
            return None
        self._in_a_row[record.skipped] += 1
        losses_B = losses_by_row(self._spec, params, place(number_rows(batch, self._share)))
        offending = find_offending(losses_B)
        if is_first():
            self._write(record, losses_B, offending)
        what = (
            f"step {record.step} skipped ({record.skipped}): loss {record.loss:.4g}, gradient norm "
            f"{record.grad_norm:.4g}, on rows [{record.first_row}, {record.first_row + record.rows}); "
            f"{_say_rows(losses_B, offending, record.first_row)}"
        )
        self._stop_after(record.skipped, what)
        return what

    def _stop_after(self, why: str, what: str) -> None:
        advice = f"All of it is in {self._path}; an earlier state is in the newest checkpoint"
        is_non_finite = why == VERDICTS[NON_FINITE]
        if is_non_finite and self._config.non_finite.action == "stop":
            raise SkippedStepsError(f"{what}. {advice}; train.non_finite.action=skip would go on without the step")
        limits = self._config.non_finite if is_non_finite else self._config.spikes
        assert limits is not None, "there are no spikes where none are looked for"
        if self._in_a_row[why] >= limits.max_in_a_row:
            raise SkippedStepsError(
                f"{self._in_a_row[why]} steps in a row, the last: {what}. {advice}; it is not the rows then: lower "
                "optim.learning_rate or raise optim.warmup_steps"
            )

    def _write(self, record: StepRecord, losses_B: np.ndarray, offending: Sequence[int]) -> None:
        describe = self._describe_row or (lambda row: [])
        losses = [round(loss, 6) if np.isfinite(loss) else None for loss in losses_B.tolist()]
        line = {
            "step": record.step,
            "skipped": record.skipped,
            "rows": [record.first_row, record.first_row + record.rows],
            "loss_by_row": losses,
            "offending": [
                {"row": record.first_row + i, "loss": losses[i], "examples": describe(record.first_row + i)}
                for i in offending[:MOST_NAMED]
            ],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def find_offending(losses_B: np.ndarray) -> list[int]:
    """Rows whose loss is not finite; where all are, the rows with the highest losses first.

    (1, nan, 3, inf): rows 1 and 3. (1, 5, 3): rows 1, 2 and 0. A row that trains nothing (loss 0) is never one.
    """
    bad = np.flatnonzero(~np.isfinite(losses_B))
    return bad.tolist() if len(bad) else [int(i) for i in np.argsort(-losses_B, kind="stable") if losses_B[i] > 0]


def number_rows(batch: Batch, share: Share) -> Batch:
    """The batch with each row's number in the global batch in place of its languages."""
    rows, length = batch.tokens_BT.shape
    numbers_B = np.arange(share.index * rows, (share.index + 1) * rows, dtype=np.int32)
    return batch._replace(language_BT=np.repeat(numbers_B[:, None], length, axis=1))


def losses_by_row(spec: StepSpec, params: transformer.Params, numbered: Batch) -> np.ndarray:
    """Mean loss of each row of the global batch, by row number, computed anew; 0 for a row that trains nothing.

    A program of its own, forward only and for all positions that may be trained: for rare use.
    """
    losses_B, numbers_B = jax.device_get(jax.jit(functools.partial(_row_losses, spec))(params, numbered))
    found_B = np.zeros_like(losses_B)
    found_B[numbers_B] = losses_B
    return found_B


def _row_losses(
    spec: StepSpec, params: transformer.Params, numbered: Batch
) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
    def losses_of(part: Batch) -> tuple[Array, Array]:
        losses = token_losses(spec, params, part)
        total_B = jnp.sum(losses.tokens.loss_BK * losses.weight_BK, axis=1)
        weight_B = jnp.sum(losses.weight_BK, axis=1)
        mean_B = jnp.where(weight_B == 0, 0.0, total_B / weight_B)
        return jax.sharding.reshard((mean_B, part.language_BT[:, 0]), jax.P(None))

    if spec.microbatches == 1:
        return losses_of(numbered)
    parts = jax.tree.map(lambda x_BT: split_rows(x_BT, spec.microbatches), numbered)
    losses_MB, numbers_MB = jax.lax.map(losses_of, parts)
    return losses_MB.reshape(-1), numbers_MB.reshape(-1)


def _say_rows(losses_B: np.ndarray, offending: Sequence[int], first_row: int) -> str:
    if not np.isfinite(losses_B).all():
        shown = ", ".join(str(first_row + i) for i in offending[:MOST_NAMED])
        return f"the loss is not finite in {len(offending)} of them: {shown}"
    shown = ", ".join(f"{first_row + i} ({losses_B[i]:.3g})" for i in offending[:3])
    return f"each loss by itself is finite, the highest in {shown}"
