"""`phi3`: Phi-3, 3.5 and 4: Llama's form, two fused tensors, two lists of rope factors. Source: modeling_phi3.py.

`original_max_position_embeddings` lies beside the scaling, which is called longrope, su or yarn and is always the
first of these.
"""

from typing import Any

from model.config import LayerKind, LongScaling, ModelConfig, RopeConfig
from model.hf.config_file import ConfigFile
from model.hf.family import Family, Fused, join_rows, split_rows
from model.hf.rope_keys import long_attention_factor, read_rope, write_rope
from model.hf.shared import (
    LAYER,
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
    """The model of a phi3 config.json."""
    config.expect("attention_bias", False)
    config.expect("mlp_bias", False)
    config.expect("lm_head_bias", False)
    config.expect("full_attn_mod", 1)
    config.expect("interpolate_factor", 1)
    rope = read_rope(config, longest=4096, fraction=1.0, original=4096, yarn_is_long=True)
    return ModelConfig(
        **basic_sizes(config),
        layers=(LayerKind(window=read_window(config), rope=rope),),
        norm_eps=config.take("rms_norm_eps", float, 1e-5),
        activation=read_activation(config),
        tied_head=read_tie(config),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_basic_sizes(cfg) | {
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[cfg.activation],
        "sliding_window": uniform_window(cfg),
        **_write_rope(the_rope(cfg)),
    }


def _write_rope(rope: RopeConfig | None) -> dict[str, Any]:
    """As published, where the attention factor is the one that the two lengths imply: older readers take no other."""
    written = write_rope(rope)
    if rope is None or not isinstance(rope.scaling, LongScaling):
        return written
    scaling, values = rope.scaling, dict(written["rope_scaling"])
    original = values.pop("original_max_position_embeddings")
    longest = round(original ** (scaling.attention_factor**2))
    if long_attention_factor(longest / original, original) == scaling.attention_factor:
        del values["attention_factor"]
        written["max_position_embeddings"] = longest
    values["type"] = values.pop("rope_type")
    return written | {"rope_scaling": values, "original_max_position_embeddings": original}


FAMILY = Family(
    "phi3",
    "Phi3ForCausalLM",
    read,
    write,
    LLAMA_NAMES,
    fused=(
        Fused(
            LAYER + "self_attn.qkv_proj.weight",
            ("attention.query.weight", "attention.key.weight", "attention.value.weight"),
            split_rows,
            join_rows,
        ),
        Fused(LAYER + "mlp.gate_up_proj.weight", ("mlp.gate.weight", "mlp.up.weight"), split_rows, join_rows),
    ),
)
