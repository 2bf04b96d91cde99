"""`mixtral`: Mistral's form with experts in place of every MLP. Source: modeling_mixtral.py.

`w1`, `w3` and `w2` of an expert are its gate, up and down. The chosen experts' probabilities always sum to one.
"""

from typing import Any

from model.config import ExpertsConfig, LayerKind, ModelConfig
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
    read_window,
    the_experts,
    the_rope,
    uniform_window,
    write_basic_sizes,
)

MOE = LAYER + "block_sparse_moe."


def read(config: ConfigFile) -> ModelConfig:
    """The model of a mixtral config.json."""
    sizes = basic_sizes(config, kv_heads=8)
    rope = read_rope(config, longest=131_072, base=1_000_000.0)
    return ModelConfig(
        **sizes,
        layers=(LayerKind(window=read_window(config), rope=rope, experts=True),),
        experts=ExpertsConfig(
            num_experts=config.take_alias(("num_local_experts", "num_experts"), 8),
            per_token=config.take_size("num_experts_per_tok", 2),
            dim=sizes["mlp_dim"],
        ),
        norm_eps=config.take("rms_norm_eps", float, 1e-5),
        activation=read_activation(config),
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    experts = the_experts(cfg)
    return write_basic_sizes(cfg) | {
        "intermediate_size": experts.dim,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.per_token,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "sliding_window": uniform_window(cfg),
        **write_rope(the_rope(cfg)),
    }


FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    read,
    write,
    LLAMA_NAMES
    | {
        "experts.router": MOE + "gate.weight",
        "experts.gate": MOE + "experts.{expert}.w1.weight",
        "experts.up": MOE + "experts.{expert}.w3.weight",
        "experts.down": MOE + "experts.{expert}.w2.weight",
    },
)
