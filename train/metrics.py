"""Metrics of steps: device sums to means, once; `metrics.jsonl` and what trackers are told."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from data.batch import Batch
from model.moe import RouterSums
from train.device_memory import MemoryUse, read_memory
from train.digests import digest_share, join_digests
from train.group_sums import RunningSums, scalars_of
from train.loss import GroupSums, load_balance_loss, router_z_loss
from train.step import NON_FINITE, SPIKE, StepMetrics
from train.timing import Split
from train.trackers import Tracker

VERDICTS = {NON_FINITE: "non_finite", SPIKE: "spike"}
"""Why a step was skipped, as it is written."""


NO_SOURCES = np.zeros(0, np.int64)
NO_SPLIT = Split()
NO_FACTS: dict[str, Any] = {}


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
    tokens_S: np.ndarray = NO_SOURCES
    """Tokens by source id; empty where sources are not counted."""
    flops: float = 0.0
    """What the model needs for its real tokens (`train.mfu`); 0: not counted."""


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
    split: Split = NO_SPLIT
    """Where `seconds` went."""
    compiled: bool = False
    """Whether a program was made in its seconds, so that they say nothing of speed."""
    flops: float = 0.0
    mfu: float | None = None
    """None: the peak of the devices is not known."""
    memory: MemoryUse | None = None
    """Of the fullest device of this process; of some steps only."""
    skipped: str | None = None
    """Why its update was not made, a name of `VERDICTS`; None: it was."""


def describe_batch(
    batch: Batch, *, first_row: int, num_languages: int, num_sources: int = 0, flops: float = 0.0
) -> BatchFacts:
    """Counts and digest of a batch whose first row is this global row."""
    is_real_BT = batch.segments_BT > 0
    tokens_S = np.bincount(batch.source_BT[is_real_BT], minlength=num_sources) if num_sources else NO_SOURCES
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
        tokens_S=tokens_S,
        flops=flops,
    )


SharesAfter = Callable[[int], dict[str, dict[str, float]]]
"""Shares by language and by source of the first so many rows of a run."""


class MetricsWriter:
    """Appends records to `metrics.jsonl`, a line at a time, and tells trackers.

    Loss, tokens and gradients by language and source are summed over `language_every` steps and written as sums; a
    reader divides. Beside them stands the share that each has had so far, in the mixture's unit. With `writes=False`
    (of all processes but one) nothing is written anywhere: records are made and checked alike in every process.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        attempt: int,
        languages: Sequence[str],
        language_every: int,
        sources: Sequence[str] = (),
        trackers: Sequence[Tracker] = (),
        shares_after: SharesAfter | None = None,
        peak_flops_per_s: float | None = None,
        writes: bool = True,
    ):
        path = run_dir / "metrics.jsonl"
        if writes:
            _remove_cut_line(path)
        self._file: TextIO | None = path.open("a", encoding="utf-8") if writes else None
        self._trackers = trackers
        self._attempt = attempt
        self._by_language, self._by_source = RunningSums(languages), RunningSums(sources)
        self._every = language_every
        self._shares_after = shares_after
        self._peak_flops_per_s = peak_flops_per_s
        self._rows_served = 0
        self._first_step: int | None = None
        self._last_step = 0

    def close(self) -> None:
        """Writes what is left and closes everything."""
        try:
            self.write_languages()
            if self._file:
                self._file.close()
        finally:
            for tracker in self._trackers:
                tracker.close()

    def _track(self, step: int, scalars: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, scalars)

    def write_start(self, step: int, facts: dict[str, Any]) -> None:
        """Notes that a process begins (or resumes) after this step."""
        self._write({"kind": "start", "step": step, **facts})

    def write_event(
        self, kind: str, step: int, facts: dict[str, Any] = NO_FACTS, scalars: Mapping[str, float] = NO_FACTS
    ) -> None:
        """Notes something that happened at a step and is no step: a save, a look at held-out rows."""
        self._write({"kind": kind, "step": step, **facts})
        self._track(step, scalars)

    def write_step(
        self,
        step: int,
        metrics: StepMetrics,
        facts: BatchFacts,
        *,
        learning_rate: float,
        split: Split,
        compiled: bool = False,
    ) -> StepRecord:
        """Waits for a step's metrics and writes them; `split` is the time from the end of the step before to its own.

        The losses of a skipped step stand in its own record and in no sum by language.
        """
        metrics = jax.device_get(metrics)
        weight = float(metrics.sums.weight_R.sum())
        peak, is_due = self._peak_flops_per_s, step % self._every == 0
        memory = read_memory() if is_due else []
        record = StepRecord(
            step=step,
            loss=float(metrics.sums.loss_R.sum()) / weight,
            weight=weight,
            grad_norm=float(metrics.grad_norm),
            learning_rate=learning_rate,
            tokens=facts.tokens,
            padding=1 - facts.tokens / facts.positions,
            seconds=split.seconds,
            first_row=facts.first_row,
            rows=facts.rows,
            digest=facts.digest,
            router=_router_losses(metrics.sums.router),
            objective=None if metrics.sums.objective is None else float(metrics.sums.objective) / weight,
            split=split,
            compiled=compiled,
            flops=facts.flops,
            mfu=None if peak is None else facts.flops / (split.seconds * peak),
            memory=max(memory, key=lambda use: use.peak, default=None),
            skipped=VERDICTS.get(int(metrics.verdict)) if metrics.verdict is not None else None,
        )
        self._write_record(record)
        if memory:
            self._write_memory(step, memory)
        self._add_groups(step, metrics, facts, is_skipped=record.skipped is not None)
        return record

    def _write_record(self, record: StepRecord) -> None:
        speed = {
            "tokens_per_s": round(record.tokens / record.seconds, 1),
            "target_tokens_per_s": round(record.weight / record.seconds, 1),
            **({} if record.mfu is None else {"mfu": round(record.mfu, 5)}),
        }
        seconds = {"step_s": record.seconds, **record.split._asdict()}
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
                **speed,
                **({"model_flops": record.flops} if record.flops else {}),
                **{name: round(value, 6) for name, value in seconds.items()},
                **({"compiled": True} if record.compiled else {}),
                "rows": [record.first_row, record.first_row + record.rows],
                "digest": record.digest,
                **({"skipped": record.skipped} if record.skipped else {}),
            }
        )
        of_training = {name: getattr(record, name) for name in ("loss", "grad_norm", "learning_rate", "padding")}
        scalars = {f"train/{name}": value for name, value in (of_training | _beside_loss(record)).items()}
        self._track(record.step, scalars | {f"speed/{name}": value for name, value in (speed | seconds).items()})

    def _write_memory(self, step: int, memory: Sequence[MemoryUse]) -> None:
        self._write({"kind": "memory", "step": step, "devices": [use._asdict() for use in memory]})
        self._track(step, {f"memory_gib/{use.of}": use.in_use / 2**30 for use in memory})

    def _add_groups(self, step: int, metrics: StepMetrics, facts: BatchFacts, *, is_skipped: bool) -> None:
        sums = metrics.sums
        of_languages = GroupSums(sums.loss_R, sums.weight_R, sums.gradient_R)
        self._by_language.add(None if is_skipped else of_languages, facts.tokens_R)
        if sums.by_source is not None:
            self._by_source.add(None if is_skipped else sums.by_source, facts.tokens_S)
        self._first_step = step if self._first_step is None else self._first_step
        self._last_step = step
        self._rows_served = facts.first_row + facts.rows
        if step % self._every == 0:
            self.write_languages()

    def write_languages(self) -> None:
        """Writes the sums by language and source of the steps since the last such record, if there are any.

        To be called with every save, so that no sum spans a step that a resumed run may start from.
        """
        if self._first_step is None:
            return
        shares = self._shares_after(self._rows_served) if self._shares_after and self._file else {}
        by_language, by_source = self._by_language.fields(), self._by_source.fields()
        self._write(
            {
                "kind": "languages",
                "step": self._last_step,
                "first_step": self._first_step,
                **by_language,
                **({"by_source": by_source} if by_source["tokens"] else {}),
                **({"share_so_far": shares} if shares else {}),
            }
        )
        so_far = {f"share_so_far/{kind}/{name}": share for kind, of in shares.items() for name, share in of.items()}
        scalars = scalars_of(by_language, "language") | scalars_of(by_source, "source") | so_far
        self._track(self._last_step, scalars)
        self._by_language.clear()
        self._by_source.clear()
        self._first_step = None

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
    # Of arrays that are on the host by now: an array of a device would wait for the next step there.
    losses = {"load_balance_loss": load_balance_loss, "router_z_loss": router_z_loss}
    return {name: float(loss(sums)) for name, loss in losses.items()}


def _remove_cut_line(path: Path) -> None:
    """Ends the file after its last whole line, lest the next record be written onto the rest of a cut one."""
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)
