"""Einsum, Embedding and RMSNorm: the only places where parameters are created."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from model.contraction import contract


def normal_initializer(std: float, spec: PartitionSpec):
    """An initializer drawing float32 from a normal of this standard deviation, already partitioned by `spec`."""

    def initialize(key: jax.Array, shape: Sequence[int]) -> jax.Array:
        return std * jax.random.normal(key, shape, dtype=jnp.float32, out_sharding=spec)

    return initialize


class Einsum(nn.Module):
    """A contraction with one float32 weight, e.g. `BTD,DNH->BTNH`."""

    equation: str
    shape: tuple[int, ...]
    std: float
    weight_spec: PartitionSpec
    out_spec: PartitionSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """The contraction, in x's dtype."""
        weight = self.param("weight", normal_initializer(self.std, self.weight_spec), self.shape)
        return contract(self.equation, x, weight.astype(x.dtype), out_spec=self.out_spec)


class Embedding(nn.Module):
    """A table of V rows: ids to vectors, and vectors to logits when the head is tied."""

    vocab_size: int
    dim: int
    table_spec: PartitionSpec
    hidden_spec: PartitionSpec
    logits_spec: PartitionSpec

    def setup(self):
        """Creates the table with unit-variance logits at the start: std 1 / sqrt(D)."""
        self.weight = self.param(
            "weight", normal_initializer(self.dim**-0.5, self.table_spec), (self.vocab_size, self.dim)
        )

    def encode(self, tokens_BT: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
        """Vectors of the ids, scaled to unit variance."""
        rows = self.weight.at[tokens_BT].get(out_sharding=self.hidden_spec)
        return (rows * self.dim**0.5).astype(dtype)

    def decode(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits against every row, accumulated in float32."""
        weight_VD = self.weight.astype(x_BTD.dtype)
        return contract("BTD,VD->BTV", x_BTD, weight_VD, out_spec=self.logits_spec, dtype=jnp.float32)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, in float32. Source: arXiv:1910.07467."""

    eps: float

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The normalised vectors, in x's dtype."""
        scale = self.param("scale", lambda _, shape: jnp.ones(shape, jnp.float32), (x_BTD.shape[-1],))
        wide = x_BTD.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.eps) * scale[None, None, :]).astype(x_BTD.dtype)
