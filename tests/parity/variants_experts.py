"""Tiny configs of the families with experts: mixtral, qwen3_moe, olmoe."""

from tests.parity.variant import DROP, Variant, patched
from tests.parity.variants_llama import BASE, EPS, LLAMA, YARN

MIXTRAL = patched(LLAMA, {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "attention_bias": DROP, "mlp_bias": DROP,
    "pretraining_tp": DROP, "rope_scaling": DROP, "num_experts_per_tok": 2, "num_local_experts": 5,
    "output_router_logits": False, "router_aux_loss_coef": 0.02, "sliding_window": None, "intermediate_size": 8,
})  # fmt: skip
_MIXTRAL_WINDOW = patched(MIXTRAL, {
    "head_dim": 6, "sliding_window": 5, "num_experts_per_tok": 3, "num_local_experts": 4, "tie_word_embeddings": True,
    "router_jitter_noise": 0.0, "num_key_value_heads": 1, "rope_theta": DROP, "torch_dtype": DROP, "dtype": "float32",
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}, "vocab_size": 70,
})  # fmt: skip
_TOP = {"experts of a token": {"num_experts_per_tok": 1}}
MIXTRALS = [
    Variant("mixtral_hub", MIXTRAL, EPS | BASE | _TOP),
    Variant("mixtral_window", _MIXTRAL_WINDOW, EPS | _TOP | {"window": {"sliding_window": None}, "rope scaling": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}}),
]  # fmt: skip

QWEN3_MOE = patched(LLAMA, {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "mlp_bias": DROP, "pretraining_tp": DROP,
    "decoder_sparse_step": 1, "head_dim": 8, "max_window_layers": 2, "mlp_only_layers": [], "moe_intermediate_size": 6,
    "norm_topk_prob": True, "num_experts": 6, "num_experts_per_tok": 3, "output_router_logits": False,
    "router_aux_loss_coef": 0.001, "sliding_window": None, "use_sliding_window": False, "intermediate_size": 20,
})  # fmt: skip
_QWEN3_MOE_MIXED = patched(QWEN3_MOE, {
    "attention_bias": True, "decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": False,
    "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 6, "use_sliding_window": True, "sliding_window": 5,
    "tie_word_embeddings": True, "rope_theta": 20.0, "rope_scaling": YARN, "hidden_size": 12, "intermediate_size": 8,
    "vocab_size": 65,
})  # fmt: skip
_DENSE_ALL = {"experts": {"mlp_only_layers": list(range(6))}}
QWEN3_MOES = [
    Variant("qwen3_moe_hub", QWEN3_MOE, EPS | BASE | _TOP | {
        "weights that sum to one": {"norm_topk_prob": False}, "experts": {"mlp_only_layers": [0, 1]}}),
    Variant("qwen3_moe_mixed", _QWEN3_MOE_MIXED, EPS | BASE | _TOP | _DENSE_ALL | {
        "weights as they are": {"norm_topk_prob": True}, "window": {"use_sliding_window": False},
        "attention bias": {"attention_bias": False}, "rope scaling": {"rope_scaling": None}}),
]  # fmt: skip

OLMOE = patched(LLAMA, {
    "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "mlp_bias": DROP, "pretraining_tp": DROP,
    "clip_qkv": None, "norm_topk_prob": False, "num_experts": 6, "num_experts_per_tok": 3,
    "output_router_logits": False, "router_aux_loss_coef": 0.01, "num_key_value_heads": 4, "intermediate_size": 6,
    "pad_token_id": 1,
})  # fmt: skip
_OLMOE_CLIPPED = patched(OLMOE, {
    "clip_qkv": 0.8, "norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": 2, "num_experts": 4,
    "num_experts_per_tok": 2, "tie_word_embeddings": True, "intermediate_size": 8, "vocab_size": 70,
})  # fmt: skip
OLMOES = [
    Variant("olmoe_hub", OLMOE, EPS | BASE | _TOP | {"weights as they are": {"norm_topk_prob": True}}),
    Variant("olmoe_clipped", _OLMOE_CLIPPED, EPS | BASE | _TOP | {
        "clip": {"clip_qkv": None}, "weights that sum to one": {"norm_topk_prob": False},
        "attention bias": {"attention_bias": False}}),
]  # fmt: skip

VARIANTS: list[Variant] = [*MIXTRALS, *QWEN3_MOES, *OLMOES]
