"""`qwen3_moe`: Qwen3's form with experts in some layers. Source: modeling_qwen3_moe.py.

The layers in `mlp_only_layers` have an ordinary MLP, and so have those that `decoder_sparse_step` does not divide. A
window, with `use_sliding_window`, is that of every layer; `max_window_layers` is not looked at.
"""

from typing import Any

import msgspec

from model.config import ExpertsConfig, ModelConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    EXPERT_NAMES,
    LLAMA_NAMES,
    QK_NORM_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    combine,
    read_activation,
    read_tie,
    read_window,
    shortest_pattern,
    the_experts,
    the_rope,
    uniform_window,
    write_basic_sizes,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a qwen3_moe config.json."""
    config.ignore("max_window_layers")
    sizes = basic_sizes(config, kv_heads=4)
    count = sizes["num_layers"]
    window = read_window(config, 4096) if config.take("use_sliding_window", bool, False) else 0
    config.ignore("sliding_window")
    sparse = _read_sparse(config, count)
    kinds = combine([window], [read_rope(config, longest=32_768)])
    bias = config.take("attention_bias", bool, False)
    return ModelConfig(
        **sizes,
        layers=shortest_pattern(msgspec.structs.replace(kinds[0], experts=each) for each in sparse),
        experts=ExpertsConfig(
            num_experts=config.take_alias(("num_experts", "num_local_experts"), 128),
            per_token=config.take_size("num_experts_per_tok", 8),
            dim=config.take_size("moe_intermediate_size", 768),
            normalize=config.take("norm_topk_prob", bool, False),
        ),
        norm_eps=config.take("rms_norm_eps", float, 1e-6),
        qk_norm="head",
        activation=read_activation(config),
        qkv_bias=bias,
        out_bias=bias,
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    experts = the_experts(cfg)
    return write_basic_sizes(cfg) | {
        "moe_intermediate_size": experts.dim,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.per_token,
        "norm_topk_prob": experts.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, kind in enumerate(cfg.kinds) if not kind.experts],
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        "use_sliding_window": uniform_window(cfg) is not None,
        "sliding_window": uniform_window(cfg),
        **write_rope(the_rope(cfg)),
    }


def _read_sparse(config: ConfigFile, count: int) -> list[bool]:
    """For every layer whether it has experts."""
    dense, step = config.take("mlp_only_layers", list, []), config.take_size("decoder_sparse_step", 1)
    wrong = [each for each in dense if not isinstance(each, int) or not 0 <= each < count]
    if wrong:
        raise FamilyError(f"{config.origin}: mlp_only_layers has {wrong[0]!r}; there are layers 0 to {count - 1}")
    return [(layer + 1) % step == 0 and layer not in dense for layer in range(count)]


FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", read, write, LLAMA_NAMES | QK_NORM_NAMES | EXPERT_NAMES)
