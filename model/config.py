"""What a decoder is (`ModelConfig`) and how it is computed (`ComputeConfig`)."""

from typing import Annotated, Literal

import jax.numpy as jnp
import msgspec

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pre-norm decoder: RMSNorm, grouped-query attention, RoPE, SwiGLU. Source: arXiv:2302.13971, arXiv:2305.13245.

    Everything here changes the function that is computed, so it travels with the checkpoint.
    """

    vocab_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Rows of the embedding. 0 in a recipe: the tokenizer's size."""
    num_layers: AtLeastOne
    dim: AtLeastOne
    """Model width (D)."""
    num_heads: AtLeastOne
    num_kv_heads: AtLeastOne
    head_dim: Annotated[int, msgspec.Meta(ge=2)]
    """Even; not tied to dim / num_heads."""
    mlp_dim: AtLeastOne
    rope_base: Positive = 10_000.0
    norm_eps: Positive = 1e-6
    tied_head: bool = True
    """The output head is the transposed embedding."""

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                f"use one of {_divisors(self.num_heads)} for num_kv_heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary embedding needs pairs: use {self.head_dim + 1}")


class ComputeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the same function is computed: precision, memory, unrolling. Never part of a checkpoint's meaning.

    Parameters, norms, softmax and losses are float32 whatever `dtype` says.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products. bfloat16 on TPU and GPU; float32 on CPU, where XLA has no fast bfloat16."""
    remat: Literal["none", "block"] = "none"
    """`block`: keep only each layer's input for the backward pass and compute the rest again."""
    scan_unroll: AtLeastOne = 1
    """Layers per iteration of the scan over layers; num_layers unrolls it fully (longer compile, faster on CPU)."""

    @property
    def jax_dtype(self) -> jnp.dtype:
        """The NumPy dtype of activations."""
        return jnp.dtype(self.dtype)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
