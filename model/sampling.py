"""How the next token is chosen from its logits: the likeliest, or a draw from a reshaped distribution."""

from typing import Annotated

import jax
import jax.numpy as jnp
import msgspec
from jaxtyping import Array, Bool, Float, Int

LOWEST = jnp.finfo(jnp.float32).min


class SamplingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The filters of a draw, applied in this order."""

    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Logits of tokens in the prompt or the answer so far are divided by this if positive, multiplied if not.
    Source: arXiv:1909.05858, section 4.1."""
    temperature: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Logits are divided by this. 0: greedy, and no filter below may be given."""
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Only the k likeliest; 0: all."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Only the smallest set of likeliest tokens whose probabilities reach p. Source: arXiv:1904.09751."""
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Only tokens at least p times as likely as the likeliest. Source: arXiv:2407.01082."""

    def __post_init__(self):
        if self.temperature == 0 and (self.top_k or self.top_p < 1 or self.min_p):
            raise ValueError(
                "top_k, top_p and min_p choose what is drawn from, but temperature 0 draws nothing; give a temperature "
                "above 0, e.g. 0.7"
            )


def choose(
    logits_BV: Float[Array, "B V"], key: Array, config: SamplingConfig, seen_BV: Bool[Array, "B V"] | None
) -> Int[Array, "B"]:
    """The next token of each row. `seen_BV` marks what the repetition penalty is for; None without one."""
    if seen_BV is not None:
        logits_BV = penalize(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filter_logits(logits_BV, config), axis=-1).astype(jnp.int32)


def penalize(logits_BV: Float[Array, "B V"], seen_BV: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """The logits with those of seen tokens made less likely."""
    lowered_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, lowered_BV, logits_BV)


def filter_logits(logits_BV: Float[Array, "B V"], config: SamplingConfig) -> Float[Array, "B V"]:
    """Tempered logits, those of tokens that may not be drawn as low as can be.

    Logits ln (0.5 0.3 0.2) at temperature 1: top_k 2 keeps the first two, top_p 0.5 the first, top_p 0.6 the first
    two, min_p 0.5 the first two (0.3 >= 0.5 x 0.5).
    """
    logits_BV = logits_BV / config.temperature
    if config.top_k:
        kth_B1 = jax.lax.top_k(logits_BV, min(config.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, LOWEST, logits_BV)
    if config.top_p < 1:
        descending_BV = -jnp.sort(-logits_BV, axis=-1)
        shares_BV = jax.nn.softmax(descending_BV, axis=-1)
        # A token is kept while those likelier than it hold less than p; the likeliest always is.
        is_kept_BV = jnp.cumsum(shares_BV, axis=-1) - shares_BV < config.top_p
        last_B1 = jnp.min(jnp.where(is_kept_BV, descending_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < last_B1, LOWEST, logits_BV)
    if config.min_p:
        floor_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(config.min_p)
        logits_BV = jnp.where(logits_BV < floor_B1, LOWEST, logits_BV)
    return logits_BV
