"""`stablelm`: LayerNorm, a quarter of each head turned, optionally parallel, with norms per head. Source:
modeling_stablelm.py.

`qk_layernorm` has one tensor for each head.
"""

from typing import Any

from model.config import LayerKind, ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LAYER,
    LLAMA_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    read_activation,
    read_tie,
    the_rope,
    write_basic_sizes,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a stablelm config.json."""
    config.expect("head_dim", config.take_size("hidden_size") // config.take_size("num_attention_heads"))
    return ModelConfig(
        **basic_sizes(config, kv_heads=32),
        layers=(LayerKind(rope=read_rope(config, longest=4096, fraction=0.25)),),
        norm="layer",
        norm_eps=config.take("layer_norm_eps", float, 1e-5),
        norm_bias=True,
        parallel=config.take("use_parallel_residual", bool, False),
        qk_norm="each_head" if config.take("qk_layernorm", bool, False) else "none",
        activation=read_activation(config),
        qkv_bias=config.take("use_qkv_bias", bool, False),
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    rope = the_rope(cfg)
    sizes = write_basic_sizes(cfg)
    return sizes | {
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "use_qkv_bias": cfg.qkv_bias,
        "qk_layernorm": cfg.qk_norm == "each_head",
        "use_parallel_residual": cfg.parallel,
        **write_rope(rope),
        **({"partial_rotary_factor": rope.fraction} if rope else {}),
    }


FAMILY = Family(
    "stablelm",
    "StableLmForCausalLM",
    read,
    write,
    LLAMA_NAMES
    | {
        "attention_norm.bias": LAYER + "input_layernorm.bias",
        "mlp_norm.bias": LAYER + "post_attention_layernorm.bias",
        "final_norm.bias": "model.norm.bias",
        "attention.query_norm.scale": LAYER + "self_attn.q_layernorm.norms.{head}.weight",
        "attention.key_norm.scale": LAYER + "self_attn.k_layernorm.norms.{head}.weight",
    },
)
