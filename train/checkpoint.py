"""Full checkpoints on disk: what is whole is found and restored, what is not is set aside and said."""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax

from model.checkpoint import (
    CheckpointError,
    check_weights,
    find_unreadable,
    list_steps,
    load_items,
    newest_step,
)
from model.checksums import find_damage, has_checksums
from train.paths import restrict
from train.state import TrainState


def set_aside_incomplete(run_dir: Path) -> list[Path]:
    """Moves half-written checkpoints out of `checkpoints/` into `incomplete/`, and returns where they are now.

    A kill while saving leaves one; it is never read, and moving it makes room for its step to be saved again.
    """
    moved = []
    shutil.rmtree(run_dir / "incomplete", ignore_errors=True)  # those of earlier kills: only the last is worth a look
    for path in list_steps(run_dir)[1]:
        moved.append(_move_aside(path, run_dir / "incomplete"))
    return moved


class Damaged(NamedTuple):
    """A checkpoint that was not as it was written: where it is now, and what was wrong."""

    path: str
    what: str


def find_whole(run_dir: Path) -> tuple[int | None, list[Damaged]]:
    """The newest checkpoint whose every file is as it was written, and those newer ones that were not.

    These are moved to `damaged/` first. One without checksums, whose save was cut short just before them or that an
    earlier version wrote, passes if what describes it can be read: a damaged array of it is found by reading it.
    """
    damaged = []
    for step in reversed(list_steps(run_dir)[0]):
        path = run_dir / "checkpoints" / str(step)
        what = find_damage(path) if has_checksums(path) else find_unreadable(path)
        if what is None:
            return step, damaged
        damaged.append(Damaged(str(_move_aside(path, run_dir / "damaged")), what))
    return None, damaged


def _move_aside(path: Path, folder: Path) -> Path:
    """Moves a checkpoint into a folder beside `checkpoints/`, under a name that is free there."""
    folder.mkdir(exist_ok=True)
    names = (path.name, *(f"{path.name}-{count}" for count in range(2, 1000)))
    return path.rename(next(folder / name for name in names if not (folder / name).exists()))


def check_disk(run_dir: Path, state: TrainState, *, copies: int) -> None:
    """Raises CheckpointError before training when `copies` checkpoints of this state cannot fit beside the run."""
    saved = state if state.ema is None else state._replace(ema=state.params)  # an average is saved whole
    size_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))
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
