"""Loss spikes: losses and gradient norms of the last steps, kept with the optimizer's state, and what is far off."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from train.config import SpikeConfig


class SpikeHistory(NamedTuple):
    """Of the last W steps whose loss and gradient were finite, skipped spikes among them, in no order."""

    recent: Float[Array, "2 W"]
    """Loss, and norm of the gradient."""
    seen: Int[Array, ""]
    """Steps put in so far; the first W places are filled in turn, then the oldest is written over."""


class WatchedState(NamedTuple):
    """The state of an optimizer and the history beside it: both are in a checkpoint's `opt_state`."""

    inner: Any
    history: SpikeHistory


def watch_spikes(tx: optax.GradientTransformation, config: SpikeConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer, with a history that each update adds its `loss` and `grad_norm` to."""

    def init(params: optax.Params) -> WatchedState:
        history = SpikeHistory(jnp.zeros((2, config.window), jnp.float32), jnp.zeros((), jnp.int32))
        return WatchedState(tx.init(params), history)

    def update(updates: Any, state: Any, params: Any = None, **told: Any) -> tuple[Any, WatchedState]:
        updates, inner = tx.update(updates, state.inner, params)
        return updates, WatchedState(inner, add_step(state.history, told["loss"], told["grad_norm"]))

    return optax.GradientTransformationExtraArgs(init, update)


def add_step(history: SpikeHistory, loss: Float[Array, ""], grad_norm: Float[Array, ""]) -> SpikeHistory:
    """The history with one step more; as it was if the step is not finite."""
    step_2 = jnp.stack([loss, grad_norm])
    added = SpikeHistory(
        history.recent.at[:, history.seen % history.recent.shape[1]].set(step_2), history.seen + jnp.int32(1)
    )
    is_finite = jnp.isfinite(step_2).all()
    return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), added, history)


def is_spike(
    config: SpikeConfig, history: SpikeHistory, loss: Float[Array, ""], grad_norm: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether either is more than `sigma` deviations above its mean over a history that is full."""
    limit_2 = history.recent.mean(axis=1) + config.sigma * history.recent.std(axis=1)
    return (history.seen >= config.window) & (jnp.stack([loss, grad_norm]) > limit_2).any()
