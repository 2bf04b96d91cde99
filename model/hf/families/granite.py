"""`granite`: Llama's form with four multipliers. Source: modeling_granite.py.

`attention_multiplier` is the whole query scale, 1 if not given; logits are divided by `logits_scaling`.
"""

from typing import Any

from model.config import LayerKind, ModelConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LLAMA_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    invert,
    query_scale,
    read_activation,
    read_scale,
    read_tie,
    the_rope,
    write_basic_sizes,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a granite config.json."""
    sizes = basic_sizes(config)
    bias = config.take("attention_bias", bool, False)
    divisor = config.take("logits_scaling", float, 1.0)
    if divisor <= 0:
        raise FamilyError(f"{config.origin}: logits_scaling is {divisor}; it should be more than 0")
    return ModelConfig(
        **sizes,
        layers=(LayerKind(rope=read_rope(config, longest=2048)),),
        norm_eps=config.take("rms_norm_eps", float, 1e-6),
        activation=read_activation(config),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.take("mlp_bias", bool, False),
        query_scale=read_scale(config.take("attention_multiplier", float, 1.0), sizes["head_dim"]),
        residual_scale=config.take("residual_multiplier", float, 1.0),
        embedding_scale=config.take("embedding_multiplier", float, 1.0),
        logit_scale=1 / divisor,
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.mlp_bias,
        "attention_multiplier": query_scale(cfg),
        "residual_multiplier": cfg.residual_scale,
        "embedding_multiplier": cfg.embedding_scale,
        "logits_scaling": invert(cfg.logit_scale),
        **write_rope(the_rope(cfg)),
    }


FAMILY = Family("granite", "GraniteForCausalLM", read, write, LLAMA_NAMES)
