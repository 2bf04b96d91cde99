"""A two-operand einsum whose gradient is laid out well: it never transposes the wider of two arrays."""

import functools
import math
import string

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def contract(
    equation: str,
    x: Float[Array, "..."],
    w: Float[Array, "..."],
    *,
    out_spec: PartitionSpec,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """The einsum of x and w, partitioned by `out_spec`; `dtype` (of x by default) is what it is accumulated in.

    JAX's own gradient of `BTD,DF->BTF` for w contracts (BTF, BTD) in that order, for which XLA on a CPU writes out
    a transposed copy of its first operand, slower than the product itself. The order is free: this one puts the
    narrower operand first. Values agree to rounding; on accelerators both orders compile to the same.
    """
    return _contract(equation, out_spec, dtype, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _contract(equation, out_spec, dtype, x, w):
    return _product(equation, out_spec, dtype, x, w)


def _product(equation, out_spec, dtype, x, w):
    # einsum contracts in the order of the alphabet: letters in the order of x need no transposing first.
    ordered = str.maketrans(dict(zip(dict.fromkeys(filter(str.isalpha, equation)), string.ascii_letters, strict=False)))
    return jnp.einsum(equation.translate(ordered), x, w, preferred_element_type=dtype, out_sharding=out_spec)


def _forward(equation, out_spec, dtype, x, w):
    # Not `_contract`: in a function with a gradient of its own, a remat policy that keeps products sees none.
    return _product(equation, out_spec, dtype, x, w), (x, w)


def _backward(equation, out_spec, dtype, saved, g):
    x, w = saved
    operands, out_letters = equation.split("->")
    x_letters, w_letters = operands.split(",")
    grad_x = jnp.einsum(
        f"{out_letters},{w_letters}->{x_letters}", g, w.astype(g.dtype), out_sharding=jax.typeof(x).sharding.spec
    )
    shared = [letter for letter in w_letters if letter in x_letters and letter in out_letters]
    from_x = [letter for letter in w_letters if letter in x_letters and letter not in out_letters]
    from_g = [letter for letter in w_letters if letter not in x_letters]
    size = dict(zip(w_letters, w.shape, strict=True))
    axis = dict(zip(w_letters, jax.typeof(w).sharding.spec, strict=True))
    x_first = math.prod(size[letter] for letter in from_x) <= math.prod(size[letter] for letter in from_g)
    order = [*shared, *from_x, *from_g] if x_first else [*shared, *from_g, *from_x]
    grad_w = jnp.einsum(
        f"{x_letters},{out_letters}->{''.join(order)}", x.astype(g.dtype), g,
        out_sharding=PartitionSpec(*(axis[letter] for letter in order)),
    )  # fmt: skip
    grad_w = jnp.transpose(grad_w, [order.index(letter) for letter in w_letters])
    return grad_x.astype(x.dtype), grad_w.astype(w.dtype)


_contract.defvjp(_forward, _backward)
