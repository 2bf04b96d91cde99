"""The product of rows with one matrix per group of rows: what a mixture of experts spends its time on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from model.attention_choice import platform_in_use

KERNEL_ROWS, KERNEL_DIM, KERNEL_WIDTH = 512, 1024, 768
"""A TPU's tiles: what of both operands (half as many rows in float32) and of the result is near the arithmetic at once.
As much as a v5e's compiler takes; not timed on one."""


@jax.custom_vjp
def multiply_groups(
    x_PD: Float[Array, "P D"], w_EDF: Float[Array, "E D F"], sizes_E: Int[Array, "E"]
) -> Float[Array, "P F"]:
    """Rows of group e times matrix e, in x's dtype; zeros for the rows that follow the last group.

    P rows lie group by group, `sizes_E` of each: three rows of sizes (1 0 1) give x0 w0, x1 w2 and zeros. Arrays on
    several devices are split by `jax.shard_map` first, with `check_vma=False`: kernels do not say along which mesh
    axes their results differ.

    On a TPU this is `jax.lax.ragged_dot`. Elsewhere XLA computes that as every row with every matrix (16 matrices on
    a CPU: 99 ms where this takes 5), so there a loop walks blocks of rows of one group: work grows with the rows only.
    The gradient for the matrices would be every row with every matrix on a TPU too: there it is megablox's kernel
    (`jax.experimental.pallas.ops.tpu.megablox`, after arXiv:2211.15841).
    """
    multiply = ragged_product if platform_in_use() == "tpu" else blocked_product
    return multiply(x_PD, w_EDF, sizes_E)


def _forward(x_PD, w_EDF, sizes_E):
    return multiply_groups(x_PD, w_EDF, sizes_E), (x_PD, w_EDF, sizes_E)


def _backward(saved, g_PF):
    x_PD, w_EDF, sizes_E = saved
    grad_x_PD = multiply_groups(g_PF, w_EDF.swapaxes(1, 2), sizes_E)
    multiply = kernel_outer if platform_in_use() == "tpu" else blocked_outer
    return grad_x_PD, multiply(x_PD, g_PF, sizes_E, w_EDF.dtype), None


multiply_groups.defvjp(_forward, _backward)


def ragged_product(
    x_PD: Float[Array, "P D"], w_EDF: Float[Array, "E D F"], sizes_E: Int[Array, "E"]
) -> Float[Array, "P F"]:
    """`multiply_groups` by the compiler's own instruction."""
    y_PF = jax.lax.ragged_dot(x_PD, w_EDF, sizes_E)
    # What the instruction leaves in rows of no group is not promised.
    is_grouped_P1 = (jnp.arange(x_PD.shape[0]) < jnp.sum(sizes_E))[:, None]
    return jnp.where(is_grouped_P1, y_PF, jnp.zeros_like(y_PF))


def kernel_outer(
    x_PD: Float[Array, "P D"],
    g_PF: Float[Array, "P F"],
    sizes_E: Int[Array, "E"],
    dtype: DTypeLike,
    is_interpreted: bool = False,
) -> Float[Array, "E D F"]:
    """The gradient of `multiply_groups` for its matrices, by megablox's kernel. Interpreted: for tests.

    Its sums are float32 and rounded once.
    """
    # Here, as only those who use it need the TPU's part of Pallas, which JAX calls experimental.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    rows, most_rows = x_PD.shape[0], KERNEL_ROWS * 2 // max(x_PD.dtype.itemsize, 2)
    tile = min(most_rows, -(-rows // 16) * 16)
    # The kernel wants whole tiles; rows of no group add nothing.
    x_PD, g_PF = (jnp.pad(a, ((0, -rows % tile), (0, 0))) for a in (x_PD, g_PF))
    tiling = (tile, _tile_width(x_PD.shape[1], KERNEL_DIM), _tile_width(g_PF.shape[1], KERNEL_WIDTH))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # the kernel's code needs both
        # It turns its left operand back before it reads it: the compiler drops both turns.
        return tgmm(x_PD.T, g_PF, sizes_E.astype(jnp.int32), jnp.dtype(dtype), tiling, interpret=is_interpreted)


def _tile_width(size: int, most: int) -> int:
    """The width of tiles, no more than `most`, that covers `size` with the fewest; of several, a multiple of 128."""
    tiles = -(-size // most)
    return size if tiles == 1 else -(-size // tiles // 128) * 128


def blocked_product(
    x_PD: Float[Array, "P D"], w_EDF: Float[Array, "E D F"], sizes_E: Int[Array, "E"]
) -> Float[Array, "P F"]:
    """`multiply_groups` by a loop over blocks of rows."""

    def multiply(y_PF, group, start, is_member_P1):
        size = is_member_P1.shape[0]
        rows_PD = jax.lax.dynamic_slice_in_dim(x_PD, start, size)
        before_PF = jax.lax.dynamic_slice_in_dim(y_PF, start, size)
        rows_PF = jnp.where(is_member_P1, rows_PD @ w_EDF[group], before_PF)
        return jax.lax.dynamic_update_slice_in_dim(y_PF, rows_PF, start, 0)

    zeros_PF = jnp.zeros((x_PD.shape[0], w_EDF.shape[2]), x_PD.dtype)
    return _fold_blocks(multiply, zeros_PF, x_PD.shape[0], sizes_E)


def blocked_outer(
    x_PD: Float[Array, "P D"], g_PF: Float[Array, "P F"], sizes_E: Int[Array, "E"], dtype: DTypeLike
) -> Float[Array, "E D F"]:
    """The gradient of `multiply_groups` for its matrices, by a loop over blocks of rows.

    Its sums are float32 and rounded once.
    """

    def add(grad_EDF, group, start, is_member_P1):
        size = is_member_P1.shape[0]
        rows_PD = jax.lax.dynamic_slice_in_dim(x_PD, start, size)
        rows_PD = jnp.where(is_member_P1, rows_PD, jnp.zeros_like(rows_PD))
        rows_PF = jax.lax.dynamic_slice_in_dim(g_PF, start, size)
        return grad_EDF.at[group].add(jnp.einsum("PD,PF->DF", rows_PD, rows_PF, preferred_element_type=jnp.float32))

    zeros_EDF = jnp.zeros((sizes_E.shape[0], x_PD.shape[1], g_PF.shape[1]), jnp.float32)
    return _fold_blocks(add, zeros_EDF, x_PD.shape[0], sizes_E).astype(dtype)


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
