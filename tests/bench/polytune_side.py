"""polytune's training step as a contender."""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec

from launch.config import Recipe
from launch.train import make_spec
from model.hf.hub import open_hub
from model.parallel import MeshConfig, make_mesh
from tests.bench.memory import read_peak
from tests.bench.start import MODEL_FOLDER, read_start
from tests.bench.workload import Step
from train.device_memory import read_memory
from train.hosts import put_batch
from train.mfu import Utilisation, make_utilisation
from train.optim import make_optimizer
from train.state import first_state
from train.step import train_step


class PolytuneContender:
    """Packed rows through `train.step` on one device; `everywhere`: logits at every position, not just trained ones."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, *, everywhere: bool = False):
        self._device = jax.devices()[0]
        if (self._device.platform == "cpu") != (device == "cpu"):
            raise RuntimeError(
                f"torch has a GPU, but JAX has {self._device.device_kind} only; install jax[cuda12] or jax[cuda13]"
            )
        jax.set_mesh(make_mesh(MeshConfig(fsdp=1), [self._device]))
        start, batches = read_start(folder)
        hub, padding = open_hub(folder / MODEL_FOLDER), start.model.vocab_padding
        spec = make_spec(
            recipe, msgspec.structs.replace(hub.cfg, vocab_padding=padding), languages=start.languages,
            sources=start.sources, most_trained=start.most_trained,
        )  # fmt: skip
        if everywhere:
            spec = dataclasses.replace(spec, most_trained=recipe.data.packing.row_length)
        tx = make_optimizer(recipe.optim, start.steps)
        self._state = first_state(hub.load(spec.axes, dtype=jnp.dtype("float32"), vocab_padding=padding), tx)
        self._batches = [put_batch(batch, spec.axes.spec("batch", None)) for batch in batches]
        self._update = jax.jit(functools.partial(train_step, spec, tx), donate_argnums=0)
        self._utilisation = make_utilisation(spec, recipe.train)

    def warm_up(self) -> None:
        """Returns when weights and rows are on the device."""
        jax.block_until_ready((self._state, self._batches))

    def utilisation(self) -> Utilisation:
        """The formula of MFU, and the device's peak."""
        return self._utilisation

    def step(self, index: int) -> Step:
        """Makes step `index` on the next batch."""
        began = time.perf_counter()
        self._state, metrics = self._update(self._state, self._batches[index % len(self._batches)])
        jax.block_until_ready((self._state, metrics))
        seconds = time.perf_counter() - began
        sums, grad_norm = jax.device_get((metrics.sums, metrics.grad_norm))
        return Step(float(sums.loss_R.sum() / sums.weight_R.sum()), float(grad_norm), seconds)

    def read_peak(self) -> int:
        """Most bytes of arrays and scratch held at once; on a CPU of the process."""
        return read_peak() if self._device.platform == "cpu" else max(use.peak for use in read_memory())
