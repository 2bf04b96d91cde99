"""A mixture of expert MLPs: float32 routing, every token served, and the sums router losses are made of.

Letters beside the project's: N counts tokens, C a token's chosen experts.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model.config import ExpertsConfig, ModelConfig
from model.expert_pairs import apply_experts
from model.layers import normal_initializer
from model.parallel import AxisRules, axis_names, ways

BLOCK_OF_FAIR_SHARE = 1.5
"""Pairs of tokens and experts that a device computes at a time, where devices split the experts, to the pairs it would
have if all were chosen alike: one block as long as no device has half as much again. Reasoned; not timed."""


class RouterSums(NamedTuple):
    """Sums over layers and real tokens."""

    chosen_E: Float[Array, "E"]
    """How many times each expert was chosen."""
    probability_E: Float[Array, "E"]
    """The experts' probabilities, before any is chosen."""
    log_z_squared: Float[Array, ""]
    """The squared logsumexp of the router's logits."""
    tokens: Float[Array, ""]
    """How many tokens were routed: the weight of the other three."""


def no_sums(cfg: ModelConfig) -> RouterSums:
    """Zeros."""
    num = cfg.experts.num_experts if cfg.experts else 0
    return RouterSums(jnp.zeros(num), jnp.zeros(num), jnp.zeros(()), jnp.zeros(()))


def add_sums(first: RouterSums, second: RouterSums) -> RouterSums:
    """Both together."""
    return RouterSums(*(a + b for a, b in zip(first, second, strict=True)))


class Route(NamedTuple):
    """Where tokens go."""

    expert_BTC: Int[Array, "B T C"]
    """The chosen experts; `num_experts`, which none has, for padding."""
    weight_BTC: Float[Array, "B T C"]
    """What their outputs are multiplied by."""


class Experts(nn.Module):
    """For each token, a weighted sum of its likeliest experts' MLPs. Source: arXiv:1701.06538, arXiv:2401.04088.

    The router's logits, probabilities and choice are float32 whatever the activations are. Padding is sent nowhere:
    its output is zero. Otherwise the likeness of all its positions would make one expert wait for it.
    """

    cfg: ModelConfig
    axes: AxisRules

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], is_real_BT: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], RouterSums]:
        """The transformed vectors and what the router did with real tokens.

        Raises ValueError for an activation with parameters of its own, which no family's experts have.
        """
        cfg, axes = self.cfg, self.axes
        assert cfg.experts is not None, "ModelConfig refuses layers with experts without a config of them"
        if cfg.activation == "xielu":
            raise ValueError("experts with activation: xielu are not supported; use one without parameters, like silu")
        num, width = cfg.experts.num_experts, cfg.experts.dim
        router_DE = self.param(
            "router", normal_initializer(cfg.dim**-0.5, axes.spec("embed", None)), (cfg.dim, num)
        )  # fmt: skip
        widen = (normal_initializer(cfg.dim**-0.5, axes.spec("experts", "embed", "mlp")), (num, cfg.dim, width))
        weights = {name: self.param(name, *widen) for name in (("gate", "up") if cfg.gated else ("up",))}
        weights["down"] = self.param(
            "down", normal_initializer((width * 2 * cfg.num_layers) ** -0.5, axes.spec("experts", "mlp", "embed")),
            (num, width, cfg.dim),
        )  # fmt: skip
        used = {name: axes.spec("experts", *((None, "mlp") if name != "down" else ("mlp", None))) for name in weights}
        # Cast before it is gathered: half the bytes in bfloat16.
        weights = jax.reshard({name: weight.astype(x_BTD.dtype) for name, weight in weights.items()}, used)
        tokens, real = axes.spec("batch", "length", None), axes.spec("batch", "length")
        here = axis_names(axes.batch) + axis_names(axes.length) + _only_experts(axes) or None
        rows: Any = jax.P(here, None)
        sent = Sent(rows, rows, rows)
        send = jax.shard_map(
            functools.partial(_send, cfg.experts, axes),
            in_specs=(tokens, real, jax.P(None, None)), out_specs=(sent, jax.P()),
        )  # fmt: skip
        # Kernels do not say along which mesh axes their results differ.
        run = jax.shard_map(functools.partial(_run, cfg, axes), in_specs=(sent, used), out_specs=rows, check_vma=False)
        collect = jax.shard_map(functools.partial(_collect, axes, x_BTD.shape[1]), in_specs=rows, out_specs=tokens)
        pairs, sums = send(*jax.reshard((x_BTD, is_real_BT, router_DE), (tokens, real, jax.P(None, None))))
        return collect(run(pairs, weights)), sums


class Sent(NamedTuple):
    """N tokens that a device's experts may have been chosen for; all devices' stand one after the other."""

    x_ND: Float[Array, "N D"]
    expert_NC: Int[Array, "N C"]
    """Counted from the device's first expert; its number of experts for those before and after."""
    weight_NC: Float[Array, "N C"]


def _only_experts(axes: AxisRules) -> tuple[str, ...]:
    """Mesh axes along which experts or their width are split, and tokens are not."""
    tokens = axis_names(axes.batch) + axis_names(axes.length)
    return tuple(name for name in axis_names(axes.experts) + axis_names(axes.mlp) if name not in tokens)


def _shared(axes: AxisRules) -> tuple[str, ...]:
    """Mesh axes along which both rows and experts are split."""
    return tuple(name for name in axis_names(axes.experts) if name in axis_names(axes.batch))


def _send(experts: ExpertsConfig, axes: AxisRules, x_BTD, is_real_BT, router_DE) -> tuple[Sent, RouterSums]:
    """One device's tokens to all devices that split the experts among them, and what the router did with them."""
    (expert_BTC, weight_BTC), sums = _route(experts, x_BTD, is_real_BT, router_DE)
    here = (x_BTD, expert_BTC, weight_BTC)
    if shared := _shared(axes):
        here = jax.tree.map(lambda x: jax.lax.all_gather(x, shared, axis=0, tiled=True), here)
    here = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), here)
    x_ND, expert_NC, weight_NC = jax.lax.pcast(here, _only_experts(axes), to="varying")
    names = axis_names(axes.experts)
    num = experts.num_experts // ways(names, jax.sharding.get_abstract_mesh())
    expert_NC -= jax.lax.axis_index(names) * num if names else 0
    expert_NC = jnp.where((expert_NC >= 0) & (expert_NC < num), expert_NC, num)
    tokens = axis_names(axes.batch) + axis_names(axes.length)
    return Sent(x_ND, expert_NC, weight_NC), jax.tree.map(lambda total: jax.lax.psum(total, tokens), sums)


def _run(cfg: ModelConfig, axes: AxisRules, sent: Sent, weights: dict[str, Array]):
    """What one device's experts, and its part of their width, add to the tokens they were chosen for."""
    parts, pairs = ways(axes.experts, jax.sharding.get_abstract_mesh()), sent.expert_NC.size
    most = pairs if parts == 1 else min(pairs, math.ceil(pairs / parts * BLOCK_OF_FAIR_SHARE / 16) * 16)
    return apply_experts(cfg, most, *sent, weights)


def _collect(axes: AxisRules, length: int, sum_ND):
    """What all devices have added to the tokens, with the tokens."""
    sum_BTD = sum_ND.reshape(-1, length // ways(axes.length, jax.sharding.get_abstract_mesh()), sum_ND.shape[-1])
    if shared := _shared(axes):
        sum_BTD = jax.lax.psum_scatter(sum_BTD, shared, scatter_dimension=0, tiled=True)
    return jax.lax.psum(sum_BTD, _only_experts(axes))


def _route(experts: ExpertsConfig, x_BTD, is_real_BT, router_DE) -> tuple[Route, RouterSums]:
    """Each token's experts and their weights, and the sums of these rows.

    The products are float32 to the last bit: accelerators would otherwise round their operands, and near ties turn.
    """
    logits_BTE = jnp.einsum(
        "BTD,DE->BTE", x_BTD.astype(jnp.float32), router_DE.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    log_z_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
    probability_BTE = jnp.exp(logits_BTE - log_z_BT[..., None])
    weight_BTC, expert_BTC = jax.lax.top_k(probability_BTE, experts.per_token)
    if experts.normalize:
        weight_BTC = weight_BTC / jnp.sum(weight_BTC, axis=-1, keepdims=True)
    expert_BTC = jnp.where(is_real_BT[..., None], expert_BTC, experts.num_experts)
    real_BT = is_real_BT.astype(jnp.float32)
    chosen_BTE = jnp.sum(jax.nn.one_hot(expert_BTC, experts.num_experts, dtype=jnp.float32), axis=-2)
    sums = RouterSums(
        chosen_E=jnp.sum(chosen_BTE, axis=(0, 1)),
        probability_E=jnp.sum(probability_BTE * real_BT[..., None], axis=(0, 1)),
        log_z_squared=jnp.sum(jnp.square(log_z_BT) * real_BT),
        tokens=jnp.sum(real_BT),
    )
    return Route(expert_BTC, weight_BTC.astype(x_BTD.dtype)), sums
