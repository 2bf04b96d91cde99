"""What each remat policy computes again, told from the products of the compiled gradient."""

import functools

import jax
import jax.numpy as jnp
import pytest
from toy import AXES, TOY, mesh_of

from launch.plan_ahead.costs import count_flops
from launch.plan_ahead.hlo import parse_program
from model.config import ComputeConfig
from model.transformer import abstract, apply_hidden

ROWS, LENGTH = 4, 32
PROJECTIONS = 2 * TOY.num_layers * ROWS * LENGTH * (16 * 32 + 2 * 16 * 16 + 32 * 16 + 2 * 16 * 24)
"""Forward products with weights, but for the MLP's last one, whose result no gradient needs."""
ATTENTION = 2 * TOY.num_layers * ROWS * LENGTH * LENGTH * 2 * 8 * 4
"""Scores and weighted sums of all pairs; the blocks are walked over in pairs that are all compiled."""


def gradient_flops(remat, attention):
    compute = ComputeConfig(remat=remat, attention=attention, attention_block=16)

    def total(params, ids):
        hidden_BTD, _ = apply_hidden(TOY, AXES, params, ids, ids, ids, compute=compute)
        return jnp.sum(jnp.square(hidden_BTD))

    with jax.set_mesh(mesh_of((1, 1))):
        ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
        lowered = jax.jit(jax.grad(total)).lower(abstract(TOY, AXES), ids)
        return count_flops(parse_program(lowered.compile().as_text()))


unremat = functools.cache(functools.partial(gradient_flops, "none"))


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_attention_is_kept_and_its_forward_pass_does_not_run_again(attention):
    """Its residuals had a name that no policy knew: `block` ran the kernel twice."""
    assert gradient_flops("attention", attention) - unremat(attention) == PROJECTIONS


def test_products_with_weights_are_kept():
    """They were computed again, all of them, as with `block`: the policy saw no product, only functions around them."""
    assert gradient_flops("products", "blockwise") - unremat("blockwise") == ATTENTION


def test_a_block_computes_both_again():
    assert gradient_flops("block", "blockwise") - unremat("blockwise") == PROJECTIONS + ATTENTION
