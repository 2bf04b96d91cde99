"""What the family tables have in common: names, sizes, activations, layer kinds."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from model.config import ExpertsConfig, LayerKind, ModelConfig, RopeConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.rope_keys import FULL, SLIDING

LAYER = "model.layers.{layer}."
LLAMA_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.scale": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attention_norm.scale": LAYER + "input_layernorm.weight",
    "mlp_norm.scale": LAYER + "post_attention_layernorm.weight",
    "attention.query.weight": LAYER + "self_attn.q_proj.weight",
    "attention.key.weight": LAYER + "self_attn.k_proj.weight",
    "attention.value.weight": LAYER + "self_attn.v_proj.weight",
    "attention.out.weight": LAYER + "self_attn.o_proj.weight",
    "attention.query.bias": LAYER + "self_attn.q_proj.bias",
    "attention.key.bias": LAYER + "self_attn.k_proj.bias",
    "attention.value.bias": LAYER + "self_attn.v_proj.bias",
    "attention.out.bias": LAYER + "self_attn.o_proj.bias",
    "mlp.gate.weight": LAYER + "mlp.gate_proj.weight",
    "mlp.up.weight": LAYER + "mlp.up_proj.weight",
    "mlp.down.weight": LAYER + "mlp.down_proj.weight",
    "mlp.gate.bias": LAYER + "mlp.gate_proj.bias",
    "mlp.up.bias": LAYER + "mlp.up_proj.bias",
    "mlp.down.bias": LAYER + "mlp.down_proj.bias",
}
"""Our parameters to tensor names, as Llama has them; other families change a few."""
QK_NORM_NAMES = {
    "attention.query_norm.scale": LAYER + "self_attn.q_norm.weight",
    "attention.key_norm.scale": LAYER + "self_attn.k_norm.weight",
}
SANDWICH_NAMES = {
    "attention_out_norm.scale": LAYER + "post_attention_layernorm.weight",
    "mlp_norm.scale": LAYER + "pre_feedforward_layernorm.weight",
    "mlp_out_norm.scale": LAYER + "post_feedforward_layernorm.weight",
}
"""Norms before and after attention and MLP, as Gemma has them."""
EXPERT_NAMES = {
    "experts.router": LAYER + "mlp.gate.weight",
    "experts.gate": LAYER + "mlp.experts.{expert}.gate_proj.weight",
    "experts.up": LAYER + "mlp.experts.{expert}.up_proj.weight",
    "experts.down": LAYER + "mlp.experts.{expert}.down_proj.weight",
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""`hidden_act` of a config.json to ours."""
WRITTEN_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu",
                       "relu2": "relu2", "xielu": "xielu"}  # fmt: skip


def basic_sizes(config: ConfigFile, *, kv_heads: int | None = None, head_dim: int | None = None) -> dict[str, Any]:
    """Vocabulary, depth, widths and heads; the arguments are the family's numbers where the config gives none.

    None, or null in the config: as many key heads as heads, and width / heads. Raises FamilyError for sizes that are
    missing, below one, or do not divide.
    """
    dim, heads = config.take_size("hidden_size"), config.take_size("num_attention_heads")
    kv_heads = config.take_nullable_size("num_key_value_heads", kv_heads)
    head_dim = config.take_nullable_size("head_dim", head_dim)
    if head_dim is None and dim % heads:
        raise FamilyError(f"{config.origin}: hidden_size={dim} is not a multiple of num_attention_heads={heads}")
    return {
        "vocab_size": config.take_size("vocab_size"),
        "num_layers": config.take_depth(),
        "dim": dim,
        "num_heads": heads,
        "num_kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": dim // heads if head_dim is None else head_dim,
        "mlp_dim": config.take_size("intermediate_size"),
    }


def write_basic_sizes(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `basic_sizes` reads, and the head's tie."""
    return {
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.dim,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp_dim,
        "tie_word_embeddings": cfg.tied_head,
    }


def read_tie(config: ConfigFile, *, default: bool = False) -> bool:
    """Whether the head is the embedding."""
    return config.take("tie_word_embeddings", bool, default)


def read_activation(config: ConfigFile, key: str = "hidden_act", default: str = "silu") -> Any:
    """Our name of the activation. Raises FamilyError for one that is not computed here."""
    name = config.take(key, str, default)
    if name not in ACTIVATIONS:
        raise FamilyError(f"{config.origin}: {key} is {name!r}; polytune computes {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def read_scale(number: float, head_dim: int) -> float:
    """A query scale in the form of `ModelConfig`, where 0 is the usual one."""
    return 0.0 if number == head_dim**-0.5 else number


def query_scale(cfg: ModelConfig) -> float:
    """What scores are multiplied by."""
    return cfg.query_scale or cfg.head_dim**-0.5


def invert(value: float) -> float:
    """The number, whole if it can be, whose inverse is this value."""
    whole = round(1 / value)
    return float(whole) if whole and 1 / whole == value else 1 / value


def read_window(config: ConfigFile, default: int | None = None) -> int:
    """`sliding_window`, as `LayerKind` has it; null means none. Raises FamilyError for less than one."""
    return config.take_nullable_size("sliding_window", default) or 0


def read_layer_types(config: ConfigFile, default: Callable[[int], bool]) -> list[bool]:
    """For every layer whether it slides: by `layer_types`, or by the family's rule of its index.

    Raises FamilyError for a type that is no attention known here, or too few or too many of them.
    """
    count = config.take_depth()
    types = config.take("layer_types", list, [SLIDING if default(i) else FULL for i in range(count)])
    unknown = [each for each in types if each not in (FULL, SLIDING)]
    if unknown:
        raise FamilyError(f"{config.origin}: layer_types has {unknown[0]!r}; polytune computes {FULL} and {SLIDING}")
    if len(types) != count:
        raise FamilyError(f"{config.origin}: layer_types has {len(types)} entries for num_hidden_layers={count}")
    return [each == SLIDING for each in types]


def read_sliding(config: ConfigFile, default: Callable[[int], bool], window: int | None = None) -> list[int]:
    """The window of every layer, by `layer_types` or the family's rule, and `sliding_window`; 0: none.

    Raises FamilyError like `read_layer_types`, and for sliding layers without a window.
    """
    slides, size = read_layer_types(config, default), read_window(config, window)
    if any(slides) and not size:
        raise FamilyError(f"{config.origin}: layer_types has {SLIDING}, but there is no sliding_window; give it")
    return [size if each else 0 for each in slides]


def read_optional_sliding(config: ConfigFile, default: Callable[[int], bool], window: int | None = None) -> list[int]:
    """Like `read_sliding` for families with a switch `use_sliding_window`, which is off unless given."""
    size = read_window(config, window)
    is_on = config.take("use_sliding_window", bool, False) and size > 0
    slides = read_layer_types(config, lambda layer: is_on and default(layer))
    if any(slides) and not is_on:
        raise FamilyError(
            f"{config.origin}: layer_types has {SLIDING}, but use_sliding_window or sliding_window is not set, and "
            "implementations disagree on which counts; make them agree"
        )
    return [size if each else 0 for each in slides]


def write_sliding(cfg: ModelConfig) -> dict[str, Any]:
    """`layer_types` and `sliding_window`, left out where no layer slides. Raises FamilyError for several windows."""
    window = the_window(cfg)
    types = [SLIDING if kind.window else FULL for kind in cfg.kinds]
    return {"layer_types": types} | ({"sliding_window": window} if window else {})


def the_window(cfg: ModelConfig) -> int:
    """The window of the layers that have one; 0: none. Raises FamilyError for several."""
    windows = {kind.window for kind in cfg.kinds} - {0}
    if len(windows) > 1:
        raise FamilyError(f"layers have windows of {sorted(windows)}; one can be written")
    return windows.pop() if windows else 0


def uniform_window(cfg: ModelConfig) -> int | None:
    """The window that all layers have, null for none. Raises FamilyError if some have another."""
    if len({kind.window for kind in cfg.kinds}) > 1:
        raise FamilyError("some layers have a window and some none, or another; one for all can be written")
    return cfg.layers[0].window or None


def the_rope(cfg: ModelConfig, *, among: Literal["all", "full", "sliding"] = "all") -> RopeConfig | None:
    """The rotary embedding of the layers that have one. Raises FamilyError for several."""
    ropes = {
        kind.rope
        for kind in cfg.kinds
        if kind.rope is not None and (among == "all" or (kind.window > 0) == (among == "sliding"))
    }
    if len(ropes) > 1:
        raise FamilyError("layers have different rotary embeddings; one can be written")
    return ropes.pop() if ropes else None


def the_experts(cfg: ModelConfig) -> ExpertsConfig:
    """The experts of a model. Raises FamilyError if there are none."""
    if cfg.experts is None:
        raise FamilyError("layers have no experts")
    return cfg.experts


def shortest_pattern(kinds: Iterable[LayerKind]) -> tuple[LayerKind, ...]:
    """The fewest layers that, repeated, are all of them."""
    kinds = tuple(kinds)
    for length in range(1, len(kinds)):
        if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
            return kinds[:length]
    return kinds


def combine(windows: Sequence[int], ropes: Sequence[RopeConfig | None]) -> tuple[LayerKind, ...]:
    """The pattern of layers with these windows and rotary embeddings."""
    return shortest_pattern(LayerKind(window=window, rope=rope) for window, rope in zip(windows, ropes, strict=True))
