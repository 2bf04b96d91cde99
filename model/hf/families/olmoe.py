"""`olmoe`: experts in every layer, norms of all queries and all keys at once, which may be clipped then. Source:
modeling_olmoe.py.
"""

from typing import Any

from model.config import ExpertsConfig, LayerKind, ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    EXPERT_NAMES,
    LLAMA_NAMES,
    QK_NORM_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    read_activation,
    read_tie,
    the_experts,
    the_rope,
    write_basic_sizes,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of an olmoe config.json."""
    config.expect("head_dim", config.take_size("hidden_size") // config.take_size("num_attention_heads"))
    sizes = basic_sizes(config)
    bias = config.take("attention_bias", bool, False)
    return ModelConfig(
        **sizes,
        layers=(LayerKind(rope=read_rope(config, longest=4096), experts=True),),
        experts=ExpertsConfig(
            num_experts=config.take_alias(("num_experts", "num_local_experts"), 64),
            per_token=config.take_size("num_experts_per_tok", 8),
            dim=sizes["mlp_dim"],
            normalize=config.take("norm_topk_prob", bool, False),
        ),
        norm_eps=config.take("rms_norm_eps", float, 1e-5),
        qk_norm="full",
        qkv_clip=config.take("clip_qkv", float, 0.0),
        activation=read_activation(config),
        qkv_bias=bias,
        out_bias=bias,
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    experts = the_experts(cfg)
    return write_basic_sizes(cfg) | {
        "intermediate_size": experts.dim,
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.per_token,
        "norm_topk_prob": experts.normalize,
        "clip_qkv": cfg.qkv_clip or None,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        **write_rope(the_rope(cfg)),
    }


FAMILY = Family("olmoe", "OlmoeForCausalLM", read, write, LLAMA_NAMES | QK_NORM_NAMES | EXPERT_NAMES)
