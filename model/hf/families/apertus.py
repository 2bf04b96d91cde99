"""`apertus`: an MLP without a gate whose activation, xIELU, learns two numbers per layer; norms of query and key heads.

Two constants of the activation are saved with every layer. Source: modeling_apertus.py, activations.py.
"""

from typing import Any

from model.config import LayerKind, Llama3Scaling, ModelConfig, RopeConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.family import Constant, Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import (
    LAYER,
    LLAMA_NAMES,
    QK_NORM_NAMES,
    WRITTEN_ACTIVATIONS,
    basic_sizes,
    read_tie,
    the_rope,
    write_basic_sizes,
)

BASE = 12_000_000.0
DEFAULT_ROPE = RopeConfig(
    base=BASE,
    scaling=Llama3Scaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192),
)


def read(config: ConfigFile) -> ModelConfig:
    """The model of an apertus config.json."""
    config.expect("hidden_act", "xielu")
    config.expect("mlp_bias", False)
    config.expect("post_norm", False)
    config.expect("qk_norm", True)
    bias = config.take("attention_bias", bool, False)
    return ModelConfig(
        **basic_sizes(config),
        layers=(LayerKind(rope=_read_rope(config)),),
        norm_eps=config.take("rms_norm_eps", float, 1e-5),
        qk_norm="head",
        activation="xielu",
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    rope = the_rope(cfg)
    written = write_rope(rope)
    if rope is not None and rope.scaling is None:
        written["rope_scaling"] = {"rope_type": "default"}
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "attention_bias": cfg.qkv_bias,
        **written,
    }


def _read_rope(config: ConfigFile) -> RopeConfig:
    rope = read_rope(config, longest=65_536, base=BASE)
    if config.has("rope_scaling") or config.has("rope_parameters"):
        return rope
    if rope.base != BASE or config.is_null("rope_scaling"):
        raise FamilyError(
            f"{config.origin}: without a rope_scaling, versions of transformers disagree on what apertus computes; "
            'give one, {"rope_type": "default"} if the weights were trained without'
        )
    return DEFAULT_ROPE


FAMILY = Family(
    "apertus",
    "ApertusForCausalLM",
    read,
    write,
    LLAMA_NAMES
    | QK_NORM_NAMES
    | {
        "attention_norm.scale": LAYER + "attention_layernorm.weight",
        "mlp_norm.scale": LAYER + "feedforward_layernorm.weight",
        "mlp.activation.positive": LAYER + "mlp.act_fn.alpha_p",
        "mlp.activation.negative": LAYER + "mlp.act_fn.alpha_n",
    },
    constants=(Constant(LAYER + "mlp.act_fn.beta", 0.5, ()), Constant(LAYER + "mlp.act_fn.eps", -1e-6, ())),
)
