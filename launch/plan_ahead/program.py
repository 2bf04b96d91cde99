"""The training step of a recipe, lowered and compiled for devices that are not here: no data, no parameters."""

import functools
import math
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from data.batch import Batch
from launch.config import Recipe, RecipeError
from launch.origin import foresee_vocabulary, open_origin
from launch.train import check_sizes, make_spec
from model.chips import GIB
from model.config import ModelConfig
from model.parallel import ways
from train.config import OptimConfig
from train.job import head_positions
from train.optim import make_optimizer
from train.spikes import watch_spikes
from train.state import TrainState, abstract_state, with_ema
from train.step import StepSpec, train_step

ASSUMED_LANGUAGES = 256
"""Size of the language table, which only data could tell. It sizes sums of a few numbers each."""


class AbstractStep(NamedTuple):
    """A step and what it is called with, as shapes, dtypes and shardings."""

    spec: StepSpec
    tx: Any
    """The optimizer."""
    state: TrainState
    batch: Batch


class CompiledStep(NamedTuple):
    """What the compiler made of a step."""

    text: str | None
    """The optimised program of one chip; None when it did not fit."""
    total_bytes: int
    """Of one chip's memory, everything together."""
    argument_bytes: int | None
    """State and batch, padded as their layouts are. None when it did not fit: the compiler says the total only."""
    temporary_bytes: int | None
    code_bytes: int | None
    flops_once: float | None
    """The compiler's own count of FLOPs, every loop's body counted once."""
    seconds: float
    """Time to lower and compile."""


def resolve_config(recipe: Recipe) -> ModelConfig:
    """The model's config with a vocabulary (`launch.origin.foresee_vocabulary`), on the mesh in use; no data is read.

    Raises RecipeError, and what opening a start or a tokenizer raises.
    """
    return foresee_vocabulary(recipe, open_origin(recipe))


def make_step(recipe: Recipe, cfg: ModelConfig, *, trained_share: float) -> AbstractStep:
    """The step that `polytune train` would run on the mesh in use, where rows train this share of their positions.

    Raises ValueError for sizes that the mesh does not divide.
    """
    mesh = jax.sharding.get_mesh()
    check_sizes(recipe, cfg, mesh)
    axes, length = recipe.axes, recipe.data.packing.row_length
    trained = np.array([math.ceil(length * trained_share)])
    most = head_positions(trained, batch_rows=1, row_length=length, multiple=ways(axes.length, mesh))[0]
    spec = make_spec(
        recipe, cfg, languages=ASSUMED_LANGUAGES, sources=1 + len(recipe.data.sources), most_trained=most
    )  # fmt: skip
    # How long the run is changes numbers in the schedule, no shape.
    tx = make_optimizer(recipe.optim, recipe.train.steps or _few_steps(recipe.optim), freeze=spec.freeze)
    tx = tx if spec.spikes is None else watch_spikes(tx, spec.spikes)
    sharding = jax.sharding.NamedSharding(mesh, axes.spec("batch", None))
    rows = (recipe.train.batch_rows, length)

    def field(name: str) -> Any:
        dtype = np.float32 if name == "loss_weight_BT" else np.int32
        return jax.ShapeDtypeStruct(rows, dtype, sharding=sharding)

    batch = Batch(**{name: field(name) for name in Batch._fields})
    state = abstract_state(cfg, axes, tx, memory=spec.optimizer_memory)
    return AbstractStep(spec, tx, state if spec.ema_decay is None else with_ema(state, spec.freeze), batch)


def _few_steps(optim: OptimConfig) -> int:
    """The length of a run that the schedule fits into."""
    return optim.warmup_steps + (optim.decay_steps or 0) + 2


def compile_step(step: AbstractStep) -> CompiledStep:
    """The step compiled as the loop compiles it (its state donated), for the mesh in use.

    Raises RecipeError when the compiler refuses it for another reason than the size of its memory.
    """
    began = time.monotonic()
    update = jax.jit(functools.partial(train_step, step.spec, step.tx), donate_argnums=0)
    lowered = update.lower(step.state, step.batch)
    try:
        compiled = lowered.compile()
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        total = parse_exceeded(str(error))
        if total is None:
            raise RecipeError(
                f"the compiler refuses this step: {str(error)[:400]}\nIf that is no word about the recipe, jaxlib and "
                "libtpu may not belong together: pip install 'polytune[plan]' installs those that do"
            ) from error
        return CompiledStep(None, total, None, None, None, None, time.monotonic() - began)
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    assert memory is not None, "every compiler that plans are made with tells the sizes of its buffers"
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledStep(
        text=text,
        total_bytes=used + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        argument_bytes=used,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops_once=costs.get("flops") if costs else None,
        seconds=time.monotonic() - began,
    )


def parse_exceeded(message: str) -> int | None:
    """Bytes that a TPU's compiler says a program needs in all, when it refuses it for lack of memory; None otherwise.

    It says "the total memory required for HLO temporaries (24.00G) exceeds available HBM (15.75G)", and counts
    arguments and results in; older versions "Used 24.00G of 15.75G hbm".
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"required[^()]*\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    if found is None:
        return None
    number, unit = found.group(1) or found.group(3), found.group(2) or found.group(4)
    return int(float(number) * {"K": GIB / 2**20, "M": GIB / 2**10, "G": GIB, "T": GIB * 2**10}[unit])
