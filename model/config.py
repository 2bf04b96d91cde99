"""What a decoder is (`ModelConfig`) and how it is computed (`ComputeConfig`)."""

from typing import Annotated, Literal

import jax.numpy as jnp
import msgspec

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
OrNone = Annotated[float, msgspec.Meta(ge=0)]
"""A bound or cap; 0 means there is none."""


class LinearScaling(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="linear"
):
    """Every frequency divided by `factor`."""

    factor: Positive


class DynamicScaling(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="dynamic"
):
    """A base that grows with the length of the text, beyond `original_length` tokens."""

    factor: Positive
    original_length: AtLeastOne


class Llama3Scaling(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="llama3"
):
    """Slow frequencies divided by `factor`, fast ones kept, those between blended. Source: arXiv:2407.21783."""

    factor: Positive
    low_frequency_factor: Positive
    high_frequency_factor: Positive
    original_length: AtLeastOne


class YarnScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="yarn"):
    """Frequencies blended by how often they turn within `original_length`. Source: arXiv:2309.00071."""

    factor: Positive
    original_length: AtLeastOne
    fast_turns: Positive = 32.0
    slow_turns: Positive = 1.0
    attention_factor: Positive
    """Cosines and sines are multiplied by this."""
    whole_dimensions: bool = True
    """The blend's bounds are rounded outwards to whole dimensions."""


class LongScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="long"):
    """One divisor per frequency: one list up to `original_length`, another beyond. Source: arXiv:2402.13753."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: AtLeastOne
    attention_factor: Positive


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rotary position embedding. Source: arXiv:2104.09864."""

    base: Positive = 10_000.0
    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Share of each head's dimensions that is rotated, from the first on."""
    interleaved: bool = False
    """Dimension 2i turns against 2i + 1; otherwise i against i + half."""
    scaling: RopeScaling | None = None

    def rotated_dims(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated."""
        return int(head_dim * self.fraction)


class LayerKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may differ from layer to layer."""

    window: NotNegative = 0
    """A query sees itself and the window - 1 positions before it; 0: all before it."""
    rope: RopeConfig | None = RopeConfig()
    """None: this layer has no notion of position, or ALiBi's."""
    experts: bool = False
    """The MLP is a mixture of `ModelConfig.experts`."""


class ExpertsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mixture of expert MLPs: each token goes to its likeliest few, none is dropped. Source: arXiv:2401.04088."""

    num_experts: AtLeastOne
    per_token: AtLeastOne
    dim: AtLeastOne
    """Width of one expert's MLP."""
    normalize: bool = True
    """The chosen experts' probabilities are divided by their sum."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder. The defaults are Llama's: RMSNorm before, grouped-query attention, RoPE, SwiGLU. arXiv:2302.13971.

    Everything here changes the function that is computed, so it travels with the checkpoint.
    """

    vocab_size: NotNegative = 0
    """Ids the model knows. 0 in a recipe: the tokenizer's size."""
    vocab_padding: NotNegative = 0
    """Rows added to embedding and head so that a mesh divides them. No id of theirs is ever likely; never exported."""
    num_layers: AtLeastOne
    dim: AtLeastOne
    """Model width (D)."""
    num_heads: AtLeastOne
    num_kv_heads: AtLeastOne
    head_dim: Annotated[int, msgspec.Meta(ge=2)]
    """Even; not tied to dim / num_heads."""
    mlp_dim: AtLeastOne
    layers: tuple[LayerKind, ...] = (LayerKind(),)
    """The kinds of the layers, repeated until there are `num_layers`."""
    experts: ExpertsConfig | None = None
    """Of the layers whose kind says so."""
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Positive = 1e-6
    norm_bias: bool = False
    norm_plus_one: bool = False
    """Scales are stored as their difference from one."""
    norm_placement: Literal["pre", "post", "sandwich", "stem"] = "pre"
    """`pre`: x + f(norm(x)); `post`: x + norm(f(x)); `sandwich`: x + norm(f(norm(x))); `stem`: norm(x) + f(norm(x))."""
    parallel: bool = False
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both."""
    qk_norm: Literal["none", "head", "each_head", "full"] = "none"
    """Norm of queries and keys before rotation: each head by one scale (H), by its own (N, H), or all at once (N H)."""
    qkv_bias: bool = False
    qkv_clip: OrNone = 0.0
    """Queries, keys and values are kept within +- this; 0: they are free."""
    out_bias: bool = False
    """Of attention's output projection."""
    query_scale: OrNone = 0.0
    """Scores are query . key times this; 0: 1 / sqrt(head_dim)."""
    attention_softcap: OrNone = 0.0
    """Scores s become c tanh(s / c); 0: they stay."""
    alibi: bool = False
    """Scores fall linearly with distance, by a slope per head. Source: arXiv:2108.12409."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"] = "silu"
    """`xielu` has two learned scalars per layer. Source: arXiv:2411.13010."""
    gated: bool = True
    """down(activation(gate(x)) * up(x)); otherwise down(activation(up(x)))."""
    mlp_bias: bool = False
    residual_scale: Positive = 1.0
    """What attention and MLP add is multiplied by this."""
    embedding_scale: Positive = 1.0
    """Embeddings are multiplied by this."""
    embedding_norm: bool = False
    tied_head: bool = True
    """The output head is the transposed embedding."""
    logit_scale: Positive = 1.0
    """Logits are multiplied by this, before the soft-cap."""
    final_softcap: OrNone = 0.0
    """Logits l become c tanh(l / c); 0: they stay."""

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                f"use one of {_divisors(self.num_heads)} for num_kv_heads"
            )
        if not self.layers:
            raise ValueError("layers is empty; give at least one layer kind, or leave it out")
        for kind in self.layers:
            _check_rope(kind.rope, self.head_dim)
            if kind.experts and self.experts is None:
                raise ValueError("a layer kind says experts: true, but model.experts is not given")
        if self.experts is not None and self.experts.per_token > self.experts.num_experts:
            raise ValueError(
                f"experts.per_token={self.experts.per_token} is more than experts.num_experts="
                f"{self.experts.num_experts}; use at most that"
            )
        if self.parallel and self.norm_placement != "pre":
            raise ValueError(f"parallel: true needs norm_placement: pre, not {self.norm_placement}")

    @property
    def padded_vocab(self) -> int:
        """Rows of embedding and head (V)."""
        return self.vocab_size + self.vocab_padding

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer, first to last."""
        return tuple(self.layers[i % len(self.layers)] for i in range(self.num_layers))


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """Layers first, first + stride, first + 2 stride, ... of one kind, whose parameters are stored as one stack."""

    first: int
    stride: int
    count: int
    kind: LayerKind

    @property
    def name(self) -> str:
        """Its key in the parameter tree."""
        return str(self.first)

    @property
    def members(self) -> range:
        """Indices of its layers."""
        return range(self.first, self.first + self.stride * self.count, self.stride)


def group_layers(kinds: tuple[LayerKind, ...]) -> tuple[tuple[Stack, ...], ...]:
    """Groups of stacks that together are the layers in order: a group's stacks take turns, `count` times.

    Chosen so that the fewest layers have to be compiled. Kinds (a a b a a b a): one group of three stacks that take
    turns twice, (0: a, count 2) (1: a, count 2) (2: b, count 2), then one group of a single layer (6: a, count 1).
    """
    total = len(kinds)
    cost, choice = [0] * (total + 1), [(0, 0)] * total
    for start in reversed(range(total)):
        options = []
        for stride in range(1, total - start + 1):
            count = 1
            while (end := start + stride * (count + 1)) <= total and kinds[end - stride : end] == kinds[
                start : start + stride
            ]:
                count += 1
            options.append((stride + cost[start + stride * count], stride, count))
        cost[start], *best = min(options)
        choice[start] = (best[0], best[1])
    groups, start = [], 0
    while start < total:
        stride, count = choice[start]
        groups.append(
            tuple(Stack(first=i, stride=stride, count=count, kind=kinds[i]) for i in range(start, start + stride))
        )
        start += stride * count
    return tuple(groups)


AttentionName = Literal["dense", "blockwise", "splash", "cudnn"]
"""Ways to compute attention in a pass over packed rows: see `model.attention_choice`."""


class ComputeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the same function is computed: precision, memory, unrolling. Never part of a checkpoint's meaning.

    Parameters in training, norms, softmax, routing and losses are float32 whatever `dtype` says.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products. bfloat16 on TPU and GPU; float32 on CPU, where XLA has no fast bfloat16."""
    remat: Literal["none", "products", "attention", "block", "offload"] = "none"
    """What is computed again in the backward pass, from least to most (`model.remat`). `products`: all but products of
    weights; `attention`: all but each layer's input and attention; `block`: all but each layer's input; `offload`: as
    `block`, and the inputs wait in the host's memory."""
    attention: Literal["auto", "any"] | AttentionName = "auto"
    """Of passes over packed rows. `auto`: `splash` on TPU, `cudnn` on GPU, or an error where that cannot serve the
    model; on CPU `dense` for short rows and `blockwise` for long ones. `any`: `blockwise`, which serves every model
    everywhere, instead of the error."""
    attention_block: Annotated[int, msgspec.Meta(ge=16)] | None = None
    """Most positions of queries, and of keys, in a block of `blockwise` or `splash`. None: what suits the device."""
    scan_unroll: AtLeastOne = 1
    """Repeats of the layer pattern in one iteration of the scan; all of them: longer compile, faster on CPU."""
    unroll_decoding: bool = False
    """Generation runs through the layers one by one, each with arrays of its own (a second copy of the layers'
    parameters), instead of scanning over stacks of them: longer compile, several times faster on CPU."""

    @property
    def jax_dtype(self) -> jnp.dtype:
        """The NumPy dtype of activations."""
        return jnp.dtype(self.dtype)


def _check_rope(rope: RopeConfig | None, head_dim: int) -> None:
    if rope is None:
        return
    dims = rope.rotated_dims(head_dim)
    if dims % 2 or dims < 2:
        raise ValueError(
            f"rotary embedding of {dims} dimensions (head_dim={head_dim}, fraction={rope.fraction:g}) has no pairs; "
            f"use an even number, e.g. head_dim={head_dim + head_dim % 2}"
        )
    if isinstance(rope.scaling, LongScaling):
        for name in ("short_factors", "long_factors"):
            if len(getattr(rope.scaling, name)) != dims // 2:
                raise ValueError(
                    f"rope scaling {name} has {len(getattr(rope.scaling, name))} entries; give one for each of the "
                    f"{dims // 2} frequencies"
                )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
