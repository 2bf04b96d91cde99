"""`mistral`: Llama's form, and a window that all layers share. Source: modeling_mistral.py.

A window that is null is none; one that is not given at all is 4096.
"""

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
    read_window,
    the_rope,
    uniform_window,
    write_basic_sizes,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a mistral config.json."""
    return ModelConfig(
        **basic_sizes(config, kv_heads=8),
        layers=(LayerKind(window=read_window(config, 4096), rope=read_rope(config, longest=131_072)),),
        norm_eps=config.take("rms_norm_eps", float, 1e-6),
        activation=read_activation(config),
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "sliding_window": uniform_window(cfg),
        **write_rope(the_rope(cfg)),
    }


FAMILY = Family("mistral", "MistralForCausalLM", read, write, LLAMA_NAMES)
