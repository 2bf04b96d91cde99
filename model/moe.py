"""A mixture of expert MLPs: float32 routing, every token served, and the sums router losses are made of.

Letters beside the project's: C counts a token's chosen experts, P its pairs with them, over all tokens at hand.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model.config import ExpertsConfig, ModelConfig
from model.grouped_product import multiply_groups
from model.layers import activate, normal_initializer
from model.parallel import AxisRules, axis_names, ways


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
        pairs = _pairs_spec(axes)
        collect = jax.shard_map(
            functools.partial(_collect, cfg, axes),
            in_specs=(tokens, real, jax.P(None, None)),
            out_specs=(pairs, jax.P()),
        )
        run = jax.shard_map(
            functools.partial(_run, cfg), in_specs=(pairs.rows_PD, pairs.sizes_E, used), out_specs=pairs.rows_PD,
            check_vma=False,
        )  # fmt: skip
        give_back = jax.shard_map(functools.partial(_give_back, axes), in_specs=(pairs,), out_specs=tokens)
        sent, sums = collect(*jax.reshard((x_BTD, is_real_BT, router_DE), (tokens, real, jax.P(None, None))))
        return give_back(sent._replace(rows_PD=run(sent.rows_PD, sent.sizes_E, weights))), sums


class Pairs(NamedTuple):
    """What one device computes: the pairs of tokens with its own experts first, expert by expert, and then the rest.

    Between `jax.shard_map`s the arrays of all devices stand one after the other.
    """

    rows_PD: Float[Array, "P D"]
    sizes_E: Int[Array, "E"]
    """How many pairs each of the device's experts has."""
    order_P: Int[Array, "P"]
    """Which pair, in the order of tokens, stands at each place."""
    back_P: Int[Array, "P"]
    """Where each pair stands."""
    weight_BTC: Float[Array, "B T C"]


def _pairs_spec(axes: AxisRules) -> Pairs:
    tokens, elsewhere = _token_axes(axes)
    each = tokens + elsewhere or None
    return Pairs(jax.P(each, None), jax.P(each), jax.P(each), jax.P(each), jax.P(each, None, None))


def _token_axes(axes: AxisRules) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Mesh axes along which tokens are split, and those along which only experts or their width are."""
    tokens = axis_names(axes.batch) + axis_names(axes.length)
    return tokens, tuple(name for name in axis_names(axes.experts) + axis_names(axes.mlp) if name not in tokens)


def _shared_axes(axes: AxisRules) -> tuple[str, ...]:
    """Mesh axes of both rows and experts: along them rows are gathered, and given back."""
    return tuple(name for name in axis_names(axes.experts) if name in axis_names(axes.batch))


def _collect(cfg: ModelConfig, axes: AxisRules, x_BTD, is_real_BT, router_DE) -> tuple[Pairs, RouterSums]:
    """Routes one device's tokens; the pairs of its experts with them and with the tokens of those it shares rows with.

    Each device of such a group, and of those that split the experts' width, computes what its part adds to all rows.
    """
    assert cfg.experts is not None
    (expert_BTC, weight_BTC), sums = _route(cfg.experts, x_BTD, is_real_BT, router_DE)
    tokens, elsewhere = _token_axes(axes)
    here = (x_BTD, expert_BTC, weight_BTC)
    if shared := _shared_axes(axes):
        here = jax.tree.map(lambda x: jax.lax.all_gather(x, shared, axis=0, tiled=True), here)
    x_BTD, expert_BTC, weight_BTC = jax.lax.pcast(here, elsewhere, to="varying")
    experts = axis_names(axes.experts)
    num = cfg.experts.num_experts // ways(experts, jax.sharding.get_abstract_mesh())
    first = jax.lax.axis_index(experts) * num if experts else 0
    local_P = expert_BTC.reshape(-1) - first
    local_P = jnp.where((local_P >= 0) & (local_P < num), local_P, num)
    order_P = jnp.argsort(local_P, stable=True)
    back_P = jnp.argsort(order_P)
    rows_PD = jnp.broadcast_to(x_BTD[:, :, None], (*expert_BTC.shape, cfg.dim)).reshape(-1, cfg.dim)
    pairs = Pairs(
        rows_PD=_permute(rows_PD, order_P, back_P),
        sizes_E=jnp.sum(local_P[:, None] == jnp.arange(num)[None], axis=0),
        order_P=order_P,
        back_P=back_P,
        weight_BTC=weight_BTC,
    )
    return pairs, jax.tree.map(lambda total: jax.lax.psum(total, tokens), sums)


def _run(cfg: ModelConfig, rows_PD, sizes_E, weights: dict[str, Array]):
    """What one device's experts, and its part of their width, make of its pairs; zeros for pairs with other experts."""
    up_PF = multiply_groups(rows_PD, weights["up"], sizes_E)
    gate_PF = multiply_groups(rows_PD, weights["gate"], sizes_E) if cfg.gated else up_PF
    hidden_PF = activate(cfg, gate_PF[None])[0]
    hidden_PF = hidden_PF * up_PF if cfg.gated else hidden_PF
    return multiply_groups(hidden_PF, weights["down"], sizes_E)


def _give_back(axes: AxisRules, pairs: Pairs):
    """Weighted sums of each token's pairs, over all devices that computed some of them, where the tokens are."""
    rows_PD = _permute(pairs.rows_PD, pairs.back_P, pairs.order_P)
    rows_BTCD = rows_PD.reshape(*pairs.weight_BTC.shape, -1)
    out_BTD = jnp.einsum("BTCD,BTC->BTD", rows_BTCD, pairs.weight_BTC)
    if shared := _shared_axes(axes):
        out_BTD = jax.lax.psum_scatter(out_BTD, shared, scatter_dimension=0, tiled=True)
    return jax.lax.psum(out_BTD, _token_axes(axes)[1])


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


@jax.custom_vjp
def _permute(x_PD, order_P, back_P):
    """Rows in another order. `back_P` is the inverse, so that the gradient is a gather too, not a scatter."""
    return x_PD[order_P]


def _permute_forward(x_PD, order_P, back_P):
    return x_PD[order_P], back_P


def _permute_backward(back_P, g_PD):
    return g_PD[back_P], None, None


_permute.defvjp(_permute_forward, _permute_backward)
