"""`cohere`: Aya 23, Aya Expanse and Command R: attention and MLP in parallel. Source: modeling_cohere.py.

LayerNorm without bias, rotary pairs of neighbours, logits multiplied by `logit_scale`, and with `use_qk_norm` a norm of
each query and key head with a scale of its own.
"""

from typing import Any

from model.config import LayerKind, ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LLAMA_NAMES,
    QK_NORM_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    read_activation,
    read_tie,
    the_rope,
    write_basic_sizes,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a cohere config.json."""
    rope = read_rope(config, longest=8192, base=500_000.0, interleaved=True)
    has_norm = config.take("use_qk_norm", bool, False)
    return ModelConfig(
        **read_cohere(config), layers=(LayerKind(rope=rope),), qk_norm="each_head" if has_norm else "none"
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_cohere(cfg) | {"use_qk_norm": cfg.qk_norm == "each_head", **write_rope(the_rope(cfg))}


def read_cohere(config: ConfigFile) -> dict[str, Any]:
    """The fields of `ModelConfig` that both generations share."""
    bias = config.take("attention_bias", bool, False)
    return {
        **basic_sizes(config),
        "norm": "layer",
        "norm_eps": config.take("layer_norm_eps", float, 1e-5),
        "parallel": True,
        "activation": read_activation(config),
        "qkv_bias": bias,
        "out_bias": bias,
        "logit_scale": config.take("logit_scale", float, 0.0625),
        "tied_head": read_tie(config, default=True),
    }


def write_cohere(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read_cohere` takes."""
    return write_basic_sizes(cfg) | {
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        "logit_scale": cfg.logit_scale,
    }


FAMILY = Family("cohere", "CohereForCausalLM", read, write, LLAMA_NAMES | QK_NORM_NAMES)
