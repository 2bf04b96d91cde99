"""`qwen2`: Qwen2 and Qwen2.5: Llama's form with biases on queries, keys and values. Source: modeling_qwen2.py.

A window counts only with `use_sliding_window`, and from layer `max_window_layers` on.
"""

from typing import Any

from model.config import ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LLAMA_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    combine,
    read_activation,
    read_optional_sliding,
    read_tie,
    the_rope,
    the_window,
    write_basic_sizes,
    write_sliding,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a qwen2 config.json."""
    config.expect("use_mrope", False)
    first_window = config.take("max_window_layers", int, 28)
    windows = read_optional_sliding(config, lambda layer: layer >= first_window, 4096)
    return ModelConfig(
        **basic_sizes(config, kv_heads=32),
        layers=combine(windows, [read_rope(config, longest=32_768)] * len(windows)),
        norm_eps=config.take("rms_norm_eps", float, 1e-6),
        activation=read_activation(config),
        qkv_bias=True,
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "use_sliding_window": the_window(cfg) > 0,
        **write_sliding(cfg),
        **write_rope(the_rope(cfg)),
    }


FAMILY = Family("qwen2", "Qwen2ForCausalLM", read, write, LLAMA_NAMES)
