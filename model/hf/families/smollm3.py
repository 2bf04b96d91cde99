"""`smollm3`: Llama's form with layers that have no rotary embedding. Source: modeling_smollm3.py.

In `no_rope_layers`, 1 means that a layer has it. Windows are those of layers without it, unless `layer_types` says
otherwise.
"""

from typing import Any

from model.config import ModelConfig
from model.hf.config_file import ConfigFile, FamilyError
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
    """The model of a smollm3 config.json."""
    sizes = basic_sizes(config, kv_heads=4)
    turned = _read_turned(config, sizes["num_layers"])
    rope = read_rope(config, longest=32_768, base=2_000_000.0)
    windows = read_optional_sliding(config, lambda layer: not turned[layer])
    config.ignore("max_window_layers")  # of qwen2, which it was made from
    bias = config.take("attention_bias", bool, False)
    return ModelConfig(
        **sizes,
        layers=combine(windows, [rope if each else None for each in turned]),
        norm_eps=config.take("rms_norm_eps", float, 1e-6),
        activation=read_activation(config),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.take("mlp_bias", bool, False),
        tied_head=read_tie(config, default=True),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.mlp_bias,
        "no_rope_layers": [int(kind.rope is not None) for kind in cfg.kinds],
        "use_sliding_window": the_window(cfg) > 0,
        **write_sliding(cfg),
        **write_rope(the_rope(cfg)),
    }


def _read_turned(config: ConfigFile, count: int) -> list[bool]:
    interval = config.take_size("no_rope_layer_interval", 4)
    turned = config.take("no_rope_layers", list, [int((i + 1) % interval != 0) for i in range(count)])
    if len(turned) < count or any(each not in (0, 1) for each in turned):
        raise FamilyError(
            f"{config.origin}: no_rope_layers is {turned}; it should be 0 or 1 for each of {count} layers"
        )
    return [bool(each) for each in turned[:count]]


FAMILY = Family("smollm3", "SmolLM3ForCausalLM", read, write, LLAMA_NAMES)
