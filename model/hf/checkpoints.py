"""A checkpoint that holds a model and nothing of training: what `polytune import` writes."""

from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from model.checkpoint import FORMAT, checkpoint_context
from model.transformer import Params


def write_model(run_dir: Path, params: Params, meta: dict[str, Any]) -> None:
    """Writes `run_dir/checkpoints/0` with these parameters and this meta, and waits until it is on disk."""
    items = {"params": params, "meta": {"format": FORMAT, "step": 0, **meta}}
    folder = str(run_dir.resolve() / "checkpoints")
    with checkpoint_context() as context, ocp.training.Checkpointer(folder, context=context) as checkpointer:
        checkpointer.save_checkpointables(0, items)
