"""Rotary position embedding. Source: arXiv:2104.09864, in the half-split pairing that Llama checkpoints use."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(positions_BT: Int[Array, "B T"], *, head_dim: int, base: float) -> Float[Array, "B T {head_dim//2}"]:
    """Angle of each position and frequency, in radians, float32."""
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions_BT.astype(jnp.float32)[:, :, None] * frequency[None, None, :]


def rotate(x_BTNH: Float[Array, "B T N H"], angles: Float[Array, "B T H/2"]) -> Float[Array, "B T N H"]:
    """x with dimension i of each head's first half rotated against dimension i of its second half."""
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)
