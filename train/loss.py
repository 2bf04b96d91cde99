"""Weighted cross-entropy, as sums and weights, in total and by language; and what may be minimised beside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.moe import RouterSums
from train.config import LossConfig


class GroupSums(NamedTuple):
    """Sums over the trained tokens of each group, by its id (a language, a source); divided by whoever reads them."""

    loss_X: Float[Array, "X"]
    """Of the bare cross-entropy."""
    weight_X: Float[Array, "X"]
    gradient_X: Float[Array, "X"] | None = None
    """Of |dO/dx|: x is the hidden state that the head is given for a token, O the summed objective of the batch, with
    loss weights, label smoothing and z-loss in it, before its division by the weight. The gradient share of a group is
    its part of the sum over all groups: how strongly its tokens pull at the model, before they pull at one another.
    None: not asked for."""


class LossSums(NamedTuple):
    """Sums over tokens by language id; the mean is taken once, by whoever has the whole global batch."""

    loss_R: Float[Array, "R"]
    """Of the bare cross-entropy, whatever is minimised: comparable between runs, and with evaluation."""
    weight_R: Float[Array, "R"]
    router: RouterSums | None = None
    """None: the model has no experts."""
    objective: Float[Array, ""] | None = None
    """What is minimised, summed like the loss: `loss_R` with label smoothing and z-loss. This is what to
    differentiate; a gradient of `loss_R` itself is right too, and costs a chunked head a second pass."""
    gradient_R: Float[Array, "R"] | None = None
    """`GroupSums.gradient_X` by language; None: not asked for."""
    by_source: GroupSums | None = None
    """None: not asked for."""


class TokenLosses(NamedTuple):
    """A head's losses: what is minimised as one weighted sum, and the bare cross-entropy of each position."""

    objective: Float[Array, ""]
    loss_BK: Float[Array, "B K"]
    """Not weighted, in nats, float32. A chunked head gives 0 where the weight is 0."""
    gradient_BK: Float[Array, "B K"] | None = None
    """Norm of the objective's gradient by each position's hidden state; a constant. None: not asked for."""


def cross_entropy(logits_BKV: Float[Array, "B K V"], targets_BK: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """-log p(target) in nats, float32.

    The target's logit is picked by a masked sum, not a gather, so that a vocabulary sharded over devices stays so.
    """
    logits_BKV = logits_BKV.astype(jnp.float32)
    vocabulary_BKV = jax.lax.broadcasted_iota(
        jnp.int32, logits_BKV.shape, 2, out_sharding=jax.typeof(logits_BKV).sharding
    )
    picked_BK = jnp.sum(jnp.where(vocabulary_BKV == targets_BK[..., None], logits_BKV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BKV, axis=-1) - picked_BK


def full_losses(
    config: LossConfig,
    logits_BKV: Float[Array, "B K V"],
    targets_BK: Int[Array, "B K"],
    weight_BK: Float[Array, "B K"],
    *,
    vocab_size: int,
) -> TokenLosses:
    """The losses of logits that are all there at once; those from `vocab_size` on are padding, and very low."""
    loss_BK = cross_entropy(logits_BKV, targets_BK)
    if config.is_bare:
        return TokenLosses(jnp.sum(loss_BK * weight_BK), loss_BK)
    logits_BKV = logits_BKV.astype(jnp.float32)
    log_z_BK = jax.nn.logsumexp(logits_BKV, axis=-1)
    vocabulary_V = jnp.arange(logits_BKV.shape[-1])[None, None]
    total_BK = jnp.sum(jnp.where(vocabulary_V < vocab_size, logits_BKV, 0.0), axis=-1)
    added_BK = added_loss(config, log_z_BK - loss_BK, total_BK / vocab_size, log_z_BK)
    return TokenLosses(jnp.sum((loss_BK + added_BK) * weight_BK), loss_BK)


def added_loss(config: LossConfig, picked: Array, mean: Array, log_z: Array) -> Array:
    """What label smoothing and z-loss add to each token's cross-entropy, log_z - picked.

    `picked` is the target's logit, `mean` that of the whole vocabulary, `log_z` their logsumexp. Smoothing by e moves
    e of the target's probability to the uniform distribution: log_z - (1 - e) picked - e mean. Sources: `LossConfig`.
    """
    return config.label_smoothing * (picked - mean) + config.z_loss_weight * jnp.square(log_z)


def sums_by_group(
    losses: TokenLosses, weight_BK: Float[Array, "B K"], group_BK: Int[Array, "B K"], groups: int
) -> GroupSums:
    """Weighted loss, weight, and the norms of gradients where there are any, summed by group id."""
    member_BKX = jax.nn.one_hot(group_BK, groups, dtype=jnp.float32)
    values = [losses.loss_BK * weight_BK, weight_BK]
    values += [] if losses.gradient_BK is None else [losses.gradient_BK]
    # Together: one exchange between devices, and none that could begin before the layers, out of the others' order.
    sums = jnp.einsum("ZBK,BKX->ZX", jnp.stack(values), member_BKX, out_sharding=jax.P(None, None))
    return GroupSums(*sums)


def norms_of(gradient_BKD: Float[Array, "B K D"]) -> Float[Array, "B K"]:
    """Length of each position's gradient, float32."""
    return jnp.sqrt(jnp.sum(jnp.square(gradient_BKD.astype(jnp.float32)), axis=-1))


def trained_positions(weight_BT: Float[Array, "B T"], most: int) -> Int[Array, "B K"]:
    """Positions of each row with weight, in order, then enough without to fill `most` = K.

    Weights (0 1 0 .5) with K = 3 give positions (1 3 0). A row with more than K trained positions would lose some:
    the caller must pass the largest count of any row.
    """
    return jnp.argsort(weight_BT == 0, axis=1, stable=True)[:, :most]


def load_balance_loss(sums: RouterSums, counts: RouterSums | None = None) -> Any:
    """E sum_e f_e p_e: f_e is how often a token chose expert e, p_e the mean of its probability.

    The number chosen per token when every expert has an equal share; E at worst. Means are over the real tokens of
    all layers with experts at once, which is what transformers computes. `counts`, if given, are the choices and tokens
    of the whole global batch, of which `sums` may be a part: the parts' losses then add up to the whole's.
    Source: arXiv:2101.03961, eq. 4 to 6.
    """
    counts = counts or sums
    chosen_E, probability_E = counts.chosen_E / counts.tokens, sums.probability_E / counts.tokens
    return chosen_E.shape[0] * (chosen_E * probability_E).sum()


def router_z_loss(sums: RouterSums, counts: RouterSums | None = None) -> Any:
    """The mean of logsumexp(logits)^2 over the real tokens of all layers with experts; `counts` as above.

    Source: arXiv:2202.08906, eq. 5.
    """
    return sums.log_z_squared / (counts or sums).tokens
