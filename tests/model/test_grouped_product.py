"""Rows times the matrix of their group, in both formulations, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import TOLERANCE

from model.grouped_product import blocked_outer, blocked_product, kernel_outer, multiply_groups, ragged_product

ROWS, DIM, WIDTH = 24, 3, 5

group_sizes = st.lists(st.integers(0, 12), min_size=3, max_size=3).filter(lambda sizes: sum(sizes) <= ROWS)


def loop(x_PD, w_EDF, sizes):
    """Values, and a function of g that gives the gradients of sum(values * g) for x and w."""
    group_P = np.repeat(np.arange(len(sizes)), sizes)
    y_PF = np.zeros((len(x_PD), w_EDF.shape[2]))
    for row, group in enumerate(group_P):
        y_PF[row] = x_PD[row] @ w_EDF[group]

    def gradients(g_PF):
        grad_x, grad_w = np.zeros(x_PD.shape), np.zeros(w_EDF.shape)
        for row, group in enumerate(group_P):
            grad_x[row] = w_EDF[group] @ g_PF[row]
            grad_w[group] += np.outer(x_PD[row], g_PF[row])
        return grad_x, grad_w

    return y_PF, gradients


def draw(seed=0, rows=ROWS, groups=3):
    rng = np.random.default_rng(seed)
    shapes = (rows, DIM), (groups, DIM, WIDTH), (rows, WIDTH)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


@jax.jit
def run(x_PD, w_EDF, sizes_E, g_PF):
    y_PF, pull = jax.vjp(lambda x, w: multiply_groups(x, w, sizes_E), x_PD, w_EDF)
    return y_PF, *pull(g_PF)


@pytest.mark.parametrize("sizes", [[24, 0, 0], [0, 0, 24], [0, 0, 0], [8, 8, 8], [7, 1, 16], [1, 9, 2]])
def test_every_row_meets_the_matrix_of_its_group(sizes):
    x_PD, w_EDF, g_PF = draw()
    y_PF, gradients = loop(x_PD, w_EDF, sizes)
    results = run(x_PD, w_EDF, np.array(sizes, np.int32), g_PF)
    for result, wanted in zip(results, (y_PF, *gradients(g_PF)), strict=True):
        np.testing.assert_allclose(result, wanted, **TOLERANCE)


@settings(max_examples=40)
@given(sizes=group_sizes, seed=st.integers(0, 99))
def test_any_sizes_give_the_loops_values_and_gradients(sizes, seed):
    x_PD, w_EDF, g_PF = draw(seed)
    y_PF, gradients = loop(x_PD, w_EDF, sizes)
    results = run(x_PD, w_EDF, np.array(sizes, np.int32), g_PF)
    for result, wanted in zip(results, (y_PF, *gradients(g_PF)), strict=True):
        np.testing.assert_allclose(result, wanted, **TOLERANCE)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_blocks_longer_and_shorter_than_the_array_change_no_value(rows):
    """One row is less than the shortest block; 300 rows of two groups make blocks of 64 that end within groups."""
    x_PD, w_EDF, g_PF = draw(rows=rows, groups=2)
    sizes = [rows // 3, rows - rows // 3]
    y_PF, gradients = loop(x_PD, w_EDF, sizes)
    results = run(x_PD, w_EDF, np.array(sizes, np.int32), g_PF)
    for result, wanted in zip(results, (y_PF, *gradients(g_PF)), strict=True):
        np.testing.assert_allclose(result, wanted, **TOLERANCE)


@pytest.mark.parametrize("sizes", [[7, 0, 16], [3, 1, 2]])
def test_the_product_for_tpus_gives_the_same(sizes):
    """No TPU is needed to compare them; what a TPU's compiler makes of it is its own affair."""
    x_PD, w_EDF, _ = map(jnp.asarray, draw())
    sizes_E = jnp.array(sizes)
    np.testing.assert_allclose(ragged_product(x_PD, w_EDF, sizes_E), blocked_product(x_PD, w_EDF, sizes_E), **TOLERANCE)


@pytest.mark.parametrize(
    "sizes", [[0, 0, 0], [7, 0, 16], [3, 1, 2], [24, 0, 0]], ids=["none", "all_but_one", "with_rest", "one"]
)
def test_the_gradients_kernel_for_tpus_gives_the_same(sizes):
    x_PD, _, g_PF = map(jnp.asarray, draw())
    x_PD = x_PD.at[sum(sizes) :].set(1e3)  # rows of no group, which must add nothing
    grad_EDF = kernel_outer(x_PD, g_PF, jnp.array(sizes), jnp.float32, is_interpreted=True)
    np.testing.assert_allclose(grad_EDF, blocked_outer(x_PD, g_PF, jnp.array(sizes), jnp.float32), **TOLERANCE)


def test_the_gradients_kernel_for_tpus_in_several_tiles_gives_the_same():
    """Rows, and both sides of the matrices, are no multiple of the tiles, which end within groups."""
    rng = np.random.default_rng(0)
    x_PD = jnp.asarray(rng.normal(size=(600, 1040)), jnp.bfloat16)
    g_PF = jnp.asarray(rng.normal(size=(600, 800)), jnp.bfloat16)
    sizes_E = jnp.array([250, 0, 300])
    wanted_EDF = blocked_outer(x_PD, g_PF, sizes_E, jnp.float32)
    given_EDF = kernel_outer(x_PD, g_PF, sizes_E, jnp.float32, is_interpreted=True)
    np.testing.assert_allclose(given_EDF, wanted_EDF, rtol=1e-4, atol=1e-4)
    rounded_EDF = kernel_outer(x_PD, g_PF, sizes_E, jnp.bfloat16, is_interpreted=True)
    np.testing.assert_array_equal(rounded_EDF, given_EDF.astype(jnp.bfloat16))


def test_rows_of_no_group_are_zeros_whatever_they_hold():
    x_PD, w_EDF, _ = draw()
    x_PD[10:] = np.nan
    for product in (ragged_product, blocked_product):
        y_PF = np.asarray(product(jnp.asarray(x_PD), jnp.asarray(w_EDF), jnp.array([4, 3, 2])))
        assert np.isfinite(y_PF).all() and not y_PF[9:].any() and y_PF[:9].all()


def test_gradients_of_bfloat16_matrices_are_summed_in_float32():
    """4,096 rows of ones in blocks of 8: sums kept in bfloat16 between blocks would stop growing at 2,048."""
    ones = jnp.ones((4096, 1), jnp.bfloat16)
    sizes_E = jnp.zeros(1024, jnp.int32).at[5].set(4096)
    _, pull = jax.vjp(lambda w: multiply_groups(ones, w, sizes_E), jnp.ones((1024, 1, 1), jnp.bfloat16))
    (grad_E11,) = pull(ones)
    assert grad_E11.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(grad_E11, np.float32).ravel(), 4096.0 * (np.arange(1024) == 5))
