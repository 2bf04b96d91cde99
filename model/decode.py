"""Generation with a key-value cache: prefill once, then one token a step. Pure and jitted per shape."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from model.config import ComputeConfig, ModelConfig
from model.parallel import AxisRules
from model.transformer import KVCache, Params, apply_cached, empty_cache


class _State(NamedTuple):
    step: Array
    last_B1: Array
    cache: KVCache
    tokens_BN: Array
    lengths_B: Array
    done_B: Array
    key: Array


@functools.partial(jax.jit, static_argnames=("cfg", "axes", "max_new_tokens", "stop_id", "sample", "compute"))
def generate(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    prompts_BT: Int[Array, "B T"],
    lengths_B: Int[Array, "B"],
    *,
    max_new_tokens: int,
    stop_id: int,
    temperature: float | Array = 0.0,
    key: Array | None = None,
    sample: bool = False,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Continuations of right-padded prompts of these lengths, without the stop token, and their lengths.

    A length of `max_new_tokens` means the stop token never came. Greedy unless `sample`, which needs `key` and a
    positive `temperature`. A row's continuation does not depend on the other rows or on the padding.
    """
    batch, prompt_slots = prompts_BT.shape
    cache = empty_cache(cfg, axes, batch=batch, slots=prompt_slots + max_new_tokens, compute=compute)
    positions_BT = jnp.broadcast_to(jnp.arange(prompt_slots, dtype=jnp.int32)[None], prompts_BT.shape)
    positions_BT = jax.sharding.reshard(positions_BT, axes.spec("batch", None))
    logits_B1V, cache = apply_cached(
        cfg, axes, params, prompts_BT, positions_BT, cache, at_BK=lengths_B[:, None] - 1, compute=compute
    )
    key = jax.random.key(0) if key is None else key
    choose = functools.partial(_choose, sample=sample, temperature=temperature, axes=axes)
    whole = functools.partial(jax.sharding.reshard, out_shardings=axes.spec("batch"))
    state = _State(
        step=jnp.int32(0),
        last_B1=choose(logits_B1V, jax.random.fold_in(key, 0)),
        cache=cache,
        tokens_BN=jnp.zeros((batch, max_new_tokens), jnp.int32, out_sharding=axes.spec("batch", None)),
        lengths_B=whole(jnp.zeros((batch,), jnp.int32)),
        done_B=whole(jnp.zeros((batch,), bool)),
        key=key,
    )

    def is_running(state: _State) -> Array:
        return (state.step < max_new_tokens) & ~jnp.all(state.done_B)

    def advance(state: _State) -> _State:
        done_B = state.done_B | (state.last_B1[:, 0] == stop_id)
        kept_B1 = jnp.where(done_B[:, None], 0, state.last_B1)
        tokens_BN = jax.lax.dynamic_update_slice_in_dim(state.tokens_BN, kept_B1, state.step, axis=1)
        positions_B1 = (lengths_B + state.step)[:, None]
        logits_B1V, cache = apply_cached(cfg, axes, params, kept_B1, positions_B1, state.cache, compute=compute)
        return _State(
            step=state.step + 1,
            last_B1=choose(logits_B1V, jax.random.fold_in(state.key, state.step + 1)),
            cache=cache,
            tokens_BN=tokens_BN,
            lengths_B=state.lengths_B + (~done_B).astype(jnp.int32),
            done_B=done_B,
            key=state.key,
        )

    final = jax.lax.while_loop(is_running, advance, state)
    return final.tokens_BN, final.lengths_B


def _choose(logits_B1V: Array, key: Array, *, sample: bool, temperature: float | Array, axes: AxisRules) -> Array:
    """The next token of each row: the most likely one, or a draw from the tempered distribution."""
    logits_B1V = jax.sharding.reshard(logits_B1V, axes.spec("batch", None, None))
    if not sample:
        return jnp.argmax(logits_B1V, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits_B1V / temperature, axis=-1).astype(jnp.int32)
