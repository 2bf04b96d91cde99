"""One update from one global batch: pure, microbatched by a scan, divided once by the global weight."""

import dataclasses
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

import model.transformer as transformer
from data.batch import Batch
from model.config import ComputeConfig, ModelConfig
from model.parallel import AxisRules
from train.loss import LossSums, cross_entropy, sums_by_language, trained_positions
from train.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """Everything static about a step; hashable, so that it keys the compiled program."""

    model: ModelConfig
    axes: AxisRules
    compute: ComputeConfig
    num_languages: int
    most_trained: int
    """Largest number of trained positions in any row of the run (K)."""
    microbatches: int = 1


class StepMetrics(NamedTuple):
    """Sums of the whole global batch, before the update, and the norm of its mean gradient before clipping."""

    sums: LossSums
    grad_norm: Float[Array, ""]


def loss_sums(spec: StepSpec, params: transformer.Params, batch: Batch) -> LossSums:
    """The loss of a batch (or microbatch) as sums by language, with logits made at trained positions only."""
    at_BK = trained_positions(jnp.asarray(batch.loss_weight_BT), spec.most_trained)
    inputs = (jnp.asarray(field_BT) for field_BT in (batch.tokens_BT, batch.segments_BT, batch.positions_BT))
    logits_BKV = transformer.apply(spec.model, spec.axes, params, *inputs, at_BK=at_BK, compute=spec.compute)
    targets_BK, weight_BK, language_BK = (
        jnp.take_along_axis(field_BT, at_BK, axis=1)
        for field_BT in (batch.targets_BT, batch.loss_weight_BT, batch.language_BT)
    )
    return sums_by_language(cross_entropy(logits_BKV, targets_BK), weight_BK, language_BK, spec.num_languages)


def mean_gradient(spec: StepSpec, params: transformer.Params, batch: Batch) -> tuple[transformer.Params, LossSums]:
    """Gradient of (summed loss / summed weight) over the global batch, and the sums, however it is split."""

    def total(params: transformer.Params, part: Batch) -> tuple[Array, LossSums]:
        sums = loss_sums(spec, params, part)
        return jnp.sum(sums.loss_R), sums

    add_gradient = jax.grad(total, has_aux=True)
    if spec.microbatches == 1:
        gradient, sums = add_gradient(params, batch)
    else:

        def accumulate(carry, part):
            return jax.tree.map(jnp.add, carry, add_gradient(params, part)), None

        parts = jax.tree.map(lambda x_BT: split_rows(x_BT, spec.microbatches), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x), jax.eval_shape(add_gradient, params, first))
        (gradient, sums), _ = jax.lax.scan(accumulate, zeros, parts)
    scale = 1.0 / jnp.sum(sums.weight_R)
    return jax.tree.map(lambda leaf: leaf * scale, gradient), sums


def split_rows(x_BT: Array, parts: int) -> Array:
    """(M, B / M, T): rows dealt out in turn, so that a batch sharded over devices needs no communication."""
    rows, length = x_BT.shape
    return x_BT.reshape(rows // parts, parts, length).swapaxes(0, 1)


def train_step(
    spec: StepSpec, tx: optax.GradientTransformation, state: TrainState, batch: Batch
) -> tuple[TrainState, StepMetrics]:
    """The state after one update, and the batch's metrics before it."""
    gradient, sums = mean_gradient(spec, state.params, batch)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counts
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = cast(transformer.Params, optax.apply_updates(state.params, updates))
    metrics = StepMetrics(sums=sums, grad_norm=optax.tree.norm(gradient))
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics
