"""`olmo2`: norms after attention and MLP only, and of all queries and all keys at once. Source: modeling_olmo2.py."""

from typing import Any

from model.config import LayerKind, ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LAYER,
    LLAMA_NAMES,
    QK_NORM_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    read_activation,
    read_tie,
    the_rope,
    write_basic_sizes,
)

OLMO_NAMES = (
    {leaf: name for leaf, name in LLAMA_NAMES.items() if leaf not in ("attention_norm.scale", "mlp_norm.scale")}
    | QK_NORM_NAMES
    | {
        "attention_out_norm.scale": LAYER + "post_attention_layernorm.weight",
        "mlp_out_norm.scale": LAYER + "post_feedforward_layernorm.weight",
    }
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of an olmo2 config.json."""
    return ModelConfig(**read_olmo(config), layers=(LayerKind(rope=read_rope(config, longest=2048)),))


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_olmo(cfg) | write_rope(the_rope(cfg))


def read_olmo(config: ConfigFile) -> dict[str, Any]:
    """The fields of `ModelConfig` that OLMo 2 and 3 share."""
    bias = config.take("attention_bias", bool, False)
    return {
        **basic_sizes(config),
        "norm_eps": config.take("rms_norm_eps", float, 1e-5),
        "norm_placement": "post",
        "qk_norm": "full",
        "activation": read_activation(config),
        "qkv_bias": bias,
        "out_bias": bias,
        "tied_head": read_tie(config),
    }


def write_olmo(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read_olmo` takes."""
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
    }


FAMILY = Family("olmo2", "Olmo2ForCausalLM", read, write, OLMO_NAMES)
