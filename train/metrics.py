"""Metrics of steps: device sums to means, once; `metrics.jsonl` and TensorBoard."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter

from data.batch import Batch
from model.moe import RouterSums
from train.digests import digest_share, join_digests
from train.loss import load_balance_loss, router_z_loss
from train.step import NON_FINITE, SPIKE, StepMetrics

VERDICTS = {NON_FINITE: "non_finite", SPIKE: "spike"}
"""Why a step was skipped, as it is written."""


class BatchFacts(NamedTuple):
    """What a process knows of a global batch; of its share of it, until `train.hosts.read_notes` has joined them."""

    first_row: int
    rows: int
    tokens: int
    """Positions that are not padding."""
    positions: int
    tokens_R: np.ndarray
    """Tokens by language id; padding's is 0."""
    digest: str
    """crc32 of tokens, targets and segments, 8 hex digits: equal digests mean the same rows were seen."""
    crcs: tuple[int, int, int] = (0, 0, 0)
    """crc32 of each of the three, from which the digest of a batch in several shares is joined."""


class StepRecord(NamedTuple):
    """One finished step, as written."""

    step: int
    loss: float
    weight: float
    grad_norm: float
    learning_rate: float
    tokens: int
    padding: float
    seconds: float
    first_row: int
    rows: int
    digest: str
    router: dict[str, float] | None = None
    """The router's losses by name, not yet weighted; None without experts. `loss` does not hold them."""
    objective: float | None = None
    """Mean over the weight of what is minimised of the tokens, with label smoothing and z-loss; None: `loss` is."""
    skipped: str | None = None
    """Why its update was not made, a name of `VERDICTS`; None: it was."""


def describe_batch(batch: Batch, *, first_row: int, num_languages: int) -> BatchFacts:
    """Counts and digest of a batch whose first row is this global row."""
    is_real_BT = batch.segments_BT > 0
    tokens_R = np.bincount(batch.language_BT[is_real_BT], minlength=num_languages)
    crcs = digest_share(batch)
    return BatchFacts(
        first_row=first_row,
        rows=batch.tokens_BT.shape[0],
        tokens=int(is_real_BT.sum()),
        positions=is_real_BT.size,
        tokens_R=tokens_R,
        digest=join_digests([crcs], share_bytes=batch.tokens_BT.nbytes),
        crcs=crcs,
    )


SharesAfter = Callable[[int], dict[str, dict[str, float]]]
"""Shares by language and by source of the first so many rows of a run."""


class MetricsWriter:
    """Appends records to `metrics.jsonl`, a line at a time, and to TensorBoard.

    Loss and tokens by language are summed over `language_every` steps and written as sums; a reader divides. Beside
    them stands the share that each language and source has had so far, in the mixture's unit. With `writes=False` (of
    all processes but one) nothing is written anywhere: records are made and checked alike in every process.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        attempt: int,
        languages: Sequence[str],
        language_every: int,
        tensorboard: bool,
        shares_after: SharesAfter | None = None,
        writes: bool = True,
    ):
        path = run_dir / "metrics.jsonl"
        if writes:
            _remove_cut_line(path)
        self._file: TextIO | None = path.open("a", encoding="utf-8") if writes else None
        self._board = SummaryWriter(str(run_dir / "tensorboard"), flush_secs=10) if tensorboard and writes else None
        self._attempt = attempt
        self._languages = languages
        self._every = language_every
        self._shares_after = shares_after
        self._rows_served = 0
        self._clear()

    def close(self) -> None:
        """Writes what is left and closes both files."""
        try:
            self.write_languages()
            if self._file:
                self._file.close()
        finally:
            if self._board and self._is_board_alive():
                self._board.close()

    def _add_scalar(self, name: str, value: float, step: int) -> None:
        # Its writer is a thread with a bounded queue: once that has died (a full disk), an add would wait forever.
        if not self._is_board_alive():
            raise OSError(
                "TensorBoard's writer has stopped, most likely because the disk is full; make room and run the same "
                "command again, or set train.tensorboard=false"
            )
        assert self._board is not None
        self._board.add_scalar(name, value, step)

    def _is_board_alive(self) -> bool:
        writer: Any = self._board
        return writer.file_writer.event_writer._worker.is_alive()

    def write_start(self, step: int, facts: dict[str, Any]) -> None:
        """Notes that a process begins (or resumes) after this step."""
        self._write({"kind": "start", "step": step, **facts})

    def write_step(
        self, step: int, metrics: StepMetrics, facts: BatchFacts, *, learning_rate: float, seconds: float
    ) -> StepRecord:
        """Waits for a step's metrics and writes them; `seconds` is the wall time of its turn of the loop.

        The losses of a skipped step stand in its own record and in no sum by language.
        """
        metrics = jax.device_get(metrics)
        weight = float(metrics.sums.weight_R.sum())
        record = StepRecord(
            step=step,
            loss=float(metrics.sums.loss_R.sum()) / weight,
            weight=weight,
            grad_norm=float(metrics.grad_norm),
            learning_rate=learning_rate,
            tokens=facts.tokens,
            padding=1 - facts.tokens / facts.positions,
            seconds=seconds,
            first_row=facts.first_row,
            rows=facts.rows,
            digest=facts.digest,
            router=_router_losses(metrics.sums.router),
            objective=None if metrics.sums.objective is None else float(metrics.sums.objective) / weight,
            skipped=VERDICTS.get(int(metrics.verdict)) if metrics.verdict is not None else None,
        )
        self._write_record(record)
        self._add_languages(step, metrics, facts, is_skipped=record.skipped is not None)
        return record

    def write_event(self, kind: str, step: int, **facts: Any) -> None:
        """Notes something that has happened to the run by this step, such as a save."""
        self._write({"kind": kind, "step": step, **facts})

    def _write_record(self, record: StepRecord) -> None:
        self._write(
            {
                "kind": "step",
                "step": record.step,
                "loss": record.loss,
                "weight": record.weight,
                "grad_norm": record.grad_norm,
                **_beside_loss(record),
                "learning_rate": record.learning_rate,
                "tokens": record.tokens,
                "padding": round(record.padding, 6),
                "tokens_per_s": round(record.tokens / record.seconds, 1),
                "target_tokens_per_s": round(record.weight / record.seconds, 1),
                "rows": [record.first_row, record.first_row + record.rows],
                "digest": record.digest,
                **({"skipped": record.skipped} if record.skipped else {}),
            }
        )
        if self._board:
            for name in ("loss", "grad_norm", "learning_rate", "padding"):
                self._add_scalar(f"train/{name}", getattr(record, name), record.step)
            for name, value in _beside_loss(record).items():
                self._add_scalar(f"train/{name}", value, record.step)
            self._add_scalar("speed/tokens_per_s", record.tokens / record.seconds, record.step)

    def _clear(self) -> None:
        self._loss_R = np.zeros(len(self._languages))
        self._weight_R = np.zeros(len(self._languages))
        self._tokens_R = np.zeros(len(self._languages), np.int64)
        self._first_step: int | None = None
        self._last_step = 0

    def _add_languages(self, step: int, metrics: StepMetrics, facts: BatchFacts, *, is_skipped: bool) -> None:
        if not is_skipped:
            self._loss_R += metrics.sums.loss_R
            self._weight_R += metrics.sums.weight_R
        self._tokens_R += facts.tokens_R
        self._first_step = step if self._first_step is None else self._first_step
        self._last_step = step
        self._rows_served = facts.first_row + facts.rows
        if step % self._every == 0:
            self.write_languages()

    def write_languages(self) -> None:
        """Writes the sums by language of the steps since the last such record, if there are any.

        To be called with every save, so that no sum spans a step that a resumed run may start from.
        """
        if self._first_step is None:
            return
        seen = [i for i in range(1, len(self._languages)) if self._tokens_R[i]]
        shares = self._shares_after(self._rows_served) if self._shares_after and self._file else {}
        self._write(
            {
                "kind": "languages",
                "step": self._last_step,
                "first_step": self._first_step,
                "loss_sum": {self._languages[i]: round(float(self._loss_R[i]), 4) for i in seen},
                "weight": {self._languages[i]: float(self._weight_R[i]) for i in seen},
                "tokens": {self._languages[i]: int(self._tokens_R[i]) for i in seen},
                **({"share_so_far": shares} if shares else {}),
            }
        )
        if self._board:
            for i in seen:
                if self._weight_R[i]:
                    loss = self._loss_R[i] / self._weight_R[i]
                    self._add_scalar(f"loss_by_language/{self._languages[i]}", loss, self._last_step)
            for kind, by_name in shares.items():
                for name, share in by_name.items():
                    self._add_scalar(f"share_so_far/{kind}/{name}", share, self._last_step)
        self._clear()

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        record = {"kind": record["kind"], "attempt": self._attempt, "time": round(time.time(), 3), **record}
        record = {key: _or_none(value) for key, value in record.items()}
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every record of `metrics.jsonl` in order; a last line cut short by a kill is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _beside_loss(record: StepRecord) -> dict[str, float]:
    """What is minimised beside the loss, by name."""
    objective = {} if record.objective is None else {"objective": record.objective}
    return objective | (record.router or {})


def _router_losses(sums: RouterSums | None) -> dict[str, float] | None:
    if sums is None:
        return None
    sums = RouterSums(*map(jnp.asarray, sums))
    losses = {"load_balance_loss": load_balance_loss, "router_z_loss": router_z_loss}
    return {name: float(loss(sums)) for name, loss in losses.items()}


def _remove_cut_line(path: Path) -> None:
    """Ends the file after its last whole line, lest the next record be written onto the rest of a cut one."""
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)
