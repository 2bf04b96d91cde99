"""A model on disk: find a checkpoint, read its `meta`, load its `params` onto any mesh.

A checkpoint is a directory `RUN/checkpoints/STEP/` of separable items written by Orbax: `params`, `opt_state`,
`data` and `meta`; and `ema`, which is like `params`, where the run keeps an average of its parameters. This module
reads those that make a model; `train.checkpoint` writes all.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import msgspec
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from model.checksums import find_damage
from model.config import ModelConfig
from model.transformer import Params

FORMAT = 2
Weights = Literal["params", "ema"]
"""Items that are a model's parameters: the last ones, or their average over steps (`train.ema_decay`)."""
_COMMITTED = "commit_success.txt"


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, damaged, or of another model. The message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPath:
    """A complete checkpoint: where it is, which run it belongs to, which step it holds."""

    run_dir: Path
    step: int
    path: Path


def checkpoint_context() -> ocp.Context:
    """The Orbax context for this format: `meta` and `data` are JSON files, everything else arrays."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def is_complete(step_dir: Path) -> bool:
    """True if the save of this step directory was committed, not cut short."""
    return (step_dir / _COMMITTED).is_file() and all(
        (step_dir / item / _COMMITTED).is_file() for item in ("params", "meta")
    )


def list_steps(run_dir: Path) -> tuple[list[int], list[Path]]:
    """Steps of the complete checkpoints in ascending order, and the paths of incomplete ones."""
    complete, incomplete = [], []
    folder = run_dir / "checkpoints"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.isdigit() and is_complete(path):
            complete.append(int(path.name))
        elif path.is_dir():
            incomplete.append(path)
    return sorted(complete), incomplete


def newest_step(run_dir: Path) -> int | None:
    """The newest complete step of a run, or None."""
    steps, _ = list_steps(run_dir)
    return steps[-1] if steps else None


def find_checkpoint(path: str | Path) -> CheckpointPath:
    """The complete checkpoint at a run directory (its newest step) or at `RUN/checkpoints/STEP`.

    Raises CheckpointError when there is none there, or when it was left half written.
    """
    path = Path(path)
    if path.name.isdigit() and path.parent.name == "checkpoints" and path.is_dir():
        if not is_complete(path):
            raise CheckpointError(
                f"{path} is half written (its save never finished); use one of {_others(path.parent.parent)}"
            )
        return CheckpointPath(run_dir=path.parent.parent, step=int(path.name), path=path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist; give a run directory or RUN/checkpoints/STEP "
            f"(known here: {_others(path.parent.parent)})"
        )
    steps, incomplete = list_steps(path)
    if not steps:
        found = (
            f"only half-written ones: {[p.name for p in incomplete]}"
            if incomplete
            else "no checkpoints/ with a finished step"
        )
        raise CheckpointError(f"{path} holds no complete checkpoint ({found}); train first, or give another directory")
    return CheckpointPath(run_dir=path, step=steps[-1], path=path / "checkpoints" / str(steps[-1]))


def read_meta(checkpoint: CheckpointPath) -> dict[str, Any]:
    """The checkpoint's `meta`: model config, resolved recipe, tokenizer and template hash, language table, step.

    Raises CheckpointError when it cannot be read or was written in a format this version does not know.
    """
    _check_files(checkpoint.path, "meta")
    meta = load_items(checkpoint.path, {"meta": None})["meta"]
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint.path} has checkpoint format {meta.get('format')!r}; this version reads {FORMAT}. "
            "Use the polytune version that wrote it"
        )
    return meta


def decode_model(meta: dict[str, Any], checkpoint: CheckpointPath) -> ModelConfig:
    """The model config in a `meta`; fields it lacks, as one of an earlier version may, have their defaults.

    A field of `ModelConfig` that was added later changes nothing by default. Raises CheckpointError for one that this
    version does not know: what it changed would be left out.
    """
    try:
        return msgspec.convert(meta["model"], ModelConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{checkpoint.path} holds a model that this version cannot compute ({error}); use the version of "
            "polytune that wrote it"
        ) from None


def load_params(checkpoint: CheckpointPath, abstract_params: Params, *, weights: Weights = "params") -> Params:
    """The parameters, placed as `abstract_params` says: its mesh need not be the one they were trained on.

    Raises CheckpointError naming the first file that is not as it was written, or the first parameter whose shape
    differs from what the model config asks for, and what `check_weights` does.
    """
    check_weights(checkpoint.path, weights)
    _check_files(checkpoint.path, weights)
    return load_items(checkpoint.path, {weights: abstract_params})[weights]


def check_weights(step_dir: Path, weights: Weights) -> None:
    """Raises CheckpointError when a complete checkpoint was saved without an average of its parameters."""
    if weights == "ema" and not (step_dir / weights).is_dir():
        raise CheckpointError(
            f"{step_dir} holds no average of parameters: its run had no train.ema_decay. Use its last parameters "
            "(--weights params), or train with train.ema_decay, e.g. 0.999, in another run.dir"
        )


def load_items(step_dir: Path, targets: dict[str, Any]) -> dict[str, Any]:
    """The named items of a complete checkpoint, restored onto their abstract targets (None: as stored)."""
    with checkpoint_context():
        for item, target in targets.items():
            if target is not None and item in _HOLDS:
                _check_shapes(step_dir, item, target)
        try:
            return ocp.load_checkpointables(
                str(step_dir.resolve()), {item: _place(target) for item, target in targets.items()}
            )
        except Exception as error:
            raise CheckpointError(
                f"{step_dir} could not be read ({type(error).__name__}: {str(error)[:300]}). Nothing was changed; "
                "if the file system is well, the checkpoint is damaged: use one of "
                f"{_others(step_dir.parent.parent, but=step_dir.name)}"
            ) from error


_ANOTHER_MODEL = ("another model", "this model config; use the model config")
_HOLDS = {
    "params": _ANOTHER_MODEL,
    "ema": _ANOTHER_MODEL,
    "opt_state": (
        "the state of another optimizer or of other trained parameters",
        "this recipe; use the optim and train.freeze",
    ),
}
"""Items of arrays, what one that does not fit is said to hold, and what is said of what was asked for."""


def find_unreadable(step_dir: Path) -> str | None:
    """What of a complete checkpoint cannot be read, as far as that is seen without reading its arrays; else None.

    For checkpoints without checksums.
    """
    try:
        with checkpoint_context():
            meta = ocp.load_checkpointables(str(step_dir.resolve()), {"meta": None})["meta"]
            if meta.get("plan_hash") is None and not (step_dir / "data").is_dir():
                return None  # an imported model, which has parameters only
            ocp.load_checkpointables(str(step_dir.resolve()), {"data": None})
            stored = ocp.checkpointables_metadata(str(step_dir.resolve())).metadata
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    missing = [item for item in ("params", "opt_state") if stored.get(item) is None]
    return f"no readable {missing[0]}" if missing else None


def _check_files(step_dir: Path, item: str) -> None:
    """Raises CheckpointError when a file of this item is damaged. One process looks for all."""
    if jax.process_index() == 0 and (damage := find_damage(step_dir, {item})):
        raise CheckpointError(
            f"{step_dir} is damaged: {damage}. Restore that file, or use one of "
            f"{_others(step_dir.parent.parent, but=step_dir.name)}"
        )


def _place(target: Any) -> Any:
    """The abstract arrays with shardings on the devices of the mesh in use; those without one are replicated."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec, memory = PartitionSpec(), None
        if isinstance(leaf.sharding, NamedSharding):
            spec, memory = leaf.sharding.spec, leaf.sharding.memory_kind
        sharding = NamedSharding(jax.sharding.get_mesh(), spec, memory_kind=memory)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, target)


def _check_shapes(step_dir: Path, item: str, target: Any) -> None:
    try:
        stored_tree = ocp.checkpointables_metadata(str(step_dir.resolve())).metadata[item]
        if stored_tree is None:  # what Orbax says of an item whose files it cannot read
            raise ValueError("its files are cut short or missing")
    except Exception as error:
        raise CheckpointError(
            f"{step_dir} cannot be read: no readable {item} ({type(error).__name__}: {str(error)[:300]}); it is "
            f"damaged: delete it and use one of {_others(step_dir.parent.parent, but=step_dir.name)}"
        ) from error
    stored = _shapes(stored_tree)
    wanted = _shapes(target)
    for name in sorted(wanted.keys() | stored.keys()):
        if wanted.get(name) != stored.get(name):
            raise CheckpointError(
                f"{step_dir} holds {_HOLDS[item][0]}: {item} {name} has shape {stored.get(name, 'none')} there, "
                f"{wanted.get(name, 'none')} in {_HOLDS[item][1]} the run was started with"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {_path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _path_name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def _others(run_dir: Path, *, but: str = "") -> list[int]:
    return [step for step in list_steps(run_dir)[0] if str(step) != but]
