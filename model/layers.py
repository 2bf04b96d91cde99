"""Einsum, Embedding, Norm and activations: the only places, with the experts, where parameters are created."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from model.config import ModelConfig
from model.contraction import contract
from model.lookup import look_up


def normal_initializer(std: float, spec: PartitionSpec):
    """An initializer drawing float32 from a normal of this standard deviation, already partitioned by `spec`."""

    def initialize(key: jax.Array, shape: Sequence[int]) -> jax.Array:
        return std * jax.random.normal(key, shape, dtype=jnp.float32, out_sharding=spec)

    return initialize


def constant_initializer(value: float, spec: PartitionSpec | None = None):
    """An initializer of one value everywhere, float32; replicated unless a spec is given."""

    def initialize(_key: jax.Array, shape: Sequence[int]) -> jax.Array:
        return jnp.full(shape, value, jnp.float32, out_sharding=spec)

    return initialize


class Einsum(nn.Module):
    """A contraction with one weight, e.g. `BTD,DNH->BTNH`, and optionally a bias of the output's own dimensions."""

    equation: str
    shape: tuple[int, ...]
    std: float
    weight_spec: PartitionSpec
    out_spec: PartitionSpec
    bias: bool = False
    out_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """The contraction, in x's dtype unless `out_dtype` says otherwise."""
        weight = self.param("weight", normal_initializer(self.std, self.weight_spec), self.shape)
        out = contract(self.equation, x, weight.astype(x.dtype), out_spec=self.out_spec, dtype=self.out_dtype)
        if not self.bias:
            return out
        bias = self.param("bias", constant_initializer(0.0, PartitionSpec(*self.out_spec[2:])), out.shape[2:])
        return out + bias.astype(x.dtype)[None, None]


class Embedding(nn.Module):
    """A table of V rows: ids to vectors, and vectors to logits when the head is tied."""

    vocab_size: int
    dim: int
    scale: float
    table_spec: PartitionSpec
    hidden_spec: PartitionSpec
    logits_spec: PartitionSpec

    def setup(self):
        """Creates the table with unit-variance logits at the start: std 1 / sqrt(D)."""
        self.weight = self.param(
            "weight", normal_initializer(self.dim**-0.5, self.table_spec), (self.vocab_size, self.dim)
        )

    def __call__(self, tokens_BT: Int[Array, "B T"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
        """Vectors of the ids in `dtype`, times the scale rounded to it (as the reference does for Gemma)."""
        rows_BTD = look_up(self.weight, tokens_BT, out_spec=self.hidden_spec, dtype=dtype)
        return rows_BTD if self.scale == 1.0 else rows_BTD * jnp.asarray(self.scale, dtype)

    def decode(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits against every row, accumulated in float32."""
        weight_VD = self.weight.astype(x_BTD.dtype)
        return contract("BTD,VD->BTV", x_BTD, weight_VD, out_spec=self.logits_spec, dtype=jnp.float32)


class Norm(nn.Module):
    """x / rms(x) * scale, or with its mean taken away first, in float32. Source: arXiv:1910.07467, arXiv:1607.06450.

    A scale of `scale_dims` dimensions; the mean is over the last of x, or over the last two if `over_heads`.
    """

    cfg: ModelConfig
    bias: bool = False
    scale_dims: int = 1
    over_heads: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """The normalised vectors, in x's dtype."""
        shape, axes = x.shape[-self.scale_dims :], (-2, -1) if self.over_heads else -1
        scale = self.param("scale", constant_initializer(0.0 if self.cfg.norm_plus_one else 1.0), shape)
        scale = scale.astype(jnp.float32) + (1.0 if self.cfg.norm_plus_one else 0.0)
        wide = x.astype(jnp.float32)
        if self.cfg.norm == "layer":
            wide = wide - jnp.mean(wide, axis=axes, keepdims=True)
        mean_square = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
        lead = (None,) * (x.ndim - self.scale_dims)
        normed = wide * jax.lax.rsqrt(mean_square + self.cfg.norm_eps) * scale[lead]
        if self.bias:
            bias = self.param("bias", constant_initializer(0.0), shape)
            normed = normed + bias.astype(jnp.float32)[lead]
        return normed.astype(x.dtype)


class XIELU(nn.Module):
    """A quadratic that continues as an exponential, with a learned strength on each side. Source: arXiv:2411.13010."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        """The activation, in x's dtype."""
        beta, below_zero = 0.5, -1e-6
        initial = (0.8, 0.8 - beta)
        # Kept as what softplus maps to the strengths, as the reference does.
        strengths = (
            self.param(name, constant_initializer(math.log(math.expm1(value))), ()).astype(x.dtype)
            for name, value in zip(("positive", "negative"), initial, strict=True)
        )
        positive, negative = (nn.softplus(strength) for strength in strengths)
        above = positive * x * x
        below = (jnp.expm1(jnp.minimum(x, below_zero)) - x) * (negative + beta)
        return jnp.where(x > 0, above, below) + beta * x


def activate(cfg: ModelConfig, x_BTF: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """The config's activation; called inside a Linen module, which then owns xIELU's two scalars."""
    match cfg.activation:
        case "silu":
            return nn.silu(x_BTF)
        case "gelu":
            return nn.gelu(x_BTF, approximate=False)
        case "gelu_tanh":
            return nn.gelu(x_BTF, approximate=True)
        case "relu":
            return nn.relu(x_BTF)
        case "relu2":
            return jnp.square(nn.relu(x_BTF))
        case "xielu":
            return XIELU(name="activation")(x_BTF)


def soft_cap(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """c tanh(x / c), which never leaves +-c; x itself when c is 0."""
    return cap * jnp.tanh(x / cap) if cap else x
