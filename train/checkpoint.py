"""Full checkpoints: save the items asynchronously, keep what the policy says, restore the newest."""

import shutil
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from model.checkpoint import (
    FORMAT,
    CheckpointError,
    check_weights,
    checkpoint_context,
    list_steps,
    load_items,
    newest_step,
)
from train.config import CheckpointConfig
from train.paths import overlay, restrict
from train.state import TrainState


class Saver:
    """Writes checkpoints of one run. A context manager: leaving it waits for the last save.

    `meta` is saved with every checkpoint; `data` is the one integer of data state, the next global row, and the hash
    of the plan it indexes.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, *, meta: dict[str, Any], plan_hash: str):
        self._folder = run_dir.resolve() / "checkpoints"
        self._config = config
        self._meta = {"format": FORMAT, **meta}
        self._plan_hash = plan_hash
        policies = ocp.training.preservation_policies
        # Any: Orbax's policies do not match its own protocols in its annotations.
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        if config.keep_initial:
            keep.append(policies.CustomSteps([0]))
        keep_any: Any = policies.AnyPreservationPolicy(keep)
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        with checkpoint_context() as context:
            self._checkpointer = ocp.training.Checkpointer(
                str(self._folder),
                context=context,
                save_decision_policy=always,
                preservation_policy=keep_any,
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and jax.process_count() > 1:
            return  # the others do not come to what closing waits for: they are to be told first
        try:
            self._checkpointer.close()
        except Exception as failure:
            if error is None:
                raise self._translate(failure) from failure

    def is_due(self, step: int, *, last: int) -> bool:
        """True if a state of this step should be saved by interval, as the first or as the last one."""
        return step == last or (step % self._config.save_every == 0 and (step > 0 or self._config.keep_initial))

    def save(self, state: TrainState, *, step: int, next_row: int) -> None:
        """Starts saving; returns once the state has been copied, so that it may be donated. Waits for a save before it.

        Raises CheckpointError when this or the previous save could not be written.
        """
        items = {
            "params": state.params,
            "opt_state": state.opt_state,
            "data": {"next_row": next_row, "plan_hash": self._plan_hash},
            "meta": {**self._meta, "step": step},
        }
        if state.ema is not None:  # whole, so that it is a model by itself
            items["ema"] = overlay(state.params, state.ema)
        try:
            response = self._checkpointer.save_checkpointables_async(step, items)
        except Exception as failure:
            raise self._translate(failure) from failure
        if response is None:
            raise CheckpointError(f"step {step} was not saved: {self._folder} already holds it or a later step")

    def _translate(self, failure: Exception) -> CheckpointError:
        free_mb = shutil.disk_usage(self._folder).free / 1e6
        return CheckpointError(
            f"a checkpoint could not be written to {self._folder} ({type(failure).__name__}: {str(failure)[:300]}); "
            f"{free_mb:.0f} MB are free there. Earlier checkpoints are intact: make room, then run the same command "
            "again to go on from the newest"
        )


def set_aside_incomplete(run_dir: Path) -> list[Path]:
    """Moves half-written checkpoints out of `checkpoints/` into `incomplete/`, and returns where they are now.

    A kill while saving leaves one; it is never read, and moving it makes room for its step to be saved again.
    """
    moved = []
    shutil.rmtree(run_dir / "incomplete", ignore_errors=True)  # those of earlier kills: only the last is worth a look
    for path in list_steps(run_dir)[1]:
        place = run_dir / "incomplete" / path.name
        place.parent.mkdir(exist_ok=True)
        moved.append(path.rename(place))
    return moved


def check_disk(run_dir: Path, state: TrainState, *, copies: int) -> None:
    """Raises CheckpointError before training when `copies` checkpoints of this state cannot fit beside the run."""
    size_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free_bytes = shutil.disk_usage(run_dir).free
    if free_bytes < copies * size_bytes:
        raise CheckpointError(
            f"{run_dir} has {free_bytes / 1e6:.0f} MB free; {copies} checkpoints of {size_bytes / 1e6:.0f} MB need "
            f"{copies * size_bytes / 1e6:.0f} MB. Make room, lower checkpoint.keep_last, or choose another run.dir"
        )


def restore_newest(run_dir: Path, abstract: TrainState, *, plan_hash: str | None) -> tuple[TrainState, int] | None:
    """The newest complete state and its next global row, or None when the run has saved nothing yet.

    `plan_hash` None: whatever plan it was trained on.

    Raises CheckpointError when it belongs to another model or another data plan, or cannot be read.
    """
    step = newest_step(run_dir)
    return None if step is None else restore_step(run_dir, step, abstract, plan_hash=plan_hash)


def restore_step(run_dir: Path, step: int, abstract: TrainState, *, plan_hash: str | None) -> tuple[TrainState, int]:
    """The complete state of a step and its next global row; raises what `restore_newest` does.

    Every process of a run calls it alike, with the same step.
    """
    path = run_dir / "checkpoints" / str(step)
    data = load_items(path, {"data": None})["data"]
    if plan_hash is not None and data["plan_hash"] != plan_hash:
        raise CheckpointError(
            f"{path} was trained on data plan {data['plan_hash'][:12]}, this recipe gives {plan_hash[:12]}: the next "
            "batches would not be the ones it owes. Restore the recipe and data, use another run.dir, or set "
            "data.changed_plan to accept"
        )
    targets = {"params": abstract.params, "opt_state": abstract.opt_state}
    if abstract.ema is not None:
        check_weights(path, "ema")
        targets["ema"] = abstract.params
    items = load_items(path, targets)
    count = jax.numpy.asarray(step, jax.numpy.int32)
    ema = None if abstract.ema is None else restrict(items["ema"], abstract.ema)
    return TrainState(count, items["params"], items["opt_state"], ema), data["next_row"]
