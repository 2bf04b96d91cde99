"""A checkpoint that holds a model and nothing of training: what `polytune import` writes."""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from model.checkpoint import FORMAT, checkpoint_context
from model.transformer import Params

LEAST_IN_FLIGHT = 64 * 2**20


def write_model(run_dir: Path, params: Params, meta: dict[str, Any]) -> None:
    """Writes `run_dir/checkpoints/0` with these parameters and this meta, and waits until it is on disk."""
    items = {"params": params, "meta": {"format": FORMAT, "step": 0, **meta}}
    folder = str(run_dir.resolve() / "checkpoints")
    context = checkpoint_context()
    context.memory.write_concurrent_bytes = _bytes_in_flight(params)
    with context, ocp.training.Checkpointer(folder, context=context) as checkpointer:
        checkpointer.save_checkpointables(0, items)


def _bytes_in_flight(params: Params) -> int:
    """How many bytes of arrays to compress at once: room for the largest piece, which Orbax insists on, and no more.

    Without a bound the compressed copy of a whole model is in memory before it is written: 0.7 of the parameters'
    bytes, for bfloat16 ones.
    """
    shards = (shard.data for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    return max(LEAST_IN_FLIGHT, 1 + max(data.nbytes for data in shards))
