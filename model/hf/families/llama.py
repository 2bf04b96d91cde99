"""`llama`: Llama 1 to 3.x, and those that share its form: EuroLLM, Salamandra, SmolLM. Source: modeling_llama.py."""

from typing import Any

from model.config import LayerKind, ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LLAMA_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    read_activation,
    read_tie,
    the_rope,
    write_basic_sizes,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a llama config.json."""
    config.expect("rope_interleaved", False)  # SmolLM's configs say so
    bias = config.take("attention_bias", bool, False)
    return ModelConfig(
        **basic_sizes(config),
        layers=(LayerKind(rope=read_rope(config, longest=2048)),),
        norm_eps=config.take("rms_norm_eps", float, 1e-6),
        activation=read_activation(config),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.take("mlp_bias", bool, False),
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.mlp_bias,
        **write_rope(the_rope(cfg)),
    }


FAMILY = Family("llama", "LlamaForCausalLM", read, write, LLAMA_NAMES)
