"""What one device's experts add to tokens: pairs of a token and an expert, expert by expert, so many at a time.

Letters beside the project's: N counts tokens, C a token's chosen experts, P their pairs (N x C), Q pairs at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model.config import ModelConfig
from model.grouped_product import multiply_groups
from model.layers import activate

PAIRS_LOOP = "pair_blocks"
"""The scope of the loop over blocks, by which compiled programs tell it from others."""


def apply_experts(
    cfg: ModelConfig,
    most: int,
    x_ND: Float[Array, "N D"],
    expert_NC: Int[Array, "N C"],
    weight_NC: Float[Array, "N C"],
    matrices: dict[str, Float[Array, "E _ _"]],
) -> Float[Array, "N D"]:
    """For each token, the weighted sum of its experts' MLPs; pairs with expert E or later, which are elsewhere, add 0.

    With `most` less than P, pairs are computed that many at a time: memory and work are those of the pairs that there
    are, in whole blocks, where P is what the worst routing could bring. The gradient then computes each block again.
    """
    order = _sort(expert_NC, experts=matrices["down"].shape[0])
    if most >= expert_NC.size:
        return _add_block(cfg, expert_NC.size, order, x_ND, weight_NC, matrices, 0)
    return _add_blocks(cfg, most, order, x_ND, weight_NC, matrices)


class Order(NamedTuple):
    """Pairs in the order of their experts; those with experts elsewhere come last."""

    pair_P: Int[Array, "P"]
    """Which pair, counted token by token, stands at each place."""
    place_NC: Int[Array, "N C"]
    """Where each pair stands."""
    ends_E: Int[Array, "E"]
    """The place after each expert's last pair."""


def _sort(expert_NC: Int[Array, "N C"], *, experts: int) -> Order:
    expert_P = jnp.minimum(expert_NC.reshape(-1), experts)
    pair_P = jnp.argsort(expert_P, stable=True)
    sizes_E = jnp.sum(expert_P[:, None] == jnp.arange(experts)[None], axis=0)
    return Order(pair_P, jnp.argsort(pair_P).reshape(expert_NC.shape), jnp.cumsum(sizes_E))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _add_blocks(cfg: ModelConfig, most: int, order: Order, x_ND, weight_NC, matrices):
    """All blocks of `most` pairs that have one with an expert of this device; usually one."""

    def add(block, sum_ND):
        return sum_ND + _add_block(cfg, most, order, x_ND, weight_NC, matrices, block * most)

    return _walk(order, most, add, jnp.zeros_like(x_ND))


def _add_blocks_forward(cfg, most, order, x_ND, weight_NC, matrices):
    return _add_blocks(cfg, most, order, x_ND, weight_NC, matrices), (order, x_ND, weight_NC, matrices)


def _add_blocks_backward(cfg, most, saved, g_ND):
    order, *inputs = saved

    def add(block, sums):
        def run(x_ND, weight_NC, matrices):
            return _add_block(cfg, most, order, x_ND, weight_NC, matrices, block * most)

        _, pull = jax.vjp(run, *inputs)
        return jax.tree.map(jnp.add, sums, pull(g_ND))

    zeros = jax.tree.map(jnp.zeros_like, tuple(inputs))
    return None, *_walk(order, most, add, zeros)


_add_blocks.defvjp(_add_blocks_forward, _add_blocks_backward)


def _walk(order: Order, most: int, add: Callable[[Any, Any], Any], start: Any) -> Any:
    """`start` after add(block, value) of each block of `most` pairs that are not all elsewhere."""
    with jax.named_scope(PAIRS_LOOP):
        return jax.lax.fori_loop(0, (order.ends_E[-1] + most - 1) // most, add, start)


class Block(NamedTuple):
    """Q places of an `Order`."""

    pair_Q: Int[Array, "Q"]
    at_NC: Int[Array, "N C"]
    """Where in the block each pair stands, if it does."""
    is_here_NC: Bool[Array, "N C"]
    """Whether a pair stands in the block and has an expert of this device."""


def _add_block(cfg: ModelConfig, size: int, order: Order, x_ND, weight_NC, matrices, start):
    """The sum for each token over its pairs at `size` places from `start` on."""
    # Past the end there may be no pair: one that has its place elsewhere stands there for none.
    pair_Q = jnp.take(order.pair_P, start + jnp.arange(size), mode="fill", fill_value=0)
    at_NC = order.place_NC - start
    is_here_NC = (at_NC >= 0) & (at_NC < size) & (order.place_NC < order.ends_E[-1])
    block = Block(pair_Q, jnp.clip(at_NC, 0, size - 1), is_here_NC)
    within_E = jnp.clip(order.ends_E - start, 0, size)
    sizes_E = jnp.diff(within_E, prepend=0)
    weight_Q = _pick(weight_NC, block)
    y_QD = _run_mlps(cfg, _send(x_ND, block), sizes_E, matrices) * weight_Q[:, None]
    return _collect(y_QD, block)


def _run_mlps(cfg: ModelConfig, x_QD, sizes_E, matrices):
    """Each row through the MLP of its expert, or a device's part of that MLP's width; zeros past the last expert's."""
    up_QF = multiply_groups(x_QD, matrices["up"], sizes_E)
    gate_QF = multiply_groups(x_QD, matrices["gate"], sizes_E) if cfg.gated else up_QF
    hidden_QF = activate(cfg, gate_QF[None])[0]
    hidden_QF = hidden_QF * up_QF if cfg.gated else hidden_QF
    return multiply_groups(hidden_QF, matrices["down"], sizes_E)


# The gradient of a choice of rows is a scatter; where each row stands is known, so both are written as choices.


@jax.custom_vjp
def _send(x_ND, block: Block):
    """The tokens of a block's pairs."""
    return x_ND[block.pair_Q // block.at_NC.shape[1]]


@jax.custom_vjp
def _collect(y_QD, block: Block):
    """The sum of each token's pairs."""
    return jnp.sum(jnp.where(block.is_here_NC[..., None], y_QD[block.at_NC], jnp.zeros_like(y_QD, shape=())), axis=1)


@jax.custom_vjp
def _pick(weight_NC, block: Block):
    """The weights of a block's pairs."""
    return weight_NC.reshape(-1)[block.pair_Q]


def _pick_backward(block: Block, g_Q):
    return jnp.where(block.is_here_NC, g_Q[block.at_NC], jnp.zeros_like(g_Q, shape=())), None


_send.defvjp(lambda x_ND, block: (_send(x_ND, block), block), lambda block, g_QD: (_collect(g_QD, block), None))
_collect.defvjp(lambda y_QD, block: (_collect(y_QD, block), block), lambda block, g_ND: (_send(g_ND, block), None))
_pick.defvjp(lambda weight_NC, block: (_pick(weight_NC, block), block), _pick_backward)
