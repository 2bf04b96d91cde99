"""Tiny configs further from Llama: gemma2, gemma3_text, olmo2, olmo3, cohere, cohere2, apertus, bloom."""

from typing import Any

from tests.parity.variant import DROP, Variant, patched
from tests.parity.variants_llama import BASE, EPS, LLAMA3_ROPE, NO_SCALING, YARN

SLIDING, FULL = "sliding_attention", "full_attention"

GEMMA2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 2.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 3.0,
    "head_dim": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 16,
    "max_position_embeddings": 128,
    "model_type": "gemma2",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 3,
    "rms_norm_eps": 0.01,
    "rope_theta": 100.0,
    "sliding_window": 5,
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
    "use_cache": True,
    "vocab_size": 67,
}
_GEMMA2_PLAIN = patched(GEMMA2, {
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True, "num_hidden_layers": 4,
    "layer_types": [FULL, SLIDING, SLIDING, FULL], "tie_word_embeddings": False, "head_dim": 4, "vocab_size": 65,
    "intermediate_size": 12, "hidden_activation": "gelu", "num_key_value_heads": 1,
})  # fmt: skip
_CAPS = {
    "attention cap": {"attn_logit_softcapping": None}, "final cap": {"final_logit_softcapping": None},
}  # fmt: skip
_WINDOW = {"window": {"sliding_window": 500}, "window by one": {"sliding_window": 6}}
GEMMA2S = [
    Variant("gemma2_capped", GEMMA2, EPS | BASE | _CAPS | _WINDOW | {
        "query scale": {"query_pre_attn_scalar": 8}}),
    Variant("gemma2_biased", _GEMMA2_PLAIN, EPS | BASE | _WINDOW | {
        "attention bias": {"attention_bias": False}, "layer types": {"layer_types": DROP},
        "exact GELU": {"hidden_activation": "gelu_pytorch_tanh"}}),
]  # fmt: skip

GEMMA3 = patched(GEMMA2, {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "hidden_act": DROP, "eos_token_id": [1, 7], "num_hidden_layers": 5,
    "sliding_window_pattern": 3, "rope_theta": 3000.0, "rope_local_base_freq": 100,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "intermediate_size": 10, "num_key_value_heads": 1,
    "hidden_size": 12,
})  # fmt: skip
_GEMMA3_DEFAULTS = patched(GEMMA3, {
    "sliding_window_pattern": DROP, "rope_theta": DROP, "rope_local_base_freq": DROP, "rope_scaling": DROP,
    "num_hidden_layers": 7, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 65,
})  # fmt: skip
_NESTED = {
    FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 50.0},
}
_GEMMA3_NEW = patched(GEMMA3, {
    "sliding_window_pattern": DROP, "rope_theta": DROP, "rope_local_base_freq": DROP, "rope_scaling": DROP,
    "layer_types": [FULL, SLIDING, SLIDING], "num_hidden_layers": 3, "rope_parameters": _NESTED, "torch_dtype": DROP,
    "dtype": "float32", "_sliding_window_pattern": 3, "final_logit_softcapping": 3.0, "attention_bias": True,
    "tie_word_embeddings": False, "use_bidirectional_attention": False,
})  # fmt: skip
GEMMA3S = [
    Variant("gemma3_hub", GEMMA3, EPS | BASE | NO_SCALING | _WINDOW | {
        "local base": {"rope_local_base_freq": 3000.0}, "pattern": {"sliding_window_pattern": 2},
        "query scale": {"query_pre_attn_scalar": 8}}),
    Variant("gemma3_defaults", _GEMMA3_DEFAULTS, _WINDOW | {
        "global base": {"rope_theta": 10000.0}, "local base": {"rope_local_base_freq": 1000000.0},
        "pattern": {"sliding_window_pattern": 7}}),
    Variant("gemma3_new_keys", _GEMMA3_NEW, EPS | _WINDOW | {
        "final cap": {"final_logit_softcapping": None}, "attention bias": {"attention_bias": False},
        "rope scaling": {"rope_parameters": _NESTED | {FULL: {"rope_type": "default", "rope_theta": 3000.0}}},
        "local base": {"rope_parameters": _NESTED | {SLIDING: {"rope_type": "default", "rope_theta": 3000.0}}},
        "layer types": {"layer_types": DROP}}),
]  # fmt: skip

OLMO2 = patched(GEMMA2, {
    "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attn_logit_softcapping": DROP,
    "cache_implementation": DROP, "final_logit_softcapping": DROP, "head_dim": DROP, "hidden_activation": DROP,
    "query_pre_attn_scalar": DROP, "sliding_window": DROP, "hidden_act": "silu", "rope_scaling": None,
    "tie_word_embeddings": False, "num_hidden_layers": 2, "pad_token_id": 66, "eos_token_id": 64,
})  # fmt: skip
OLMO2S = [
    Variant("olmo2_grouped", OLMO2, EPS | BASE),
    Variant("olmo2_biased", patched(OLMO2, {
        "attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": DROP, "rope_theta": 20.0,
        "rope_scaling": YARN, "hidden_size": 24, "num_attention_heads": 3,
        "intermediate_size": 8}), EPS | NO_SCALING | {
        "attention bias": {"attention_bias": False}}),
]  # fmt: skip

OLMO3 = patched(OLMO2, {
    "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "sliding_window": 5, "num_hidden_layers": 6,
    "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING, SLIDING], "rope_theta": 500000.0,
    "rope_scaling": YARN | {"attention_factor": 1.2079441541679836, "original_max_position_embeddings": 8192},
    "max_position_embeddings": 65536, "intermediate_size": 8,
})  # fmt: skip
_OLMO3_ROPE = {
    FULL: YARN | {"rope_theta": 20.0}, SLIDING: {"rope_type": "default", "rope_theta": 300.0},
}  # fmt: skip
_OLMO3_NEW = patched(OLMO3, {
    "layer_types": DROP, "rope_theta": DROP, "rope_scaling": DROP, "rope_parameters": _OLMO3_ROPE,
    "num_hidden_layers": 5, "attention_bias": True, "tie_word_embeddings": True, "torch_dtype": DROP,
    "dtype": "float32", "max_position_embeddings": 128, "num_key_value_heads": 1, "vocab_size": 65,
    "pad_token_id": 0, "num_attention_heads": 2, "intermediate_size": 6,
})  # fmt: skip
OLMO3S = [
    Variant("olmo3_hub", OLMO3, EPS | NO_SCALING | _WINDOW | {"layer types": {"layer_types": [FULL] + [SLIDING] * 5}}),
    Variant("olmo3_new_keys", _OLMO3_NEW, EPS | _WINDOW | {
        "attention bias": {"attention_bias": False},
        "rope scaling": {"rope_parameters": _OLMO3_ROPE | {FULL: {"rope_type": "default", "rope_theta": 20.0}}},
        "local base": {"rope_parameters": _OLMO3_ROPE | {SLIDING: {"rope_type": "default", "rope_theta": 20.0}}}}),
]  # fmt: skip

COHERE = patched(OLMO2, {
    "architectures": ["CohereForCausalLM"], "model_type": "cohere", "rms_norm_eps": DROP, "layer_norm_eps": 0.01,
    "tie_word_embeddings": DROP, "logit_scale": 0.25, "use_qk_norm": False, "num_key_value_heads": 4,
    "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 7,
})  # fmt: skip
_LAYER_EPS = {"epsilon": {"layer_norm_eps": 1e-6}}
_SCALE = {"logit scale": {"logit_scale": 1.0}}
COHERES = [
    Variant("cohere_tied", COHERE, _LAYER_EPS | BASE | _SCALE),
    Variant("cohere_normed", patched(COHERE, {
        "use_qk_norm": True, "attention_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": False,
        "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 12,
        "rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64}),
        _LAYER_EPS | BASE | _SCALE | {"q/k norm": {"use_qk_norm": False}, "attention bias": {"attention_bias": False}}),
]  # fmt: skip

COHERE2 = patched(COHERE, {
    "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "cache_implementation": "hybrid", "head_dim": 4,
    "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0, "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
    "use_parallel_embedding": True, "sliding_window": 5, "sliding_window_pattern": 3, "num_hidden_layers": 5,
    "num_key_value_heads": 2, "intermediate_size": 10,
})  # fmt: skip
_COHERE2_NEW = patched(COHERE2, {
    "head_dim": DROP, "sliding_window_pattern": DROP, "layer_types": [FULL, SLIDING, SLIDING, FULL], "rope_theta": DROP,
    "num_hidden_layers": 4, "attention_bias": True, "tie_word_embeddings": False, "rope_scaling": DROP,
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}, "torch_dtype": DROP,
    "dtype": "float32", "vocab_size": 65,
})  # fmt: skip
COHERE2S = [
    Variant("cohere2_hub", COHERE2, _LAYER_EPS | BASE | _SCALE | _WINDOW | {"pattern": {"sliding_window_pattern": 2}}),
    Variant("cohere2_biased", _COHERE2_NEW, _SCALE | _WINDOW | {
        "attention bias": {"attention_bias": False}, "layer types": {"layer_types": [SLIDING] * 4},
        "rope scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}}),
]  # fmt: skip

APERTUS = patched(OLMO2, {
    "architectures": ["ApertusForCausalLM"], "model_type": "apertus", "hidden_act": "xielu", "mlp_bias": False,
    "post_norm": False, "qk_norm": True, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": [68, 2],
    "rope_scaling": LLAMA3_ROPE | {"type": "llama3"}, "vocab_size": 72, "intermediate_size": 24,
})  # fmt: skip
APERTUSES = [
    Variant("apertus_hub", APERTUS, EPS | BASE | {"rope scaling": {"rope_scaling": {"rope_type": "default"}}}),
    Variant("apertus_defaults", patched(APERTUS, {
        "rope_theta": DROP, "rope_scaling": DROP, "attention_bias": True, "tie_word_embeddings": True,
        "num_key_value_heads": DROP, "num_attention_heads": 2}), EPS | {
        "attention bias": {"attention_bias": False}, "default base": {"rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0}},
        "default scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 12000000.0}}}),
]  # fmt: skip

BLOOM: dict[str, Any] = {
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 0.01,
    "masked_softmax_fusion": True,
    "model_type": "bloom",
    "n_embed": 18,
    "n_inner": None,
    "n_layer": 2,
    "num_attention_heads": 6,
    "offset_alibi": 100,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "transformers_version": "4.20.0",
    "unk_token_id": 0,
    "use_cache": True,
    "vocab_size": 67,
}
_BLOOM_POST = patched(BLOOM, {
    "apply_residual_connection_post_layernorm": True, "n_embed": DROP, "hidden_size": 16, "num_attention_heads": DROP,
    "n_head": 4, "pretraining_tp": 2, "slow_but_exact": False, "torch_dtype": "float32",
})  # fmt: skip
_BLOOM_EPS = {"epsilon": {"layer_norm_epsilon": 1e-6}}
BLOOMS = [
    Variant("bloom_hub", BLOOM, _BLOOM_EPS | {
        "residual before norm": {"apply_residual_connection_post_layernorm": True}}, prefix_dropped="transformer."),
    Variant("bloom_post_norm", _BLOOM_POST, _BLOOM_EPS | {
        "residual after norm": {"apply_residual_connection_post_layernorm": False}}),
]  # fmt: skip

VARIANTS: list[Variant] = [
    *GEMMA2S, *GEMMA3S, *OLMO2S, *OLMO3S, *COHERES, *COHERE2S, *APERTUSES, *BLOOMS,
]  # fmt: skip
