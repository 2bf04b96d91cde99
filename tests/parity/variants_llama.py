"""Tiny configs of the Llama-like families: llama, mistral, qwen2, qwen3, phi3, granite, smollm3, stablelm."""

from typing import Any

from tests.parity.variant import DROP, Variant, patched

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 20,
    "max_position_embeddings": 128,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 0.01,
    "rope_scaling": None,
    "rope_theta": 100.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.43.0",
    "use_cache": True,
    "vocab_size": 61,
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}
YARN = {
    "beta_fast": 2.0,
    "beta_slow": 1.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_type": "yarn",
}
LONG_YARN = YARN | {"factor": 2.0, "original_max_position_embeddings": 64}
EPS = {"epsilon": {"rms_norm_eps": 1e-6}}
BASE = {"base": {"rope_theta": 5000.0}}
NO_SCALING = {"rope scaling": {"rope_scaling": None}}
GROUPED = {"grouped heads": {"num_key_value_heads": 1}}

_LLAMA_1 = patched(LLAMA, {
    "num_key_value_heads": DROP, "attention_bias": DROP, "mlp_bias": DROP, "rope_theta": DROP, "rope_scaling": DROP,
    "pretraining_tp": DROP, "max_position_embeddings": DROP, "max_sequence_length": 2048, "pad_token_id": -1,
    "rms_norm_eps": 1e-06, "transformers_version": "4.27.0", "vocab_size": 70,
})  # fmt: skip
_LLAMA_3 = patched(LLAMA, {
    "head_dim": 8, "rope_scaling": LLAMA3_ROPE, "eos_token_id": [2, 5, 7], "tie_word_embeddings": True,
})  # fmt: skip
_LLAMA_BIASED = patched(LLAMA, {
    "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "hidden_size": 18, "num_attention_heads": 6,
    "rope_theta": 20.0, "head_dim": 8, "rope_scaling": LONG_YARN, "intermediate_size": 10, "vocab_size": 64,
})  # fmt: skip
_LLAMA_NEW = patched(LLAMA, {
    "rope_theta": DROP, "rope_scaling": DROP, "torch_dtype": DROP, "dtype": "float32", "head_dim": 8,
    "rope_parameters": YARN | {"rope_theta": 20.0, "mscale": 2.0, "mscale_all_dim": 1.0, "truncate": False},
    "transformers_version": "5.0.0",
})  # fmt: skip
_LLAMA_NEW_LLAMA3 = patched(_LLAMA_NEW, {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 100.0}, "vocab_size": 65})

LLAMAS = [
    Variant("llama_1", _LLAMA_1, {"epsilon": {"rms_norm_eps": 0.01}, "base": {"rope_theta": 100.0}},
            rotary_buffers=True),
    Variant("llama_linear", patched(LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.5}}),
            EPS | BASE | NO_SCALING),
    Variant("llama_3", _LLAMA_3, EPS | BASE | NO_SCALING),
    Variant("llama_biased_yarn", _LLAMA_BIASED, EPS | BASE | NO_SCALING | {
        "attention bias": {"attention_bias": False}, "feed-forward bias": {"mlp_bias": False},
        "exact GELU": {"hidden_act": "gelu_pytorch_tanh"}, "activation": {"hidden_act": "silu"},
        "attention factor": {"rope_scaling": LONG_YARN | {"attention_factor": 1.0}},
        "start of ramp": {"rope_scaling": LONG_YARN | {"beta_fast": 32.0}}}),
    Variant("llama_dynamic", patched(LLAMA, {
        "rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 16}), NO_SCALING,
        prompt_length=18),
    Variant("llama_yarn_mscale", _LLAMA_NEW, {
        "end of ramp": {"rope_parameters": _LLAMA_NEW["rope_parameters"] | {"beta_slow": 2.0}},
        "mscale": {"rope_parameters": YARN | {"rope_theta": 20.0, "truncate": False}},
        "truncate": {"rope_parameters": _LLAMA_NEW["rope_parameters"] | {"truncate": True}},
        "rope scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}}}),
    Variant("llama_new_keys", _LLAMA_NEW_LLAMA3, {
        "rope scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        "base": {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5000.0}}}),
]  # fmt: skip

MISTRAL = patched(LLAMA, {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "attention_bias": DROP, "mlp_bias": DROP,
    "pretraining_tp": DROP, "rope_scaling": DROP, "sliding_window": 5, "vocab_size": 70,
})  # fmt: skip
_MISTRAL_NEW = patched(MISTRAL, {
    "head_dim": 6, "sliding_window": None, "rope_theta": DROP, "tie_word_embeddings": True, "vocab_size": 69,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "torch_dtype": DROP, "dtype": "float32",
})  # fmt: skip
MISTRALS = [
    Variant("mistral_window", MISTRAL, EPS | BASE | {"window": {"sliding_window": None},
            "window by one": {"sliding_window": 6}}),
    Variant("mistral_full", _MISTRAL_NEW, EPS | {"base": {"rope_parameters": DROP}, "window": {"sliding_window": 5}}),
]  # fmt: skip

QWEN2 = patched(LLAMA, {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_bias": DROP, "mlp_bias": DROP,
    "pretraining_tp": DROP, "rope_scaling": DROP, "sliding_window": 4, "use_sliding_window": False,
    "max_window_layers": 1, "tie_word_embeddings": True, "vocab_size": 72,
})  # fmt: skip
_QWEN2_WINDOW = patched(QWEN2, {
    "use_sliding_window": True, "max_window_layers": 2, "num_hidden_layers": 4, "tie_word_embeddings": False,
    "rope_theta": 20.0, "intermediate_size": 12, "num_key_value_heads": 1,
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"}, "vocab_size": 65,
})  # fmt: skip
_QWEN2_LAYERS = patched(QWEN2, {
    "use_sliding_window": True, "num_hidden_layers": 5, "rope_theta": DROP, "intermediate_size": 12,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] + ["sliding_attention"] * 2,
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}, "torch_dtype": DROP,
    "dtype": "float32",
})  # fmt: skip
QWEN2S = [
    Variant("qwen2_tied", QWEN2, EPS | BASE | {"unused window": {"use_sliding_window": True}}),
    Variant("qwen2_window", _QWEN2_WINDOW, EPS | BASE | NO_SCALING | {
        "window": {"use_sliding_window": False}, "first full layers": {"max_window_layers": 1}}),
    Variant("qwen2_layer_types", _QWEN2_LAYERS, {
        "window": {"use_sliding_window": False, "layer_types": DROP}, "layer types": {"layer_types": DROP},
        "rope scaling": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}}),
]  # fmt: skip

QWEN3 = patched(QWEN2, {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 8,
    "sliding_window": None, "max_window_layers": 2, "rope_scaling": None,
})  # fmt: skip
_QWEN3_WINDOW = patched(QWEN3, {
    "attention_bias": True, "num_hidden_layers": 5, "use_sliding_window": True, "sliding_window": 5, "vocab_size": 65,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "tie_word_embeddings": False, "rope_theta": 20.0, "rope_scaling": YARN, "intermediate_size": 10, "hidden_size": 12,
    "num_attention_heads": 3, "num_key_value_heads": 1,
})  # fmt: skip
QWEN3S = [
    Variant("qwen3_tied", QWEN3, EPS | BASE),
    Variant("qwen3_window", _QWEN3_WINDOW, EPS | BASE | NO_SCALING | {
        "window": {"use_sliding_window": False, "layer_types": DROP}, "attention bias": {"attention_bias": False}}),
]  # fmt: skip

PHI3 = patched(LLAMA, {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "mlp_bias": DROP, "pretraining_tp": DROP,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0, "resid_pdrop": 0.0, "pad_token_id": 6, "original_max_position_embeddings": 64,
    "max_position_embeddings": 512, "sliding_window": 2048, "hidden_size": 24, "num_attention_heads": 3,
    "num_key_value_heads": 1, "intermediate_size": 12, "vocab_size": 66,
    "rope_scaling": {
        "long_factor": [1.5, 3.0, 6.0, 9.0], "short_factor": [1.0, 1.25, 1.5, 2.0], "type": "longrope"},
})  # fmt: skip
_PHI3_PLAIN = patched(PHI3, {
    "auto_map": DROP, "rope_scaling": None, "sliding_window": 5, "original_max_position_embeddings": 128,
    "max_position_embeddings": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 16,
})  # fmt: skip
_PHI3_PARTIAL = patched(PHI3, {
    "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "sliding_window": 7,
    "original_max_position_embeddings": 12, "rope_scaling": {
        "long_factor": [1.5, 3.0, 6.0], "short_factor": [1.0, 1.25, 1.5], "type": "longrope"},
})  # fmt: skip
_FLAT = {"attention scale": {"max_position_embeddings": 64}}
PHI3S = [
    Variant("phi3_longrope_short", PHI3, EPS | BASE | NO_SCALING | _FLAT | {
        "short side": {"original_max_position_embeddings": 12, "max_position_embeddings": 96}}),
    Variant("phi3_longrope_long", patched(PHI3, {
        "original_max_position_embeddings": 12, "max_position_embeddings": 96}), EPS | NO_SCALING | {
        "long side": {"original_max_position_embeddings": 64, "max_position_embeddings": 512},
        "attention scale": {"max_position_embeddings": 12}}, prompt_length=16, crossing_length=8),
    Variant("phi3_partial", _PHI3_PARTIAL, BASE | {
        "window": {"sliding_window": None},
        "part turned": {"partial_rotary_factor": 1.0, "rope_scaling": None}}, prompt_length=16),
    Variant("phi3_plain", _PHI3_PLAIN, EPS | BASE | {"window": {"sliding_window": None}}),
]  # fmt: skip

GRANITE = patched(LLAMA, {
    "architectures": ["GraniteForCausalLM"], "model_type": "granite", "pretraining_tp": DROP,
    "attention_multiplier": 0.4, "embedding_multiplier": 0.4, "logits_scaling": 2.0, "residual_multiplier": 1.6,
    "tie_word_embeddings": True,
})  # fmt: skip
_MULTIPLIERS = {
    f"{key} multiplier": {name: 1.0}
    for key, name in {
        "attention": "attention_multiplier", "embedding": "embedding_multiplier", "logits": "logits_scaling",
        "residual": "residual_multiplier"}.items()
}  # fmt: skip
GRANITES = [
    Variant("granite_tied", GRANITE, EPS | BASE | _MULTIPLIERS),
    Variant("granite_biased", patched(GRANITE, {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "logits_scaling": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0}}), _MULTIPLIERS | NO_SCALING | {
        "attention bias": {"attention_bias": False}, "feed-forward bias": {"mlp_bias": False}}),
]  # fmt: skip

SMOLLM3 = patched(LLAMA, {
    "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "pretraining_tp": 2, "pad_token_id": 5,
    "max_window_layers": 28, "no_rope_layer_interval": 3, "no_rope_layers": [1, 1, 0, 1], "num_hidden_layers": 4,
    "layer_types": ["full_attention"] * 4, "sliding_window": None, "use_sliding_window": False,
    "tie_word_embeddings": DROP, "rope_scaling": YARN, "rope_theta": 20.0, "intermediate_size": 12,
    "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 65,
})  # fmt: skip
_SMOLLM3_WINDOW = patched(SMOLLM3, {
    "attention_bias": True, "mlp_bias": True, "no_rope_layers": DROP, "layer_types": DROP, "rope_scaling": DROP,
    "rope_theta": DROP, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "num_hidden_layers": 5,
    "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5, "tie_word_embeddings": False,
    "intermediate_size": 10,
})  # fmt: skip
SMOLLM3S = [
    Variant("smollm3_tied", SMOLLM3, EPS | BASE | NO_SCALING | {
        "no-position layers": {"no_rope_layers": [1, 1, 1, 1]}}),
    Variant("smollm3_window", _SMOLLM3_WINDOW, EPS | {
        "no-position layers": {"no_rope_layer_interval": 9}, "window": {"use_sliding_window": False},
        "attention bias": {"attention_bias": False}, "feed-forward bias": {"mlp_bias": False}}),
]  # fmt: skip

STABLELM = patched(LLAMA, {
    "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "rms_norm_eps": DROP, "attention_bias": DROP,
    "mlp_bias": DROP, "pretraining_tp": DROP, "rope_scaling": DROP, "layer_norm_eps": 0.01, "hidden_dropout": 0.0,
    "partial_rotary_factor": 0.5, "use_qkv_bias": True, "hidden_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 12,
})  # fmt: skip
_STABLELM_12B = patched(STABLELM, {
    "qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": False, "tie_word_embeddings": True,
    "num_key_value_heads": 1, "partial_rotary_factor": DROP,
})  # fmt: skip
_LAYER_EPS = {"epsilon": {"layer_norm_eps": 1e-6}}
STABLELMS = [
    Variant("stablelm_sequential", STABLELM, _LAYER_EPS | BASE | {
        "attention bias": {"use_qkv_bias": False}, "part turned": {"partial_rotary_factor": 1.0}}),
    Variant("stablelm_parallel", _STABLELM_12B, _LAYER_EPS | {
        "base": {"partial_rotary_factor": 0.5}, "q/k norm": {"qk_layernorm": False},
        "parallel residual": {"use_parallel_residual": False}}),
]  # fmt: skip

VARIANTS: list[Variant] = [
    *LLAMAS, *MISTRALS, *QWEN2S, *QWEN3S, *PHI3S, *GRANITES, *SMOLLM3S, *STABLELMS,
]  # fmt: skip
