"""Generation with a key-value cache: prefill once, then one token a step. Pure and jitted per shape.

`generate` answers a batch in one call. `start` and `advance` are its two halves, for programs that show tokens as they
come or look at the text in between.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from model.config import ComputeConfig, ModelConfig
from model.parallel import AxisRules
from model.sampling import SamplingConfig, choose
from model.transformer import KVCache, Params, apply_cached, empty_cache, is_unstacked, unstack


class DecodeState(NamedTuple):
    """Where a batch of answers stands. Rows that are done keep their place and get no more tokens."""

    step: Array
    next_B1: Array
    """Chosen, not yet part of the answer."""
    cache: KVCache
    tokens_BN: Array
    """The answers so far, filled up with zeros."""
    lengths_B: Array
    """Of the answers."""
    done_B: Array
    """A stop token came, or the caller said so."""
    prompt_lengths_B: Array
    seen_BV: Array | None
    """Tokens of prompt and answer, for the repetition penalty."""
    key: Array


@functools.partial(jax.jit, static_argnames=("cfg", "axes", "max_new_tokens", "stop_ids", "sampling", "compute"))
def generate(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    prompts_BT: Int[Array, "B T"],
    lengths_B: Int[Array, "B"],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    sampling: SamplingConfig = SamplingConfig(),
    key: Array | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Continuations of right-padded prompts of these lengths, without the stop token, and their lengths.

    A length of `max_new_tokens` means no stop token came. Greedy unless `sampling` has a temperature, which needs a
    `key`. A greedy row's continuation does not depend on the other rows or on the padding.
    """
    params = unstack(params) if compute.unroll_decoding else params
    state = start(
        cfg, axes, params, prompts_BT, lengths_B, max_new_tokens=max_new_tokens, sampling=sampling, key=key,
        compute=compute,
    )  # fmt: skip
    final = advance(
        cfg, axes, params, state, until=max_new_tokens, stop_ids=stop_ids, sampling=sampling, compute=compute
    )
    return final.tokens_BN, final.lengths_B


@functools.partial(jax.jit, static_argnames=("cfg", "axes", "max_new_tokens", "sampling", "compute"))
def start(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    prompts_BT: Int[Array, "B T"],
    lengths_B: Int[Array, "B"],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = SamplingConfig(),
    key: Array | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> DecodeState:
    """The state after the prompts: their cache, and the first token of each answer chosen."""
    batch, prompt_slots = prompts_BT.shape
    cache = empty_cache(
        cfg, axes, batch=batch, slots=prompt_slots + max_new_tokens, compute=compute, unstacked=is_unstacked(params)
    )
    positions_BT = jnp.broadcast_to(jnp.arange(prompt_slots, dtype=jnp.int32)[None], prompts_BT.shape)
    positions_BT = jax.sharding.reshard(positions_BT, axes.spec("batch", None))
    logits_B1V, cache = apply_cached(
        cfg, axes, params, prompts_BT, positions_BT, cache,
        text_lengths_B=lengths_B + max_new_tokens, at_BK=lengths_B[:, None] - 1, compute=compute,
    )  # fmt: skip
    key = jax.random.key(0) if key is None else key
    seen_BV = None
    if sampling.repetition_penalty != 1:
        is_prompt_BT = positions_BT < lengths_B[:, None]
        seen_BV = jnp.zeros((batch, cfg.padded_vocab), bool, out_sharding=axes.spec("batch", None))
        seen_BV = _mark(axes, seen_BV, prompts_BT, is_prompt_BT)
    whole = functools.partial(jax.sharding.reshard, out_shardings=axes.spec("batch"))
    return DecodeState(
        step=jnp.int32(0),
        next_B1=_choose(axes, logits_B1V, jax.random.fold_in(key, 0), sampling, seen_BV),
        cache=cache,
        tokens_BN=jnp.zeros((batch, max_new_tokens), jnp.int32, out_sharding=axes.spec("batch", None)),
        lengths_B=whole(jnp.zeros((batch,), jnp.int32)),
        done_B=whole(jnp.zeros((batch,), bool)),
        prompt_lengths_B=lengths_B,
        seen_BV=seen_BV,
        key=key,
    )


@functools.partial(jax.jit, static_argnames=("cfg", "axes", "stop_ids", "sampling", "compute"), donate_argnames="state")
def advance(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    state: DecodeState,
    *,
    until: int | Array,
    stop_ids: tuple[int, ...],
    sampling: SamplingConfig = SamplingConfig(),
    compute: ComputeConfig = ComputeConfig(),
) -> DecodeState:
    """The state when answers have `until` tokens (at most what it was started for), or all rows are done."""

    def is_running(state: DecodeState) -> Array:
        return (state.step < until) & ~jnp.all(state.done_B)

    def take_step(state: DecodeState) -> DecodeState:
        done_B = state.done_B | _is_any_of(state.next_B1[:, 0], stop_ids)
        kept_B1 = jnp.where(done_B[:, None], 0, state.next_B1)
        tokens_BN = jax.lax.dynamic_update_slice_in_dim(state.tokens_BN, kept_B1, state.step, axis=1)
        positions_B1 = (state.prompt_lengths_B + state.step)[:, None]
        logits_B1V, cache = apply_cached(
            cfg, axes, params, kept_B1, positions_B1, state.cache,
            text_lengths_B=state.prompt_lengths_B + state.tokens_BN.shape[1], compute=compute,
        )  # fmt: skip
        seen_BV = None if state.seen_BV is None else _mark(axes, state.seen_BV, kept_B1, ~done_B[:, None])
        key = jax.random.fold_in(state.key, state.step + 1)
        return state._replace(
            step=state.step + 1,
            next_B1=_choose(axes, logits_B1V, key, sampling, seen_BV),
            cache=cache,
            tokens_BN=tokens_BN,
            lengths_B=state.lengths_B + (~done_B).astype(jnp.int32),
            done_B=done_B,
            seen_BV=seen_BV,
        )

    return jax.lax.while_loop(is_running, take_step, state)


def _choose(axes: AxisRules, logits_B1V: Array, key: Array, sampling: SamplingConfig, seen_BV: Array | None) -> Array:
    logits_BV = jax.sharding.reshard(logits_B1V, axes.spec("batch", None, None))[:, 0]
    return choose(logits_BV, key, sampling, seen_BV)[:, None]


def _is_any_of(tokens_B: Array, ids: tuple[int, ...]) -> Array:
    return functools.reduce(jnp.logical_or, (tokens_B == token for token in ids), jnp.zeros_like(tokens_B, dtype=bool))


def _mark(axes: AxisRules, seen_BV: Array, tokens_BT: Array, is_new_BT: Array) -> Array:
    rows_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    counts_BV = jnp.zeros(seen_BV.shape, jnp.int32, out_sharding=axes.spec("batch", None))
    counts_BV = counts_BV.at[rows_B1, tokens_BT].add(is_new_BT.astype(jnp.int32), out_sharding=axes.spec("batch", None))
    return seen_BV | (counts_BV > 0)
