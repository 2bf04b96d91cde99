"""polytune's training step as a contender."""

import dataclasses
import functools
from pathlib import Path

import jax
import msgspec
import numpy as np

from launch.config import Recipe
from launch.origin import open_origin
from launch.train import make_job
from model.parallel import MeshConfig, make_mesh
from tests.bench.workload import prepare_workload, read_batches
from train.hosts import put_batch
from train.optim import make_optimizer, make_schedule
from train.state import init_state
from train.step import train_step


class PolytuneContender:
    """Packed rows through `train.step`; `everywhere`: logits at every position, not just trained ones."""

    def __init__(self, recipe: Recipe, run_dir: Path, steps: int, *, everywhere: bool = False):
        jax.set_mesh(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
        recipe = msgspec.structs.replace(recipe, run=msgspec.structs.replace(recipe.run, dir=str(run_dir)))
        prepared = prepare_workload(recipe, run_dir)
        self._spec = make_job(recipe, open_origin(recipe), prepared).spec
        if everywhere:
            self._spec = dataclasses.replace(self._spec, most_trained=prepared.plan.row_length)
        tx = make_optimizer(recipe.optim, recipe.train.steps)
        self._schedule = make_schedule(recipe.optim, recipe.train.steps)
        self._state = init_state(self._spec.model, self._spec.axes, tx, jax.random.key(recipe.run.seed))
        self._batches = [
            put_batch(batch, self._spec.axes.spec("batch", None)) for batch in read_batches(recipe, prepared, steps)
        ]
        self._update = jax.jit(functools.partial(train_step, self._spec, tx), donate_argnums=0)

    def describe(self) -> str:
        """Library, version and threads."""
        return f"jax {jax.__version__}"

    def export(self, path: Path, steps: int) -> None:
        """Writes parameters, model shape and learning rates, for the other side to start from."""
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(self._state.params))
        arrays = {".".join(key.key for key in keys): leaf for keys, leaf in leaves}
        rates = np.array([float(self._schedule(step)) for step in range(steps)])
        np.savez(path, model=msgspec.json.encode(self._spec.model), rates=rates, **arrays)

    def step(self, index: int) -> tuple[float, float]:
        """Mean loss of batch `index` before the update and its gradient's norm; the update is made."""
        self._state, metrics = self._update(self._state, self._batches[index])
        sums, grad_norm = jax.device_get(tuple(metrics))
        return float(sums.loss_R.sum() / sums.weight_R.sum()), float(grad_norm)
