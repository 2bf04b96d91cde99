"""One layer of the decoder: attention and MLP, with their norms, as `ModelConfig` and the layer's kind say."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model.attention import Places, attend
from model.attention_choice import Kernel
from model.attention_packed import attend_packed
from model.config import LayerKind, ModelConfig, RopeConfig
from model.layers import Einsum, Embedding, Norm, activate
from model.moe import Experts
from model.parallel import AxisRules
from model.rope import Rotation, rotate


class Context(NamedTuple):
    """What every layer of one forward pass shares."""

    rotations: dict[RopeConfig, Rotation]
    kernel: Kernel
    """Of attention without a cache. With one it is always dense."""
    places: Places | None
    """Of queries and keys, for kernels that make no mask of them."""
    masks: dict[int, Bool[Array, "B T S"]]
    """By window, for dense attention."""
    distance_BTS: Int[Array, "B T S"] | None
    """For ALiBi in dense attention."""
    slots_BT: Int[Array, "B T"] | None
    """Where in the cache the tokens' keys and values go."""
    is_real_BT: Bool[Array, "B T"]
    """False at padding, which no router counts."""
    disturb: "Callable[[Array, Array, int], Array] | None" = None
    """In training: what is left of what a branch adds, from that, its layer, and 0 for attention or 1 for the MLP."""
    layer: Int[Array, ""] | None = None
    """Which layer this is, for `disturb`."""

    def disturbed(self, x_BTD: Array, branch: int) -> Array:
        """What the branch adds, as noise leaves it."""
        if self.disturb is None:
            return x_BTD
        assert self.layer is not None, "noise differs from layer to layer"
        return self.disturb(x_BTD, self.layer, branch)


class Cache(NamedTuple):
    """Keys and values: of one layer (B, K, S, H), or of a stack of layers with a leading dimension."""

    k: Array
    v: Array

    def at_layer(self, index: Int[Array, ""]) -> "Cache":
        """One layer's cache out of a stack's."""
        return Cache(*(jax.lax.dynamic_index_in_dim(stack, index, keepdims=False) for stack in self))

    def with_layer(self, index: Int[Array, ""], layer: "Cache") -> "Cache":
        """The stack's cache with this layer's replaced."""
        pairs = zip(self, layer, strict=True)
        return Cache(*(jax.lax.dynamic_update_index_in_dim(stack, new, index, 0) for stack, new in pairs))


class Attention(nn.Module):
    """Projections, norms of queries and keys, rotation, attention, output projection."""

    cfg: ModelConfig
    kind: LayerKind
    axes: AxisRules

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """The attended vectors, and this layer's cache with the new keys and values written at the context's slots."""
        cfg, axes = self.cfg, self.axes
        q_BTNH, k_BSKH, v_BSKH = (
            self._project(name, heads, x_BTD)
            for name, heads in (("query", cfg.num_heads), ("key", cfg.num_kv_heads), ("value", cfg.num_kv_heads))
        )
        if cfg.qk_norm != "none":
            norm = functools.partial(
                Norm, cfg, scale_dims=1 if cfg.qk_norm == "head" else 2, over_heads=cfg.qk_norm == "full"
            )
            q_BTNH, k_BSKH = norm(name="query_norm")(q_BTNH), norm(name="key_norm")(k_BSKH)
        if cfg.qkv_clip:
            q_BTNH, k_BSKH, v_BSKH = (jnp.clip(x, -cfg.qkv_clip, cfg.qkv_clip) for x in (q_BTNH, k_BSKH, v_BSKH))
        if self.kind.rope is not None:
            turn = functools.partial(
                rotate, rotation=context.rotations[self.kind.rope], interleaved=self.kind.rope.interleaved
            )
            q_BTNH, k_BSKH = turn(q_BTNH), turn(k_BSKH)
        out_BTNH, cache = self._attend(q_BTNH, k_BSKH, v_BSKH, context, cache)
        out = Einsum(
            "BTNH,NHD->BTD",
            (cfg.num_heads, cfg.head_dim, cfg.dim),
            (cfg.num_heads * cfg.head_dim * 2 * cfg.num_layers) ** -0.5,
            axes.spec("heads", None, "embed"),
            axes.spec("batch", "length", None),
            bias=cfg.out_bias,
            name="out",
        )
        return out(out_BTNH), cache

    def _attend(self, q_BTNH, k_BSKH, v_BSKH, context: Context, cache: Cache | None) -> tuple[Array, Cache | None]:
        cfg, axes, window = self.cfg, self.axes, self.kind.window
        scale = cfg.query_scale or cfg.head_dim**-0.5
        if cache is None and context.places is not None:
            # Where a row's positions are on several devices, each one's queries look at the keys of all.
            query = context.places._replace(index_T=context.places.indices())
            out_BTNH = attend_packed(
                q_BTNH, k_BSKH, v_BSKH, query, context.places, kernel=context.kernel, scale=scale, axes=axes,
                window=window, softcap=cfg.attention_softcap, alibi=cfg.alibi,
            )  # fmt: skip
            return out_BTNH, None
        if cache is None:
            k_BSKH, v_BSKH = jax.sharding.reshard((k_BSKH, v_BSKH), axes.spec("batch", None, "heads", None))
            layout, k, v = "BKHS", k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 3, 1)
        else:
            cache = Cache(*(self._write(old, new, context) for old, new in zip(cache, (k_BSKH, v_BSKH), strict=True)))
            layout, (k, v) = "BKSH", cache
        out_BTNH = attend(
            q_BTNH, k, v, context.masks[window], layout=layout, scale=scale,
            out_spec=axes.spec("batch", "length", "heads", None), softcap=cfg.attention_softcap,
            alibi_BTS=context.distance_BTS,
        )  # fmt: skip
        return out_BTNH, cache

    def _project(self, name: str, heads: int, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        cfg, axes = self.cfg, self.axes
        return Einsum(
            "BTD,DNH->BTNH", (cfg.dim, heads, cfg.head_dim), cfg.dim**-0.5, axes.spec("embed", "heads", None),
            axes.spec("batch", "length", "heads", None), bias=cfg.qkv_bias, name=name,
        )(x_BTD)  # fmt: skip

    def _write(
        self, cache_BKSH: Float[Array, "B K S H"], new_BTKH: Float[Array, "B T K H"], context: Context
    ) -> Float[Array, "B K S H"]:
        rows_B1 = jnp.arange(cache_BKSH.shape[0])[:, None]
        spec = self.axes.spec("batch", "heads", None, None)
        return cache_BKSH.at[rows_B1, :, context.slots_BT].set(new_BTKH, out_sharding=spec)


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))). Source: arXiv:2002.05202."""

    cfg: ModelConfig
    axes: AxisRules

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The transformed vectors."""
        cfg, axes = self.cfg, self.axes
        widen = functools.partial(
            Einsum, "BTD,DF->BTF", (cfg.dim, cfg.mlp_dim), cfg.dim**-0.5,
            axes.spec("embed", "mlp"), axes.spec("batch", "length", "mlp"), bias=cfg.mlp_bias,
        )  # fmt: skip
        up_BTF = widen(name="up")(x_BTD)
        hidden_BTF = activate(cfg, widen(name="gate")(x_BTD)) * up_BTF if cfg.gated else activate(cfg, up_BTF)
        return Einsum(
            "BTF,FD->BTD", (cfg.mlp_dim, cfg.dim), (cfg.mlp_dim * 2 * cfg.num_layers) ** -0.5,
            axes.spec("mlp", "embed"), axes.spec("batch", "length", None), bias=cfg.mlp_bias, name="down",
        )(hidden_BTF)  # fmt: skip


class Block(nn.Module):
    """One layer: attention and MLP around the residual stream."""

    cfg: ModelConfig
    kind: LayerKind
    axes: AxisRules

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"], context: Context, cache: Cache | None):
        """The layer's output, its updated cache, and its router's sums (None without experts)."""
        cfg = self.cfg
        has_input_norms, has_output_norms = cfg.norm_placement != "post", cfg.norm_placement in ("post", "sandwich")

        def norm(name: str, x_BTD):
            return Norm(cfg, cfg.norm_bias, name=name)(x_BTD)

        normed_BTD = norm("attention_norm", x_BTD) if has_input_norms else x_BTD
        x_BTD = normed_BTD if cfg.norm_placement == "stem" else x_BTD
        attended_BTD, cache = Attention(cfg, self.kind, self.axes, name="attention")(normed_BTD, context, cache)
        if has_output_norms:
            attended_BTD = norm("attention_out_norm", attended_BTD)
        attended_BTD = attended_BTD * cfg.residual_scale if cfg.residual_scale != 1.0 else attended_BTD
        attended_BTD = context.disturbed(attended_BTD, 0)
        if not cfg.parallel:
            x_BTD = x_BTD + attended_BTD
            normed_BTD = norm("mlp_norm", x_BTD) if has_input_norms else x_BTD
            x_BTD = normed_BTD if cfg.norm_placement == "stem" else x_BTD
        sums = None
        if self.kind.experts:
            is_real_BT = jax.sharding.reshard(context.is_real_BT, self.axes.spec("batch", "length"))
            added_BTD, sums = Experts(cfg, self.axes, name="experts")(normed_BTD, is_real_BT)
        else:
            added_BTD = MLP(cfg, self.axes, name="mlp")(normed_BTD)
        if has_output_norms:
            added_BTD = norm("mlp_out_norm", added_BTD)
        added_BTD = added_BTD * cfg.residual_scale if cfg.residual_scale != 1.0 else added_BTD
        added_BTD = context.disturbed(added_BTD, 1)
        return x_BTD + attended_BTD + added_BTD if cfg.parallel else x_BTD + added_BTD, cache, sums


def run(module: nn.Module, params: Mapping[str, Any], *inputs: Any, method: str | None = None) -> Any:
    """The module's output, or that of one of its methods, with these parameters."""
    return module.apply({"params": params}, *inputs, method=method)


def embedding_of(cfg: ModelConfig, axes: AxisRules) -> Embedding:
    """The embedding of a config."""
    return Embedding(
        cfg.padded_vocab, cfg.dim, cfg.embedding_scale, axes.spec("vocab", "embed"),
        axes.spec("batch", "length", None), axes.spec("batch", "length", "vocab"),
    )  # fmt: skip


def final_norm(cfg: ModelConfig) -> Norm:
    """The norm before the head."""
    return Norm(cfg, cfg.norm_bias)


def head_of(cfg: ModelConfig, axes: AxisRules) -> Einsum:
    """The head of a config whose head is not tied; its logits are accumulated in float32."""
    return Einsum(
        "BTD,DV->BTV", (cfg.dim, cfg.padded_vocab), cfg.dim**-0.5, axes.spec("embed", "vocab"),
        axes.spec("batch", "length", "vocab"), out_dtype=jnp.dtype("float32"),
    )  # fmt: skip
