"""Pairs of tokens and experts, a block at a time, against all at once and against every expert with every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import TOY, assert_close_trees

from model.expert_pairs import apply_experts

TOKENS, CHOSEN, EXPERTS, WIDTH = 12, 3, 4, 5
PAIRS = TOKENS * CHOSEN


def draw(gated=True):
    """Tokens, weights, matrices and a cotangent."""
    rng = np.random.default_rng(0)
    names = ("gate", "up") if gated else ("up",)
    matrices = {name: rng.normal(size=(EXPERTS, TOY.dim, WIDTH)).astype(np.float32) for name in names}
    matrices["down"] = rng.normal(size=(EXPERTS, WIDTH, TOY.dim)).astype(np.float32)
    x_ND, g_ND = (rng.normal(size=(TOKENS, TOY.dim)).astype(np.float32) for _ in range(2))
    return x_ND, rng.uniform(size=(TOKENS, CHOSEN)).astype(np.float32), matrices, g_ND


def choose(kind):
    """Of six experts the first four are here."""
    rng = np.random.default_rng(1)
    if kind == "some elsewhere":
        expert_NC = np.array([rng.permutation(6)[:CHOSEN] for _ in range(TOKENS)])
    elif kind == "all here":
        expert_NC = np.array([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(TOKENS)])
    elif kind == "all the same":
        expert_NC = np.full((TOKENS, CHOSEN), 2)
    else:
        expert_NC = np.full((TOKENS, CHOSEN), EXPERTS)
    return np.minimum(expert_NC, EXPERTS).astype(np.int32)


def every(x_ND, expert_NC, weight_NC, matrices):
    """Every expert computes every token; those not chosen get weight zero."""
    up_NEF = jnp.einsum("ND,EDF->NEF", x_ND, matrices["up"])
    hidden_NEF = jax.nn.silu(jnp.einsum("ND,EDF->NEF", x_ND, matrices["gate"])) * up_NEF
    chosen_NCE = jax.nn.one_hot(expert_NC, EXPERTS)
    weight_NE = jnp.einsum("NC,NCE->NE", weight_NC, chosen_NCE)
    return jnp.einsum("NEF,EFD,NE->ND", hidden_NEF, matrices["down"], weight_NE)


@functools.partial(jax.jit, static_argnums=0)
def run(forward, x_ND, expert_NC, weight_NC, matrices, g_ND):
    """Outputs, and the gradients of sum(outputs * g) for tokens, weights and matrices."""
    out_ND, pull = jax.vjp(lambda x, weight, m: forward(x, expert_NC, weight, m), x_ND, weight_NC, matrices)
    return out_ND, pull(g_ND)


FORWARD = {most: functools.partial(apply_experts, TOY, most) for most in (7, 16, 35, PAIRS)}
"""By pairs at a time: blocks that end within experts and past the last pair, and one block."""


@pytest.mark.parametrize("kind", ["some elsewhere", "all here", "all the same", "none here"])
@pytest.mark.parametrize("most", FORWARD)
def test_blocks_of_pairs_change_no_value_and_no_gradient(most, kind):
    x_ND, weight_NC, matrices, g_ND = draw()
    assert TOY.gated and TOY.activation == "silu"
    given = run(FORWARD[most], x_ND, choose(kind), weight_NC, matrices, g_ND)
    wanted = run(every, x_ND, choose(kind), weight_NC, matrices, g_ND)
    assert_close_trees(given, wanted)
    assert np.any(given[0]) == (kind != "none here")


def test_no_more_rows_than_a_block_s_go_through_the_mlps_at_once():
    """The worst routing would bring every pair to one device: as many rows must not be made for it."""

    def arrays(most):
        inputs = draw()
        text = run.lower(FORWARD[most], inputs[0], choose("all here"), *inputs[1:]).as_text()
        return f"tensor<{PAIRS}x{TOY.dim}xf32>" in text or f"tensor<{PAIRS}x{WIDTH}xf32>" in text

    assert not arrays(7) and arrays(PAIRS)


def test_gradients_in_bfloat16_are_near_those_in_float32():
    x_ND, weight_NC, matrices, g_ND = draw()
    wanted = run(FORWARD[PAIRS], x_ND, choose("all here"), weight_NC, matrices, g_ND)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (x_ND, weight_NC, matrices, g_ND))
    given = run(FORWARD[16], half[0], choose("all here"), *half[1:])
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(one, np.float32) - other) / np.linalg.norm(other)
        assert error < 0.02
