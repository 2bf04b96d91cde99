"""The decoder and the seam: `init`, `apply`, `abstract`."""

import functools
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.attention import attend, cached_mask, packed_mask
from model.config import ComputeConfig, ModelConfig
from model.layers import Einsum, Embedding, RMSNorm
from model.parallel import AxisRules
from model.rope import rotary_angles, rotate

Params = dict[str, Any]
"""Nested dict of float32 arrays; arrays of the layers have a leading layer dimension."""


class KVCache(NamedTuple):
    """Keys and values by layer; slot s of a row holds position s."""

    k_LBSKH: Float[Array, "L B S K H"]
    v_LBSKH: Float[Array, "L B S K H"]


class Attention(nn.Module):
    """Projections, rotation, attention, output projection."""

    cfg: ModelConfig
    axes: AxisRules

    @nn.compact
    def __call__(self, x_BTD, angles, mask_BTS, cache, slots_BT):
        """The attended vectors, and this layer's cache with the new keys and values written at `slots_BT`."""
        cfg, axes = self.cfg, self.axes
        heads_spec = axes.spec("batch", None, "heads", None)
        project = functools.partial(
            Einsum,
            "BTD,DNH->BTNH",
            std=cfg.dim**-0.5,
            weight_spec=axes.spec("embed", "heads", None),
            out_spec=heads_spec,
        )
        q_BTNH = project(shape=(cfg.dim, cfg.num_heads, cfg.head_dim), name="query")(x_BTD)
        k_BSKH = project(shape=(cfg.dim, cfg.num_kv_heads, cfg.head_dim), name="key")(x_BTD)
        v_BSKH = project(shape=(cfg.dim, cfg.num_kv_heads, cfg.head_dim), name="value")(x_BTD)
        q_BTNH, k_BSKH = rotate(q_BTNH, angles), rotate(k_BSKH, angles)
        if cache is not None:
            k_BSKH, v_BSKH = cache = (
                _write_slots(cache[0], k_BSKH, slots_BT, heads_spec),
                _write_slots(cache[1], v_BSKH, slots_BT, heads_spec),
            )
        out_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, out_spec=heads_spec)
        out_BTD = Einsum(
            "BTNH,NHD->BTD",
            (cfg.num_heads, cfg.head_dim, cfg.dim),
            (cfg.num_heads * cfg.head_dim * 2 * cfg.num_layers) ** -0.5,
            axes.spec("heads", None, "embed"),
            axes.spec("batch", None, None),
            name="out",
        )(out_BTNH)
        return out_BTD, cache


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: arXiv:2002.05202."""

    cfg: ModelConfig
    axes: AxisRules

    @nn.compact
    def __call__(self, x_BTD):
        """The transformed vectors."""
        cfg, axes = self.cfg, self.axes
        widen = functools.partial(
            Einsum, "BTD,DF->BTF", (cfg.dim, cfg.mlp_dim), cfg.dim**-0.5,
            axes.spec("embed", "mlp"), axes.spec("batch", None, "mlp"),
        )  # fmt: skip
        hidden_BTF = nn.silu(widen(name="gate")(x_BTD)) * widen(name="up")(x_BTD)
        return Einsum(
            "BTF,FD->BTD", (cfg.mlp_dim, cfg.dim), (cfg.mlp_dim * 2 * cfg.num_layers) ** -0.5,
            axes.spec("mlp", "embed"), axes.spec("batch", None, None), name="down",
        )(hidden_BTF)  # fmt: skip


class Block(nn.Module):
    """One layer, in the (carry, per-layer input) form that a scan over layers takes."""

    cfg: ModelConfig
    axes: AxisRules

    @nn.compact
    def __call__(self, x_BTD, cache, angles, mask_BTS, slots_BT):
        """The layer's output and its updated cache."""
        norm = functools.partial(RMSNorm, self.cfg.norm_eps)
        attended_BTD, cache = Attention(self.cfg, self.axes, name="attention")(
            norm(name="attention_norm")(x_BTD), angles, mask_BTS, cache, slots_BT
        )
        x_BTD = x_BTD + attended_BTD
        return x_BTD + MLP(self.cfg, self.axes, name="mlp")(norm(name="mlp_norm")(x_BTD)), cache


class Transformer(nn.Module):
    """Embedding, scanned blocks, final norm, head."""

    cfg: ModelConfig
    axes: AxisRules
    compute: ComputeConfig

    @nn.compact
    def __call__(self, tokens_BT, positions_BT, mask_BTS, cache, at_BK):
        """Float32 logits, at `at_BK` only if that is given, and the updated cache (None when none was given)."""
        cfg, axes = self.cfg, self.axes
        logits_spec = axes.spec("batch", None, "vocab")
        table = Embedding(
            cfg.vocab_size, cfg.dim, axes.spec("vocab", "embed"), axes.spec("batch", None, None), logits_spec,
            name="embedding",
        )  # fmt: skip
        x_BTD = table.encode(tokens_BT, self.compute.jax_dtype)
        angles = rotary_angles(positions_BT, head_dim=cfg.head_dim, base=cfg.rope_base)
        block = nn.remat(Block, prevent_cse=False) if self.compute.remat == "block" else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=cfg.num_layers,
            unroll=min(self.compute.scan_unroll, cfg.num_layers),
        )(cfg, axes, name="layers")
        x_BTD, cache = layers(x_BTD, cache, angles, mask_BTS, positions_BT)
        if at_BK is not None:
            x_BTD = _take_positions(x_BTD, at_BK, axes.spec("batch", None, None))
        x_BTD = RMSNorm(cfg.norm_eps, name="final_norm")(x_BTD)
        if cfg.tied_head:
            return table.decode(x_BTD), cache
        head = Einsum(
            "BTD,DV->BTV", (cfg.dim, cfg.vocab_size), cfg.dim**-0.5, axes.spec("embed", "vocab"), logits_spec,
            name="head",
        )  # fmt: skip
        return head(x_BTD).astype(jnp.float32), cache


def init(cfg: ModelConfig, axes: AxisRules, key: jax.Array) -> Params:
    """Fresh float32 parameters, partitioned by `axes` over the mesh in use. The same on every mesh."""
    ids = jnp.zeros((1, 1), jnp.int32)
    whole = AxisRules(batch=None, embed=axes.embed, heads=axes.heads, mlp=axes.mlp, vocab=axes.vocab)
    module = Transformer(cfg, whole, ComputeConfig())
    return dict(module.init(key, ids, ids, jnp.ones((1, 1, 1), bool), None, None)["params"])


def abstract(cfg: ModelConfig, axes: AxisRules) -> Params:
    """The shapes, dtypes and shardings that `init` would give, with no array made."""
    return jax.eval_shape(functools.partial(init, cfg, axes), jax.random.key(0))


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
    multilingual model, and most positions of instruction data are never trained.
    """
    module = Transformer(cfg, axes, compute)
    logits_BTV, _ = module.apply({"params": params}, tokens_BT, positions_BT, packed_mask(segments_BT), None, at_BK)
    return logits_BTV


def apply_cached(
    cfg: ModelConfig,
    axes: AxisRules,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    cache: KVCache,
    *,
    at_BK: Int[Array, "B K"] | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Float[Array, "B _ V"], KVCache]:
    """Logits for new tokens that also see the cache, and the cache with them written at their positions."""
    module = Transformer(cfg, axes, compute)
    mask_BTS = cached_mask(positions_BT, cache.k_LBSKH.shape[2])
    logits_BTV, written = module.apply({"params": params}, tokens_BT, positions_BT, mask_BTS, tuple(cache), at_BK)
    return logits_BTV, KVCache(*cast(tuple[Array, Array], written))


def empty_cache(cfg: ModelConfig, axes: AxisRules, *, batch: int, slots: int, compute: ComputeConfig) -> KVCache:
    """A cache of zeros for `batch` sequences of at most `slots` tokens, prompt included."""
    shape = (cfg.num_layers, batch, slots, cfg.num_kv_heads, cfg.head_dim)
    spec = axes.spec(None, "batch", None, "heads", None)
    return KVCache(*(jnp.zeros(shape, compute.jax_dtype, out_sharding=spec) for _ in range(2)))


def count_parameters(params: Params) -> int:
    """Number of scalars in a tree of arrays or abstract arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _take_positions(x_BTD: Float[Array, "B T D"], at_BK: Int[Array, "B K"], spec) -> Float[Array, "B K D"]:
    rows_B1 = jnp.arange(x_BTD.shape[0])[:, None]
    return x_BTD.at[rows_B1, at_BK].get(out_sharding=spec)


def _write_slots(
    cache_BSKH: Float[Array, "B S K H"], new_BTKH: Float[Array, "B T K H"], slots_BT: Int[Array, "B T"], spec
) -> Float[Array, "B S K H"]:
    rows_B1 = jnp.arange(cache_BSKH.shape[0])[:, None]
    return cache_BSKH.at[rows_B1, slots_BT].set(new_BTKH, out_sharding=spec)
