"""The product of rows with one matrix per group of rows: what a mixture of experts spends its time on."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def multiply_groups(
    x_PD: Float[Array, "P D"], w_EDF: Float[Array, "E D F"], sizes_E: Int[Array, "E"], varying: tuple[str, ...] = ()
) -> Float[Array, "P F"]:
    """Rows of group e times matrix e, in x's dtype; zeros for the rows that follow the last group.

    P rows lie group by group, `sizes_E` of each: three rows of sizes (1 0 1) give x0 w0, x1 w2 and zeros. Arrays on
    several devices are split by `jax.shard_map` first; `varying` names the mesh axes along which its operands vary,
    the same for all three.

    On a TPU this is `jax.lax.ragged_dot`. Elsewhere XLA computes that as every row with every matrix (16 matrices on
    a CPU: 99 ms where this takes 5), so there a loop walks blocks of rows of one group: work grows with the rows only.
    """
    return _product(varying, x_PD, w_EDF, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(varying, x_PD, w_EDF, sizes_E):
    blocked = functools.partial(blocked_product, varying=varying)
    return jax.lax.platform_dependent(x_PD, w_EDF, sizes_E, tpu=ragged_product, default=blocked)


def _forward(varying, x_PD, w_EDF, sizes_E):
    return _product(varying, x_PD, w_EDF, sizes_E), (x_PD, w_EDF, sizes_E)


def _backward(varying, saved, g_PF):
    x_PD, w_EDF, sizes_E = saved
    grad_x_PD = _product(varying, g_PF, w_EDF.swapaxes(1, 2), sizes_E)
    blocked = functools.partial(blocked_outer, varying=varying)
    grad_w_EDF = jax.lax.platform_dependent(x_PD, g_PF, sizes_E, tpu=ragged_outer, default=blocked)
    return grad_x_PD, grad_w_EDF.astype(w_EDF.dtype), None


_product.defvjp(_forward, _backward)


def ragged_product(
    x_PD: Float[Array, "P D"], w_EDF: Float[Array, "E D F"], sizes_E: Int[Array, "E"]
) -> Float[Array, "P F"]:
    """`multiply_groups` by the compiler's own instruction."""
    y_PF = jax.lax.ragged_dot(x_PD, w_EDF, sizes_E)
    # What the instruction leaves in rows of no group is not promised.
    is_grouped_P1 = (jnp.arange(x_PD.shape[0]) < jnp.sum(sizes_E))[:, None]
    return jnp.where(is_grouped_P1, y_PF, jnp.zeros_like(y_PF))


def ragged_outer(
    x_PD: Float[Array, "P D"], g_PF: Float[Array, "P F"], sizes_E: Int[Array, "E"]
) -> Float[Array, "E D F"]:
    """The gradient of `multiply_groups` for its matrices, by the compiler's own instruction; float32."""
    over_rows = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(x_PD, g_PF, sizes_E, over_rows, preferred_element_type=jnp.float32)


def blocked_product(
    x_PD: Float[Array, "P D"], w_EDF: Float[Array, "E D F"], sizes_E: Int[Array, "E"], varying: tuple[str, ...] = ()
) -> Float[Array, "P F"]:
    """`multiply_groups` by a loop over blocks of rows."""

    def multiply(y_PF, group, start, is_member_P1):
        size = is_member_P1.shape[0]
        rows_PD = jax.lax.dynamic_slice_in_dim(x_PD, start, size)
        before_PF = jax.lax.dynamic_slice_in_dim(y_PF, start, size)
        rows_PF = jnp.where(is_member_P1, rows_PD @ w_EDF[group], before_PF)
        return jax.lax.dynamic_update_slice_in_dim(y_PF, rows_PF, start, 0)

    zeros_PF = jnp.zeros((x_PD.shape[0], w_EDF.shape[2]), x_PD.dtype)
    return _fold_blocks(multiply, jax.lax.pcast(zeros_PF, varying, to="varying"), x_PD.shape[0], sizes_E)


def blocked_outer(
    x_PD: Float[Array, "P D"], g_PF: Float[Array, "P F"], sizes_E: Int[Array, "E"], varying: tuple[str, ...] = ()
) -> Float[Array, "E D F"]:
    """The gradient of `multiply_groups` for its matrices, by a loop over blocks of rows; float32."""

    def add(grad_EDF, group, start, is_member_P1):
        size = is_member_P1.shape[0]
        rows_PD = jax.lax.dynamic_slice_in_dim(x_PD, start, size)
        rows_PD = jnp.where(is_member_P1, rows_PD, jnp.zeros_like(rows_PD))
        rows_PF = jax.lax.dynamic_slice_in_dim(g_PF, start, size)
        return grad_EDF.at[group].add(jnp.einsum("PD,PF->DF", rows_PD, rows_PF, preferred_element_type=jnp.float32))

    zeros_EDF = jnp.zeros((sizes_E.shape[0], x_PD.shape[1], g_PF.shape[1]), jnp.float32)
    return _fold_blocks(add, jax.lax.pcast(zeros_EDF, varying, to="varying"), x_PD.shape[0], sizes_E)


def _fold_blocks(visit: Callable[..., Array], value: Array, rows: int, sizes_E: Int[Array, "E"]) -> Array:
    """`value` after visit(value, group, start, is_member) of every block of rows from `start` on, group by group.

    A block ends where its group does: its rows that are not of the group are no members.
    """
    size = _block_size(rows, sizes_E.shape[0])
    blocks_E = (sizes_E + size - 1) // size
    last_block_E, last_row_E = jnp.cumsum(blocks_E), jnp.cumsum(sizes_E)

    def step(block: Int[Array, ""], value: Array) -> Array:
        group = jnp.sum(last_block_E <= block)
        before = last_block_E[group] - blocks_E[group]
        first = last_row_E[group] - sizes_E[group] + (block - before) * size
        start = jnp.minimum(first, rows - size)  # the array may end before the block does
        rows_P1 = start + jnp.arange(size)[:, None]
        is_member_P1: Bool[Array, "P 1"] = (rows_P1 >= first) & (rows_P1 < last_row_E[group])
        return visit(value, group, start, is_member_P1)

    return jax.lax.fori_loop(0, last_block_E[-1], step, value)


def _block_size(rows: int, groups: int) -> int:
    """Half of what a group has on average, so that part-filled blocks cost little; a power of two from 8 to 512."""
    size = 8
    while size < 512 and size * 4 * groups <= rows:
        size *= 2
    return min(size, rows)
