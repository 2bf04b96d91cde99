"""What a run is asked to do, decided before its first step, and where it stands when it ends."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model.parallel import AxisRules
from model.transformer import Params
from train.checkpoint import Damaged
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.guard import DescribeRow
from train.held_out import HeldOutJob
from train.metrics import SharesAfter
from train.optim import make_schedule
from train.step import StepSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a run needs besides its data: all static, all decided before the first step."""

    run_dir: Path
    spec: StepSpec
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    seed: int
    languages: tuple[str, ...]
    """Language table; entry 0 is padding's."""
    sources: tuple[str, ...] = ()
    """Source table, likewise; empty: nothing is told apart by source."""
    plan_hash: str
    most_trained_S: Sequence[int]
    """K of each step of the run: for how many positions of a row its batch needs logits. From `head_positions`."""
    meta: dict[str, Any]
    """Saved with every checkpoint: model config, resolved recipe, hashes, tables, versions."""
    accepts_changed_plan: bool = False
    """Whether a run goes on at the row it has come to where the plan is another one by now."""
    shares_after: SharesAfter | None = None
    """Shares of languages and sources in the first so many rows of the run; logged beside the losses by language."""
    held_out: HeldOutJob | None = None
    """Rows whose loss is looked at while training; None: none."""
    describe_row: DescribeRow | None = None
    """The examples of a global row, for the record of a skipped step; None: they are left out."""
    load_params: Callable[[AxisRules], Params] | None = None
    """Float32 parameters to start from, on the mesh in use; None: random ones. Not asked for on resume."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; epochs have become steps by now."""
        assert self.train.steps is not None, "launch.train.resolve_length gives a job its steps"
        return self.train.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the run stands when the loop returns."""

    step: int
    finished: bool
    """False: told to stop by a signal; the state of `step` is saved."""
    resumed_from: int | None
    attempt: int
    set_aside: tuple[Path, ...] = ()
    """Half-written checkpoints that were moved out of the way."""
    damaged: tuple[Damaged, ...] = ()
    """Checkpoints that are not as they were written any more, and were moved too."""
    is_unverified: bool = False
    """Whether the checkpoint it goes on from had no checksums to be verified by."""


def list_rates(job: TrainJob) -> np.ndarray:
    """The learning rate of each step, made before the first: one made beside a step would wait for the devices."""
    schedule = make_schedule(job.optim, job.steps)
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(jax.vmap(lambda step: jax.numpy.asarray(schedule(step)))(jax.numpy.arange(job.steps)))


def head_positions(trained_R: np.ndarray, *, batch_rows: int, row_length: int, multiple: int = 1) -> list[int]:
    """K of each step: the largest count of trained positions in any row of its batch, from a few sizes.

    The sizes are T / 8, T / 4, 3 T / 8, T / 2, 3 T / 4 and T, so a run compiles a handful of programs at most. Every
    host knows the whole plan, so all of them choose alike. They are rounded up to a `multiple`, which divides T, where
    positions are sharded. Rows that train (3 4 2 16) of 16, two a batch: K = (4, 16).
    """
    eighths = (max(1, row_length * eighths // 8) for eighths in (1, 2, 3, 4, 6, 8))
    sizes = np.unique([-(-size // multiple) * multiple for size in eighths])
    most_S = trained_R.reshape(-1, batch_rows).max(axis=1)
    return [int(size) for size in sizes[np.searchsorted(sizes, most_S)]]
