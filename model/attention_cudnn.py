"""Attention on an NVIDIA GPU: cuDNN's flash attention, through `jax.nn.dot_product_attention`.

Segments and windows are given as a mask, of which cuDNN is handed two bytes for each query and key of a row, once for
all heads, and hands back as much as its gradient: T by T, but N heads and 4 bytes less than scores. JAX's packed layout
would need neither. It is private, asks for the most segments of any row beforehand and for a Hopper GPU, and JAX 0.10
derives the places of keys from the number of query heads, which is wrong with grouped queries.
"""

from typing import Literal

import jax
from jaxtyping import Array, Float

from model.attention import Places, visible


def attend_cudnn(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Places,
    key: Places,
    *,
    window: int = 0,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N H"]:
    """What `model.attention.attend` gives for scaled queries on one device; `xla` is the same call without a GPU."""
    is_whole = query.index_T is None and key.index_T is None
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=visible(query, key, window)[:, None], scale=1.0, is_causal=is_whole,
        implementation=implementation,
    )  # fmt: skip
