"""`gemma2`: four norms per layer, soft-caps, every other layer with a window. Source: modeling_gemma2.py.

Norms keep the difference of their scale from one, embeddings are multiplied by the root of the width, and scores by
the inverse root of `query_pre_attn_scalar`. The activation is `hidden_activation`; `hidden_act` is not used.
"""

from typing import Any

from model.config import ModelConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LLAMA_NAMES,
    SANDWICH_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    combine,
    query_scale,
    read_activation,
    read_scale,
    read_sliding,
    read_tie,
    the_rope,
    write_basic_sizes,
    write_sliding,
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of a gemma2 config.json."""
    windows = read_sliding(config, lambda layer: layer % 2 == 0, 4096)
    return ModelConfig(
        **read_gemma(config),
        layers=combine(windows, [read_rope(config, longest=8192)] * len(windows)),
        attention_softcap=config.take_nullable("attn_logit_softcapping", float, 50.0) or 0.0,
        final_softcap=config.take_nullable("final_logit_softcapping", float, 30.0) or 0.0,
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_gemma(cfg) | write_rope(the_rope(cfg))


def read_gemma(config: ConfigFile) -> dict[str, Any]:
    """The fields of `ModelConfig` that Gemma 2 and 3 share."""
    config.ignore("hidden_act")
    config.expect("use_bidirectional_attention", False)
    sizes = basic_sizes(config, kv_heads=4, head_dim=256)
    bias = config.take("attention_bias", bool, False)
    return {
        **sizes,
        "norm_eps": config.take("rms_norm_eps", float, 1e-6),
        "norm_plus_one": True,
        "norm_placement": "sandwich",
        "activation": read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        "qkv_bias": bias,
        "out_bias": bias,
        "query_scale": read_scale(config.take_size("query_pre_attn_scalar", 256) ** -0.5, sizes["head_dim"]),
        "embedding_scale": float(sizes["dim"]) ** 0.5,
        "tied_head": read_tie(config, default=True),
    }


def write_gemma(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read_gemma` takes, windows and soft-caps. Raises FamilyError for a query scale without a key."""
    scale = query_scale(cfg)
    scalar = round(scale**-2)
    if not scalar or scalar**-0.5 != scale:
        raise FamilyError(f"query_scale={scale} is not the inverse root of a whole number")
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_activation": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": cfg.attention_softcap or None,
        "final_logit_softcapping": cfg.final_softcap or None,
        **write_sliding(cfg),
    }


FAMILY = Family("gemma2", "Gemma2ForCausalLM", read, write, LLAMA_NAMES | SANDWICH_NAMES)
