"""What training carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

import model.transformer as transformer
from model.config import ModelConfig
from model.parallel import AxisRules


class TrainState(NamedTuple):
    """`step` updates have been made. The optimizer's moments are partitioned like the parameters they belong to."""

    step: Int[Array, ""]
    params: transformer.Params
    opt_state: Any


def init_state(cfg: ModelConfig, axes: AxisRules, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Fresh parameters and optimizer state at step 0, on the mesh in use."""
    return first_state(jax.jit(transformer.init, static_argnums=(0, 1))(cfg, axes, key), tx)


def first_state(params: transformer.Params, tx: optax.GradientTransformation) -> TrainState:
    """These parameters at step 0, with fresh optimizer state partitioned like them."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=jax.jit(tx.init)(params))


def abstract_state(cfg: ModelConfig, axes: AxisRules, tx: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`: what a checkpoint is restored onto."""
    params = transformer.abstract(cfg, axes)
    step = jax.eval_shape(lambda: jnp.zeros((), jnp.int32))
    return TrainState(step=step, params=params, opt_state=jax.eval_shape(tx.init, params))
