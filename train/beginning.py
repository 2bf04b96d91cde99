"""Where a run begins: its newest whole checkpoint, found by process 0 and gone by in all."""

import dataclasses
from pathlib import Path
from typing import Any

from model.checkpoint import CheckpointError
from model.checksums import has_checksums
from train.checkpoint import Damaged, find_whole, set_aside_incomplete
from train.hosts import tell_all
from train.metrics import read_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """What process 0 finds in the run directory."""

    newest: int | None
    """Step of the checkpoint to go on from; None: a fresh run."""
    attempt: int
    set_aside: tuple[str, ...] = ()
    """Half-written checkpoints, where they are now."""
    damaged: tuple[Damaged, ...] = ()
    """Checkpoints that were whole once, newest first."""
    is_unverified: bool = False
    """Whether the newest has no checksums to be verified by."""


def find_beginning(run_dir: Path) -> Beginning:
    """Sets aside what is half written or damaged and looks for the newest whole checkpoint; process 0 does, for all.

    What one process sees of a shared file system may be older than what another does: each looking for itself might
    restore another step. Nothing may be saving there meanwhile.

    Raises CheckpointError when checkpoints were saved and none is left: starting anew would hide that.
    """
    found = tell_all("beginning", lambda: dataclasses.asdict(_look(run_dir)))
    damaged = tuple(Damaged(*pair) for pair in found["damaged"])
    return Beginning(**{**found, "set_aside": tuple(found["set_aside"]), "damaged": damaged})


def _look(run_dir: Path) -> Beginning:
    set_aside = tuple(str(path) for path in set_aside_incomplete(run_dir))
    newest, damaged = find_whole(run_dir)
    records = read_metrics(run_dir)
    if newest is None:
        _check_nothing_lost(run_dir, damaged, records)
    return Beginning(
        newest=newest,
        attempt=1 + sum(record["kind"] == "start" for record in records),
        set_aside=set_aside,
        damaged=tuple(damaged),
        is_unverified=newest is not None and not has_checksums(run_dir / "checkpoints" / str(newest)),
    )


def _check_nothing_lost(run_dir: Path, damaged: list[Damaged], records: list[dict[str, Any]]) -> None:
    """Raises CheckpointError in a run without a whole checkpoint that once had one."""
    saved = max((record["step"] for record in records if record["kind"] == "saved"), default=None)
    lies_damaged = (run_dir / "damaged").is_dir() and any((run_dir / "damaged").iterdir())
    if saved is None and not lies_damaged:
        return
    shown = "; ".join(f"{path}: {what}" for path, what in damaged)
    raise CheckpointError(
        f"{run_dir} has no whole checkpoint left{f' ({shown})' if shown else ''}"
        f"{f', though step {saved} was saved' if saved is not None else ''}. Put one back into "
        f"{run_dir / 'checkpoints'}, or start anew in another run.dir"
    )
