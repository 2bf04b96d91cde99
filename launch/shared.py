"""What the processes of a run must have in common, checked before they train: folders, recipe, plan, versions."""

import hashlib
import json
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from rich.console import Console

from launch.config import Recipe, RecipeError
from launch.environment import library_versions
from launch.preparing import store_of
from launch.recipe import flatten
from train.hosts import tell_all, wait_for_all
from train.job import TrainJob

PER_HOST = ("data.root", "data.workers", "data.prefetch")
"""Keys of a recipe that may differ between processes: they change speed or place."""
PATIENCE_S = 10.0
"""How long a file written by one process may take to be seen by others: network file systems keep listings a while."""


def print_waiting(what: str) -> None:
    """Says, in a process that has long waited, what process 0 does meanwhile."""
    Console(stderr=True).print(f"process {jax.process_index()} waits while process 0 {what}", highlight=False)


def check_shared(recipe: Recipe, *, patience_s: float = PATIENCE_S) -> None:
    """Raises RecipeError in a process that does not see process 0's run directory and store.

    Process 0 leaves a file of a random name in each, which the others look for.
    """
    if jax.process_count() == 1:
        return
    folders = {"run.dir": Path(recipe.run.dir), "data.store": store_of(recipe)}
    name = f".seen-by-all-{secrets.token_hex(8)}"

    def leave_marks() -> dict[str, str]:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return {"name": name, "host": socket.gethostname(), **{key: str(it.resolve()) for key, it in folders.items()}}

    told = tell_all("marks", leave_marks)
    find_marks(folders, told, patience_s=patience_s)
    wait_for_all("marks-seen")
    for folder in folders.values():
        (folder / told["name"]).unlink(missing_ok=True)


def find_marks(folders: Mapping[str, Path], told: Mapping[str, str], *, patience_s: float) -> None:
    """Raises RecipeError for the first folder in which the file that was told of does not appear in time."""
    until = time.monotonic() + patience_s
    for key, folder in folders.items():
        while not (folder / told["name"]).exists():
            if time.monotonic() > until:
                raise RecipeError(
                    f"{key}: process {jax.process_index()} on {socket.gethostname()} sees another {folder.resolve()} "
                    f"than process 0 on {told['host']} does ({told[key]}); all processes need the same folder: give "
                    f"{key} a path on a file system that all hosts share"
                )
            time.sleep(0.1)


def check_alike(job: TrainJob) -> None:
    """Raises RecipeError where a process would train something else than process 0 does."""
    if jax.process_count() == 1:
        return
    mine = describe_job(job)
    theirs = tell_all("job", lambda: mine)
    differing = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {theirs.get(name)} in process 0, {mine.get(name)} here" for name in differing[:5])
        raise RecipeError(
            f"process {jax.process_index()} on {socket.gethostname()} would not train the same: {shown}. Start every "
            "process with the same recipe, overrides and packages"
        )


def describe_job(job: TrainJob) -> dict[str, str]:
    """What must be the same in every process, each as a line for an error."""
    recipe = {key: repr(value) for key, value in flatten(job.meta["recipe"]).items() if key not in PER_HOST}
    sizes = hashlib.sha256(json.dumps(list(job.most_trained_S)).encode()).hexdigest()[:12]
    return {
        "plan": job.plan_hash[:12],
        "positions with logits": sizes,
        **recipe,
        **library_versions(),
    }
