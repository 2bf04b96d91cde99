"""What training carries from step to step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

import model.transformer as transformer
from model.config import ModelConfig
from model.parallel import AxisRules
from train.config import Memory
from train.offload import on_host, to_host
from train.paths import split_frozen


class TrainState(NamedTuple):
    """`step` updates have been made. The optimizer's moments are partitioned like the parameters they belong to."""

    step: Int[Array, ""]
    params: transformer.Params
    opt_state: Any
    ema: transformer.Params | None = None
    """The average over steps of those parameters that are trained (`TrainConfig.ema_decay`); None: none is kept."""


def init_state(
    cfg: ModelConfig, axes: AxisRules, tx: optax.GradientTransformation, key: jax.Array, *, memory: Memory = "device"
) -> TrainState:
    """Fresh parameters and optimizer state at step 0, on the mesh in use."""
    return first_state(jax.jit(transformer.init, static_argnums=(0, 1))(cfg, axes, key), tx, memory=memory)


def first_state(
    params: transformer.Params, tx: optax.GradientTransformation, *, memory: Memory = "device"
) -> TrainState:
    """These parameters at step 0, with fresh optimizer state partitioned like them, kept in this memory."""

    def begin(params: transformer.Params) -> Any:
        return to_host(tx.init(params)) if memory == "host" else tx.init(params)

    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=jax.jit(begin)(params))


def abstract_state(
    cfg: ModelConfig, axes: AxisRules, tx: optax.GradientTransformation, *, memory: Memory = "device"
) -> TrainState:
    """Shapes, dtypes, shardings and memories of `init_state`: what a checkpoint is restored onto."""
    params = transformer.abstract(cfg, axes)
    step = jax.eval_shape(lambda: jnp.zeros((), jnp.int32))
    opt_state = jax.eval_shape(tx.init, params)
    return TrainState(step=step, params=params, opt_state=on_host(opt_state) if memory == "host" else opt_state)


def with_ema(state: TrainState, freeze: Sequence[str]) -> TrainState:
    """The state with an average of its trained parameters, which starts as they are; abstract for an abstract state."""

    def copy(leaf: Any) -> Any:
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)

    return state._replace(ema=jax.tree.map(copy, split_frozen(state.params, freeze)[0]))


def next_ema(ema: transformer.Params | None, trained: transformer.Params, *, decay: float) -> transformer.Params:
    """The average after an update that gave these parameters: decay x average + (1 - decay) x parameters."""
    assert ema is not None, "with_ema gives a state its average"
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, trained)
