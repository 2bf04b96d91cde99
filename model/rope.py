"""Rotary position embedding and its scalings to longer texts. Source: arXiv:2104.09864.

Each scaling is a change of the frequencies, and for some a factor on cosines and sines. Two of them depend on how
long the text is: the length of a token's own segment when rows are packed, so that packed equals separate; and what
prompt and answer may come to when decoding, so that all keys of a text are rotated alike. (The reference lets the
rotation change while a text grows past the original length, and keeps the keys that were rotated otherwise.) Checked
against the reference, `modeling_rope_utils.py` of Hugging Face transformers.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from model.config import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, RopeConfig, YarnScaling


class Rotation(NamedTuple):
    """Cosine and sine of each position and frequency, float32; fewer than half a head's dimensions if partial."""

    cos_BTF: Float[Array, "B T F"]
    sin_BTF: Float[Array, "B T F"]


def make_rotation(
    rope: RopeConfig, positions_BT: Int[Array, "B T"], lengths_BT: Int[Array, "B T"], *, head_dim: int
) -> Rotation:
    """The rotation of tokens at these positions, in texts of these lengths."""
    dims = rope.rotated_dims(head_dim)
    exponents_F = np.arange(0, dims, 2, dtype=np.float32) / dims
    positions_BT1 = positions_BT.astype(jnp.float32)[:, :, None]
    factor = 1.0
    match rope.scaling:
        case DynamicScaling() as scaling:
            angles_BTF = positions_BT1 * _dynamic_frequencies(rope.base, scaling, exponents_F, lengths_BT, dims)
        case LongScaling() as scaling:
            angles_BTF = positions_BT1 * _long_frequencies(rope.base, scaling, exponents_F, lengths_BT)
            factor = scaling.attention_factor
        case scaling:
            frequencies_F = (1.0 / rope.base**exponents_F).astype(np.float32)
            if isinstance(scaling, LinearScaling):
                frequencies_F = frequencies_F / np.float32(scaling.factor)
            elif isinstance(scaling, Llama3Scaling):
                frequencies_F = _llama3_frequencies(frequencies_F, scaling)
            elif isinstance(scaling, YarnScaling):
                frequencies_F = _yarn_frequencies(frequencies_F, scaling, rope.base, dims)
                factor = scaling.attention_factor
            angles_BTF = positions_BT1 * jnp.asarray(frequencies_F, jnp.float32)[None, None, :]
    return Rotation(jnp.cos(angles_BTF) * factor, jnp.sin(angles_BTF) * factor)


def depends_on_length(rope: RopeConfig) -> bool:
    """Whether the rotation of a token changes with the length of its text."""
    return isinstance(rope.scaling, DynamicScaling | LongScaling)


def rotate(x_BTNH: Float[Array, "B T N H"], rotation: Rotation, *, interleaved: bool) -> Float[Array, "B T N H"]:
    """x with its pairs of dimensions turned by the rotation; dimensions beyond its frequencies are left as they are.

    Pairs are (i, i + half), or (2i, 2i + 1) when interleaved.
    """
    cos, sin = rotation.cos_BTF[:, :, None, :], rotation.sin_BTF[:, :, None, :]
    dims = 2 * cos.shape[-1]
    wide = x_BTNH[..., :dims].astype(jnp.float32)
    first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    joined = jnp.stack(turned, axis=-1).reshape(wide.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    joined = joined.astype(x_BTNH.dtype)
    return joined if dims == x_BTNH.shape[-1] else jnp.concatenate([joined, x_BTNH[..., dims:]], axis=-1)


def _llama3_frequencies(frequencies_F: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    wavelength_F = 2 * math.pi / frequencies_F
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend_F = np.clip((scaling.original_length / wavelength_F - low) / (high - low), 0.0, 1.0)
    return (1 - blend_F) * frequencies_F / scaling.factor + blend_F * frequencies_F


def _yarn_frequencies(frequencies_F: np.ndarray, scaling: YarnScaling, base: float, dims: int) -> np.ndarray:
    def dimension_of(turns: float) -> float:
        return dims * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_of(scaling.fast_turns), dimension_of(scaling.slow_turns)
    if scaling.whole_dimensions:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp_F = (np.arange(dims // 2, dtype=np.float32) - low) / (high - low if high != low else 0.001)
    stretched_F = np.clip(ramp_F, 0.0, 1.0)
    return frequencies_F / scaling.factor * stretched_F + frequencies_F * (1 - stretched_F)


def _dynamic_frequencies(base: float, scaling: DynamicScaling, exponents_F, lengths_BT, dims: int):
    """Source: the "NTK-aware" rule, base times (s n / L - (s - 1)) ** (d / (d - 2)) for n > L."""
    length_BT = jnp.maximum(lengths_BT, scaling.original_length).astype(jnp.float32)
    growth_BT = scaling.factor * length_BT / scaling.original_length - (scaling.factor - 1)
    base_BT = base * growth_BT ** (dims / (dims - 2))
    return base_BT[:, :, None] ** -jnp.asarray(exponents_F)[None, None, :]


def _long_frequencies(base: float, scaling: LongScaling, exponents_F, lengths_BT):
    short_F, long_F = (
        1.0 / (np.asarray(factors, np.float32) * base**exponents_F)
        for factors in (scaling.short_factors, scaling.long_factors)
    )
    is_long_BT1 = (lengths_BT > scaling.original_length)[:, :, None]
    long_11F, short_11F = (jnp.asarray(each_F, jnp.float32)[None, None, :] for each_F in (long_F, short_F))
    return jnp.where(is_long_BT1, long_11F, short_11F)
