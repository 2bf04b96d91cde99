"""`bloom`: BLOOM and BLOOMZ: ALiBi, LayerNorm also after the embedding, biases everywhere. Source: modeling_bloom.py.

Query, key and value of a head lie together in one tensor. Folders saved from the bare decoder have tensors named
`word_embeddings.weight`, `h.0...`; others put `transformer.` before them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.config import LayerKind, ModelConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.family import Family, Fused
from model.hf.shared import read_tie

LAYER = "h.{layer}."


def read(config: ConfigFile) -> ModelConfig:
    """The model of a bloom config.json."""
    dim, heads = config.take_alias(("hidden_size", "n_embed")), config.take_alias(("n_head", "num_attention_heads"))
    if dim % heads:
        raise FamilyError(f"{config.origin}: hidden_size={dim} is not a multiple of n_head={heads}")
    config.expect("n_inner", 4 * dim)
    normed = config.take("apply_residual_connection_post_layernorm", bool, False)
    return ModelConfig(
        vocab_size=config.take_size("vocab_size"),
        num_layers=config.take_depth("n_layer", "num_hidden_layers"),
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=4 * dim,
        layers=(LayerKind(rope=None),),
        norm="layer",
        norm_eps=config.take("layer_norm_epsilon", float, 1e-5),
        norm_bias=True,
        norm_placement="stem" if normed else "pre",
        qkv_bias=True,
        out_bias=True,
        alibi=True,
        activation="gelu_tanh",
        gated=False,
        mlp_bias=True,
        embedding_norm=True,
        tied_head=read_tie(config, default=True),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return {
        "vocab_size": cfg.vocab_size,
        "n_layer": cfg.num_layers,
        "hidden_size": cfg.dim,
        "n_head": cfg.num_heads,
        "layer_norm_epsilon": cfg.norm_eps,
        "apply_residual_connection_post_layernorm": cfg.norm_placement == "stem",
        "tie_word_embeddings": cfg.tied_head,
    }


def split_heads(array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Query, key and value, as weights (D, N, H) or biases (N, H), out of (N 3 H, D) or (N 3 H)."""
    heads, width = shapes[0][-2:]
    parts = np.moveaxis(array.reshape(heads, 3, width, -1), 1, 0)
    return [part.transpose(2, 0, 1).reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def join_heads(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `split_heads`."""
    heads, width = arrays[0].shape[-2:]
    parts = np.stack([array.reshape(-1, heads, width).transpose(1, 2, 0) for array in arrays], axis=1)
    rows = 3 * heads * width
    return parts.reshape((rows,) if arrays[0].ndim == 2 else (rows, math.prod(arrays[0].shape[:-2])))


FAMILY = Family(
    "bloom",
    "BloomForCausalLM",
    read,
    write,
    {
        "embedding.weight": "word_embeddings.weight",
        "embedding_norm.scale": "word_embeddings_layernorm.weight",
        "embedding_norm.bias": "word_embeddings_layernorm.bias",
        "attention_norm.scale": LAYER + "input_layernorm.weight",
        "attention_norm.bias": LAYER + "input_layernorm.bias",
        "attention.out.weight": LAYER + "self_attention.dense.weight",
        "attention.out.bias": LAYER + "self_attention.dense.bias",
        "mlp_norm.scale": LAYER + "post_attention_layernorm.weight",
        "mlp_norm.bias": LAYER + "post_attention_layernorm.bias",
        "mlp.up.weight": LAYER + "mlp.dense_h_to_4h.weight",
        "mlp.up.bias": LAYER + "mlp.dense_h_to_4h.bias",
        "mlp.down.weight": LAYER + "mlp.dense_4h_to_h.weight",
        "mlp.down.bias": LAYER + "mlp.dense_4h_to_h.bias",
        "final_norm.scale": "ln_f.weight",
        "final_norm.bias": "ln_f.bias",
        "head.weight": "lm_head.weight",
    },
    fused=tuple(
        Fused(
            LAYER + f"self_attention.query_key_value.{kind}",
            tuple(f"attention.{name}.{kind}" for name in ("query", "key", "value")),
            split_heads,
            join_heads,
        )
        for kind in ("weight", "bias")
    ),
    optional_prefix="transformer.",
)
