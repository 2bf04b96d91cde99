"""One update from one global batch: pure, microbatched by a scan, divided once by the global weight."""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import model.transformer as transformer
from data.batch import Batch
from model.config import ComputeConfig, ModelConfig
from model.moe import RouterSums, add_sums, no_sums
from model.parallel import AxisRules
from train.chunked_loss import chunked_losses
from train.config import LossConfig, Memory, RouterLossConfig, SpikeConfig
from train.loss import (
    LossSums,
    TokenLosses,
    full_losses,
    load_balance_loss,
    norms_of,
    router_z_loss,
    sums_by_group,
    trained_positions,
)
from train.noise import EMBEDDINGS, NoiseRows, add_noise, drop_entries, noise_rows
from train.offload import to_device, to_host
from train.paths import overlay, split_frozen
from train.spikes import SpikeHistory, WatchedState, is_spike
from train.state import TrainState, next_ema

NO_ROUTER_LOSS = RouterLossConfig()
DEFAULT_LOSS = LossConfig()
SOUND, NON_FINITE, SPIKE = 0, 1, 2
"""Verdicts on a step; only a sound one changes parameters and moments."""
MOVES_ON = (optax.ScaleByScheduleState, SpikeHistory)
"""Parts of an optimizer's state that a skipped step changes too: the learning rate is that of the step's number."""


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
    loss: LossConfig = DEFAULT_LOSS
    router: RouterLossConfig = NO_ROUTER_LOSS
    freeze: tuple[str, ...] = ()
    """These four: see `TrainConfig`."""
    ema_decay: float | None = None
    neftune_alpha: float | None = None
    dropout: float = 0.0
    seed: int = 0
    """Of the noise."""
    row_order: tuple[int, ...] = ()
    """Of the noise too: see `train.hosts.row_order`."""
    num_sources: int = 0
    """0: no sums by source."""
    gradient_share: bool = False
    """Whether norms of gradients are summed by language and source."""
    optimizer_memory: Memory = "device"
    """Where the optimizer's state is before and after the step."""
    spikes: SpikeConfig | None = None
    """If given, the optimizer is one of `train.spikes.watch_spikes`."""

    def __post_init__(self):
        if self.trains_router and not self.has_experts:
            raise ValueError(
                f"train.router gives load_balance_weight={self.router.load_balance_weight:g} and z_loss_weight="
                f"{self.router.z_loss_weight:g}, but no layer of the model has experts; leave train.router out"
            )

    @property
    def is_noisy(self) -> bool:
        """Whether a step's forward pass is disturbed."""
        return self.neftune_alpha is not None or self.dropout > 0

    @property
    def has_experts(self) -> bool:
        """Whether any layer has a router."""
        return any(kind.experts for kind in self.model.kinds)

    @property
    def trains_router(self) -> bool:
        """Whether any loss of the router is part of what is minimised."""
        return self.router.load_balance_weight > 0 or self.router.z_loss_weight > 0


class Part(NamedTuple):
    """Rows of the global batch, and where their noise comes from (None: there is none)."""

    batch: Batch
    noise: NoiseRows | None


class StepMetrics(NamedTuple):
    """Sums of the whole global batch, before the update, and the norm of its mean gradient before clipping."""

    sums: LossSums
    grad_norm: Float[Array, ""]
    verdict: Int[Array, ""] | None = None
    """SOUND, NON_FINITE or SPIKE."""


class Losses(NamedTuple):
    """The losses of the K positions of each row that may be trained, and what they belong to."""

    tokens: TokenLosses
    weight_BK: Float[Array, "B K"]
    language_BK: Int[Array, "B K"]
    source_BK: Int[Array, "B K"]
    router: RouterSums | None


def token_losses(spec: StepSpec, params: transformer.Params, batch: Batch, noise: NoiseRows | None = None) -> Losses:
    """The losses of a batch (or microbatch) by position, with logits made at trained positions only.

    Both heads give the same: see `LossConfig`. `noise`: in training, for a spec that is noisy.
    """
    at_BK = trained_positions(jnp.asarray(batch.loss_weight_BT), spec.most_trained)
    inputs = (jnp.asarray(field_BT) for field_BT in (batch.tokens_BT, batch.segments_BT, batch.positions_BT))
    targets_BK, weight_BK, language_BK, source_BK = (
        transformer.pick_positions(spec.axes, jnp.asarray(field_BT), at_BK)
        for field_BT in (batch.targets_BT, batch.loss_weight_BT, batch.language_BT, batch.source_BT)
    )
    disturbed = None if noise is None else _make_noise(spec, noise, jnp.asarray(batch.segments_BT))
    x_BKD, router = transformer.apply_hidden(
        spec.model, spec.axes, params, *inputs, at_BK=at_BK, compute=spec.compute, noise=disturbed
    )
    if spec.loss.head == "full":
        losses = full_head(spec, params, x_BKD, targets_BK, weight_BK)
    else:
        weight = transformer.head_weight(spec.model, params)
        losses = chunked_losses(
            spec.loss, spec.model, x_BKD, weight, targets_BK, weight_BK, has_norms=spec.gradient_share
        )
    return Losses(losses, weight_BK, language_BK, source_BK, router if spec.has_experts else None)


def loss_sums(spec: StepSpec, params: transformer.Params, batch: Batch, noise: NoiseRows | None = None) -> LossSums:
    """The loss of a batch (or microbatch) as sums by language, and by source where the spec has sources."""
    losses = token_losses(spec, params, batch, noise)
    sum_by = functools.partial(sums_by_group, losses.tokens, losses.weight_BK)
    by_language = sum_by(losses.language_BK, spec.num_languages)
    return LossSums(
        loss_R=by_language.loss_X,
        weight_R=by_language.weight_X,
        router=losses.router,
        objective=losses.tokens.objective,
        gradient_R=by_language.gradient_X,
        by_source=sum_by(losses.source_BK, spec.num_sources) if spec.num_sources else None,
    )


def full_head(
    spec: StepSpec,
    params: transformer.Params,
    x_BKD: Float[Array, "B K D"],
    targets_BK: Int[Array, "B K"],
    weight_BK: Float[Array, "B K"],
) -> TokenLosses:
    """The losses of all logits at once. Norms of gradients, where asked for, cost the head's gradient again."""

    def losses_of(x_BKD: Float[Array, "B K D"]) -> TokenLosses:
        logits_BKV = transformer.make_logits(spec.model, spec.axes, params, x_BKD)
        return full_losses(spec.loss, logits_BKV, targets_BK, weight_BK, vocab_size=spec.model.vocab_size)

    losses = losses_of(x_BKD)
    if not spec.gradient_share:
        return losses
    gradient_BKD = jax.grad(lambda x_BKD: losses_of(x_BKD).objective)(jax.lax.stop_gradient(x_BKD))
    return losses._replace(gradient_BK=jax.lax.stop_gradient(norms_of(gradient_BKD)))


def _make_noise(spec: StepSpec, noise: NoiseRows, segments_BT: Int[Array, "B T"]) -> transformer.Noise:
    def disturb_embeddings(x_BTD: Array) -> Array:
        if spec.neftune_alpha is not None:
            x_BTD = add_noise(x_BTD, spec.neftune_alpha, noise, segments_BT, scale=spec.model.embedding_scale)
        return drop_entries(x_BTD, spec.dropout, noise, EMBEDDINGS) if spec.dropout else x_BTD

    def disturb_branch(x_BTD: Array, layer: Array, branch: int) -> Array:
        return drop_entries(x_BTD, spec.dropout, noise, EMBEDDINGS + 1 + 2 * layer + branch)

    return transformer.Noise(disturb_embeddings, disturb_branch if spec.dropout else None)


def mean_gradient(
    spec: StepSpec, params: transformer.Params, batch: Batch, step: Int[Array, ""] | None = None
) -> tuple[transformer.Params, LossSums]:
    """Gradient of the objective of the global batch, and its sums, however it is split.

    The gradient has the parameters that are trained only. `step` is for a spec whose noise differs from step to step.
    The objective: summed loss / summed weight, and the router's losses times their weights. They have different
    denominators, but all are known before any gradient: what each part adds is exact, and one division ends it.
    """
    whole = Part(batch, None)
    if spec.is_noisy:
        assert step is not None, "noise differs from step to step"
        whole = Part(batch, noise_rows(spec.seed, step, like=jnp.asarray(batch.tokens_BT), order=spec.row_order))
    parts = split_batch(whole, spec.microbatches) if spec.microbatches > 1 else None
    counts = count_routes(spec, params, batch, parts) if spec.trains_router and parts is not None else None
    trained, frozen = split_frozen(params, spec.freeze)

    def total(trained: transformer.Params, part: Part) -> tuple[Array, LossSums]:
        sums = loss_sums(spec, overlay(params, trained) if frozen else trained, *part)
        objective = sums.objective
        assert objective is not None, "loss_sums always gives one"
        sums = sums._replace(objective=None) if spec.loss.is_bare else sums
        if spec.trains_router and sums.router is not None:
            # In the unit of summed loss, as the division below is by the summed weight of all parts.
            objective += jnp.sum(batch.loss_weight_BT) * router_loss(spec, sums.router, counts)
        return objective, sums

    add_gradient = jax.grad(total, has_aux=True)
    if parts is None:
        gradient, sums = add_gradient(trained, whole)
    else:

        def accumulate(carry, part):
            return jax.tree.map(jnp.add, carry, add_gradient(trained, part)), None

        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x), jax.eval_shape(add_gradient, trained, first))
        (gradient, sums), _ = jax.lax.scan(accumulate, zeros, parts)
    scale = 1.0 / jnp.sum(sums.weight_R)
    return jax.tree.map(lambda leaf: leaf * scale, gradient), sums


def router_loss(spec: StepSpec, sums: RouterSums, counts: RouterSums | None) -> Float[Array, ""]:
    """The router's losses times their weights, or a part's share of them when `counts` are the whole's.

    The choices are counts: only probabilities and logits have a gradient.
    """
    loss = jnp.zeros(())
    if spec.router.load_balance_weight:
        loss += spec.router.load_balance_weight * load_balance_loss(sums, counts)
    if spec.router.z_loss_weight:
        loss += spec.router.z_loss_weight * router_z_loss(sums, counts)
    return loss


def count_routes(spec: StepSpec, params: transformer.Params, batch: Batch, parts: Part) -> RouterSums:
    """The global batch's choices and tokens, before any part's gradient is taken.

    Choices are in the gradient of every part's probabilities, so balancing costs a forward pass over all parts first
    (without the head). Without balancing only the tokens count, and they are known from the batch.
    """
    if spec.router.load_balance_weight == 0:
        layers = sum(kind.experts for kind in spec.model.kinds)
        return no_sums(spec.model)._replace(tokens=layers * jnp.sum(batch.segments_BT > 0).astype(jnp.float32))

    def count(carry: RouterSums, part: Part) -> tuple[RouterSums, None]:
        router = loss_sums(spec, params, *part).router
        assert router is not None, "StepSpec refuses weights of router losses for a model without experts"
        return add_sums(carry, router), None

    return jax.lax.scan(count, no_sums(spec.model), parts)[0]


def split_batch(whole: Part, parts: int) -> Part:
    """Every array of rows with a leading dimension of parts; the key of the noise repeated along it."""
    batch = jax.tree.map(lambda x_BT: split_rows(x_BT, parts), whole.batch)
    if whole.noise is None:
        return Part(batch, None)
    keys = jnp.broadcast_to(whole.noise.key, (parts,))
    return Part(batch, NoiseRows(keys, split_rows(whole.noise.rows_B1, parts)))


def split_rows(x_BT: Array, parts: int) -> Array:
    """(M, B / M, T): rows dealt out in turn, so that a batch sharded over devices needs no communication."""
    rows, length = x_BT.shape
    # Left to itself, a dimension split over two mesh axes may give the one of size 1 to the microbatches.
    rows_spec = jax.typeof(x_BT).sharding.spec[0]
    sharding = jax.typeof(x_BT).sharding.update(spec=jax.P(rows_spec, None, None))
    return jax.lax.reshape(x_BT, (rows // parts, parts, length), out_sharding=sharding).swapaxes(0, 1)


def train_step(
    spec: StepSpec, tx: optax.GradientTransformation, state: TrainState, batch: Batch
) -> tuple[TrainState, StepMetrics]:
    """The state after one step, and the batch's metrics before it.

    One whose loss or gradient is not finite, or a spike, counts as a step and changes neither parameters nor moments.
    """
    assert (state.ema is None) == (spec.ema_decay is None), "with_ema belongs to a spec with ema_decay"
    if spec.optimizer_memory == "host":
        state = state._replace(opt_state=to_device(state.opt_state))
    gradient, sums = mean_gradient(spec, state.params, batch, state.step)
    loss = jnp.sum(sums.loss_R) / jnp.sum(sums.weight_R)
    grad_norm = optax.tree.norm(gradient)
    verdict = judge(spec, state.opt_state, loss, grad_norm)
    told = {"loss": loss, "grad_norm": grad_norm} if spec.spikes else {}

    def make(state: TrainState) -> TrainState:
        trained, _ = split_frozen(state.params, spec.freeze)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counts
            updates, opt_state = tx.update(gradient, state.opt_state, trained, **told)
        trained = cast(transformer.Params, optax.apply_updates(trained, updates))
        ema = None if spec.ema_decay is None else next_ema(state.ema, trained, decay=spec.ema_decay)
        return TrainState(state.step + 1, overlay(state.params, trained), opt_state, ema)

    # A branch, not a choice between arrays: that would hold the old and the new moments at once.
    state = jax.lax.cond(verdict == SOUND, make, lambda state: move_on(make(state), state), state)
    if spec.optimizer_memory == "host":
        state = state._replace(opt_state=to_host(state.opt_state))
    return state, StepMetrics(sums=sums, grad_norm=grad_norm, verdict=verdict)


def judge(spec: StepSpec, opt_state: Any, loss: Float[Array, ""], grad_norm: Float[Array, ""]) -> Int[Array, ""]:
    """Whether a step is sound, from its mean loss and the norm of its gradient."""
    verdict = jnp.int32(SOUND)
    if spec.spikes is not None:
        assert isinstance(opt_state, WatchedState), "a spec with spikes has an optimizer of watch_spikes"
        verdict = jnp.where(is_spike(spec.spikes, opt_state.history, loss, grad_norm), jnp.int32(SPIKE), verdict)
    return jnp.where(jnp.isfinite(loss) & jnp.isfinite(grad_norm), verdict, jnp.int32(NON_FINITE))


def move_on(new: TrainState, old: TrainState) -> TrainState:
    """The old state with the new one's count of steps and what else `MOVES_ON`."""

    def pick(new: Any, old: Any) -> Any:
        return new if isinstance(new, MOVES_ON) else old

    return jax.tree.map(pick, new, old, is_leaf=lambda node: isinstance(node, MOVES_ON))._replace(step=new.step)
