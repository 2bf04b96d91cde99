"""The decoder and the seam: `init`, `apply`, `abstract`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
from jaxtyping import Array, Float, Int, Shaped

from model.attention_choice import choose_attention, platform_in_use
from model.block import Block, Cache, Context, embedding_of, final_norm, head_of, run
from model.config import ComputeConfig, ModelConfig, Stack, group_layers
from model.context import DENSE, cached_context, packed_context
from model.layers import Norm, soft_cap
from model.moe import RouterSums, add_sums, no_sums
from model.parallel import AxisRules
from model.remat import name_input, remat

Params = dict[str, Any]
"""Nested dict of arrays, float32 in training. `layers` holds one entry per stack (`model.config.group_layers`), named
by its first layer; its arrays have a leading dimension over the stack's layers (or, from `unstack`, it is a tuple of
the layers' trees)."""


class Noise(NamedTuple):
    """What training does to a forward pass: functions of the embeddings, and of what each branch of a layer adds."""

    embeddings: Callable[[Array], Array]
    branches: Callable[[Array, Array, int], Array] | None
    """See `Context.disturb`."""


class KVCache(NamedTuple):
    """Keys and values by stack of layers; slot s of a row holds position s.

    A stack's are one array (count, B, K, S, H), or one per layer where the parameters are unstacked too.
    """

    stacks: Mapping[str, Cache | tuple[Cache, ...]]

    @property
    def slots(self) -> int:
        """How many positions it has room for."""
        return jax.tree.leaves(self.stacks)[0].shape[-2]


def init(cfg: ModelConfig, axes: AxisRules, key: jax.Array) -> Params:
    """Fresh float32 parameters, partitioned by `axes` over the mesh in use. The same on every mesh."""
    # One row cannot be split over the mesh, and no parameter depends on how rows are split.
    whole = msgspec.structs.replace(axes, batch=None, length=None)
    ids = jnp.zeros((1, 1), jnp.int32)
    hidden = jnp.zeros((1, 1, cfg.dim), jnp.float32)
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("embedding", "layers", "final_norm", "head"))}
    params: Params = {
        "embedding": embedding_of(cfg, whole).init(keys["embedding"], ids, jnp.dtype("float32"))["params"]
    }
    if cfg.embedding_norm:
        params["embedding_norm"] = Norm(cfg, cfg.norm_bias).init(key, hidden)["params"]
    context = packed_context(cfg, whole, DENSE, jnp.ones((1, 1), jnp.int32), ids)

    def init_stack(stack: Stack) -> Any:
        block = Block(cfg, stack.kind, whole)

        def init_layer(_, layer):
            layer_key = jax.random.fold_in(keys["layers"], layer)
            return None, block.init(layer_key, hidden, context, None)["params"]

        return jax.lax.scan(init_layer, None, jnp.array(list(stack.members), jnp.int32))[1]

    stacks = [stack for group in group_layers(cfg.kinds) for stack in group]
    params["layers"] = {stack.name: init_stack(stack) for stack in stacks}
    params["final_norm"] = final_norm(cfg).init(keys["final_norm"], hidden)["params"]
    if not cfg.tied_head:
        params["head"] = head_of(cfg, whole).init(keys["head"], hidden)["params"]
    return params


def abstract(cfg: ModelConfig, axes: AxisRules) -> Params:
    """The shapes, dtypes and shardings that `init` would give, with no array made."""
    return jax.eval_shape(lambda: init(cfg, axes, jax.random.key(0)))


def apply(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    *,
    at_BK: Int[Array, "B K"] | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> Float[Array, "B _ V"]:
    """Float32 logits of the token after each position; no segment sees another, nothing sees its future.

    With `at_BK`, logits of these positions of each row only (B K V): the head is the widest product of a
    multilingual model, and most positions of instruction data are never trained. Where the mesh shards positions
    (`axes.length`), its ways must divide T and K.
    """
    return apply_routed(cfg, axes, params, tokens_BT, segments_BT, positions_BT, at_BK=at_BK, compute=compute)[0]


def apply_routed(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    *,
    at_BK: Int[Array, "B K"] | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Float[Array, "B _ V"], RouterSums]:
    """What `apply` gives, and the sums over layers and real tokens that router losses are made of."""
    x_BTD, sums = apply_hidden(
        cfg, axes, params, tokens_BT, segments_BT, positions_BT, at_BK=at_BK, compute=compute
    )  # fmt: skip
    return make_logits(cfg, axes, params, x_BTD), sums


def apply_hidden(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    *,
    at_BK: Int[Array, "B K"] | None = None,
    compute: ComputeConfig = ComputeConfig(),
    noise: Noise | None = None,
) -> tuple[Float[Array, "B _ D"], RouterSums]:
    """What the head of `apply_routed` is given instead of what it makes: normed hidden states, in compute's dtype.

    Their products with `head_weight`, accumulated in float32 and passed through `finish_logits`, are the logits.
    `noise`: in training only.
    """
    kernel = choose_attention(cfg, compute, platform=platform_in_use(), row_length=segments_BT.shape[1])
    context = packed_context(cfg, axes, kernel, segments_BT, positions_BT)
    context = context._replace(disturb=noise.branches) if noise else context
    x_BTD = _embed(cfg, axes, params, tokens_BT, compute, noise)
    x_BTD, _, sums = _run_layers(cfg, axes, params, x_BTD, context, None, compute)
    return _last_hidden(cfg, axes, params, x_BTD, at_BK), sums


def head_weight(cfg: ModelConfig, params: Params) -> Float[Array, "_ _"]:
    """The head's matrix: (V, D) where it is the embedding's, (D, V) where it is its own."""
    return params["embedding"]["weight"] if cfg.tied_head else params["head"]["weight"]


def finish_logits(
    cfg: ModelConfig, logits: Float[Array, "*batch V"], first_id: int | Int[Array, ""] = 0
) -> Float[Array, "*batch V"]:
    """Logits from the head's products: scaled, soft-capped, as low as can be for ids of vocabulary padding.

    `first_id` is the id of their first column: a device may have a part of the vocabulary only.
    """
    if cfg.logit_scale != 1.0:
        logits = logits * cfg.logit_scale
    logits = soft_cap(logits, cfg.final_softcap)
    if not cfg.vocab_padding:
        return logits
    is_real_V = first_id + jnp.arange(logits.shape[-1]) < cfg.vocab_size
    return jnp.where(is_real_V[(None,) * (logits.ndim - 1)], logits, jnp.finfo(jnp.float32).min)


def apply_cached(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    cache: KVCache,
    *,
    text_lengths_B: Int[Array, "B"] | None = None,
    at_BK: Int[Array, "B K"] | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Float[Array, "B _ V"], KVCache]:
    """Logits for new tokens that also see the cache, and the cache with them written at their positions.

    `text_lengths_B` is how long each row's text may become, all calls together; only rotations that depend on the
    length of a text (`model.rope`) ask for it, so that all of its keys are turned alike. None: as many as slots.
    """
    context = cached_context(cfg, positions_BT, cache.slots, text_lengths_B)
    x_BTD = _embed(cfg, axes, params, tokens_BT, compute)
    x_BTD, stacks, _ = _run_layers(cfg, axes, params, x_BTD, context, cache.stacks, compute)
    x_BTD = _last_hidden(cfg, axes, params, x_BTD, at_BK)
    return make_logits(cfg, axes, params, x_BTD), KVCache(stacks or {})


def empty_cache(
    cfg: ModelConfig, axes: AxisRules, *, batch: int, slots: int, compute: ComputeConfig, unstacked: bool = False
) -> KVCache:
    """A cache of zeros for `batch` sequences of at most `slots` tokens, prompt included.

    `unstacked` for parameters that are.
    """

    def zeros(*lead: int) -> Cache:
        spec = axes.spec(*(None for _ in lead), "batch", "heads", None, None)
        shape = (*lead, batch, cfg.num_kv_heads, slots, cfg.head_dim)
        return Cache(*(jnp.zeros(shape, compute.jax_dtype, out_sharding=spec) for _ in range(2)))

    stacks = [stack for group in group_layers(cfg.kinds) for stack in group]
    if unstacked:
        return KVCache({stack.name: tuple(zeros() for _ in stack.members) for stack in stacks})
    return KVCache({stack.name: zeros(stack.count) for stack in stacks})


def unstack(params: Params) -> Params:
    """The same parameters with each layer's in arrays of their own, over which layers are not scanned but unrolled.

    On a CPU a scan copies each layer's weights out of the stack whenever it comes to it: in decoding, where they are
    used for one token, that is most of the time. Programs grow with the number of layers.
    """
    if is_unstacked(params):
        return params
    return {**params, "layers": {name: split_stack(stack) for name, stack in params["layers"].items()}}


def split_stack(stack: Params) -> tuple[Params, ...]:
    """The layers of one stack, each with arrays of its own."""
    count = jax.tree.leaves(stack)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(count))


def is_unstacked(params: Params) -> bool:
    """Whether the parameters are as `unstack` gives them."""
    return any(isinstance(stack, tuple) for stack in params["layers"].values())


def count_parameters(params: Params) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _embed(cfg, axes, params: Params, tokens_BT, compute: ComputeConfig, noise: Noise | None = None):
    tokens_BT = jax.sharding.reshard(tokens_BT, axes.spec("batch", "length"))
    x_BTD = run(embedding_of(cfg, axes), params["embedding"], tokens_BT, compute.jax_dtype)
    x_BTD = noise.embeddings(x_BTD) if noise else x_BTD
    if cfg.embedding_norm:
        x_BTD = run(Norm(cfg, cfg.norm_bias), params["embedding_norm"], x_BTD)
    return x_BTD


def _run_layers(cfg, axes, params: Params, x_BTD, context: Context, caches: Mapping[str, Any] | None, compute):
    """The last hidden states, the updated caches (None when none were given), and the router's sums."""
    if is_unstacked(params):
        return _run_unrolled(cfg, axes, params, x_BTD, context, caches, compute)
    written: dict[str, Any] = {}
    sums = no_sums(cfg)
    for group in group_layers(cfg.kinds):
        names = [stack.name for stack in group]
        group_params = {name: params["layers"][name] for name in names}
        group_caches = None if caches is None else {name: caches[name] for name in names}
        x_BTD, group_caches, group_sums = _run_group(
            cfg, axes, group, group_params, x_BTD, context, group_caches, compute
        )
        written |= group_caches or {}
        sums = add_sums(sums, group_sums)
    return x_BTD, None if caches is None else written, sums


def _run_unrolled(cfg, axes, params: Params, x_BTD, context: Context, caches, compute: ComputeConfig):
    """`_run_layers` for unstacked parameters."""
    places = {
        layer: (stack, i)
        for group in group_layers(cfg.kinds)
        for stack in group
        for i, layer in enumerate(stack.members)
    }
    written: dict[str, list[Cache]] = {}
    sums = no_sums(cfg)
    for layer in range(cfg.num_layers):
        stack, i = places[layer]
        cache = None if caches is None else caches[stack.name][i]
        x_BTD, cache, layer_sums = _layer_runner(cfg, axes, context, compute)(
            stack, params["layers"][stack.name][i], x_BTD, cache
        )
        if cache is not None:
            written.setdefault(stack.name, []).append(cache)
        sums = sums if layer_sums is None else add_sums(sums, layer_sums)
    return x_BTD, None if caches is None else {name: tuple(each) for name, each in written.items()}, sums


def _layer_runner(cfg, axes, context: Context, compute: ComputeConfig):
    """A function of a layer's stack, its parameters, the hidden states and its cache."""

    def run_layer(stack: Stack, layer_params, x_BTD, cache):
        return run(Block(cfg, stack.kind, axes), layer_params, name_input(x_BTD), context, cache)

    return remat(run_layer, compute)


def _run_group(cfg, axes, group: tuple[Stack, ...], params, x_BTD, context, caches, compute: ComputeConfig):
    """A group's stacks taking turns, as one scan over their turns."""

    def take_turn(carry, turn):
        x_BTD, caches = carry
        index, turn_params = turn
        sums = no_sums(cfg)
        for stack in group:
            cache = None if caches is None else caches[stack.name].at_layer(index)
            run_layer = _layer_runner(cfg, axes, context._replace(layer=stack.first + stack.stride * index), compute)
            x_BTD, cache, layer_sums = run_layer(stack, turn_params[stack.name], x_BTD, cache)
            if caches is not None:
                caches = {**caches, stack.name: caches[stack.name].with_layer(index, cache)}
            if layer_sums is not None:
                sums = add_sums(sums, layer_sums)
        return (x_BTD, caches), sums

    count = group[0].count
    (x_BTD, caches), sums = jax.lax.scan(
        take_turn, (x_BTD, caches), (jnp.arange(count), params), length=count, unroll=min(compute.scan_unroll, count)
    )
    return x_BTD, caches, jax.tree.map(lambda turns: jnp.sum(turns, axis=0), sums)


def _last_hidden(cfg: ModelConfig, axes: AxisRules, params: Params, x_BTD, at_BK):
    """Normed hidden states, at `at_BK` only if that is given."""
    if at_BK is not None:
        x_BTD = pick_positions(axes, x_BTD, at_BK)
    return run(final_norm(cfg), params["final_norm"], x_BTD)


def pick_positions(
    axes: AxisRules, field: Shaped[Array, "B T ..."], at_BK: Int[Array, "B K"]
) -> Shaped[Array, "B K ..."]:
    """The field at these positions of each row, sharded along K as activations are along T.

    Row by row, so that its gradient is too: one scatter over all rows would be whole on every device.
    """
    inner = (None,) * (field.ndim - 2)
    if axes.length is None:
        return jnp.take_along_axis(field, at_BK.reshape(at_BK.shape + (1,) * len(inner)), axis=1)
    whole, shared = axes.spec("batch", None, *inner), axes.spec("batch", "length", *inner)

    def pick(field, at_BK):
        return jnp.take_along_axis(field, at_BK.reshape(at_BK.shape + (1,) * len(inner)), axis=1)

    specs = (whole, axes.spec("batch", "length"))
    return jax.shard_map(pick, in_specs=specs, out_specs=shared)(*jax.sharding.reshard((field, at_BK), specs))


def make_logits(
    cfg: ModelConfig, axes: AxisRules, params: Params, x_BTD: Float[Array, "B T D"]
) -> Float[Array, "B T V"]:
    """Float32 logits of normed hidden states, from `apply_hidden`."""
    if cfg.tied_head:
        return finish_logits(cfg, run(embedding_of(cfg, axes), params["embedding"], x_BTD, method="decode"))
    return finish_logits(cfg, run(head_of(cfg, axes), params["head"], x_BTD))
