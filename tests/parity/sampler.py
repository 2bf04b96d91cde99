"""Fresh random configs of a family, over its switches and sizes, for the live suite."""

import random
from collections.abc import Callable
from typing import Any

Config = dict[str, Any]

SLIDING, FULL = "sliding_attention", "full_attention"
TIED_BY_DEFAULT = {"gemma2", "gemma3_text", "cohere", "cohere2", "bloom", "smollm3"}
CLASSES = {
    "gemma3_text": "Gemma3ForCausalLM", "smollm3": "SmolLM3ForCausalLM", "stablelm": "StableLmForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}  # fmt: skip


def draw_config(model_type: str, seed: int) -> Config:
    """A config.json of the family as a dict; the same for the same seed. Meant for sequences of up to 40 tokens.

    Raises ValueError for a family without a sampler.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"no sampler for {model_type!r}; there are {', '.join(FAMILIES)}")
    rng = random.Random(f"{model_type}/{seed}")
    config: Config = {
        "model_type": model_type,
        "architectures": [CLASSES.get(model_type, model_type.capitalize() + "ForCausalLM")],
        "vocab_size": rng.randint(48, 96),
        "max_position_embeddings": 256,
        rng.choice(["torch_dtype", "dtype"]): "float32",
    }
    if rng.random() < 0.7 or model_type not in TIED_BY_DEFAULT:
        config["tie_word_embeddings"] = rng.random() < 0.5
    FAMILIES[model_type](rng, config)
    return config


def sizes(rng: random.Random, config: Config, *, free_head_dim: bool = False) -> None:
    """Sets layers, widths, heads and the epsilon."""
    heads = rng.choice([2, 3, 4, 6])
    head_dim = rng.choice([4, 6, 8])
    divisors = [number for number in range(1, heads + 1) if heads % number == 0]
    config |= {
        "num_hidden_layers": rng.randint(1, 5),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice(divisors),
        "hidden_size": heads * head_dim,
        "intermediate_size": rng.choice([10, 16, 24]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-2]),
    }
    if free_head_dim:
        config["head_dim"] = rng.choice([4, 6, 8, 10])


def head_width(config: Config) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def scaling(rng: random.Random, kinds: list[str]) -> Config | None:
    """The scaling part of a rope dict, without its base; None for none."""
    kind = rng.choice(["default", *kinds])
    original = {"original_max_position_embeddings": rng.choice([8, 16, 64])}
    if kind == "linear":
        return {"rope_type": kind, "factor": rng.choice([1.5, 4.0])}
    if kind == "dynamic":
        return {"rope_type": kind, "factor": rng.choice([1.5, 4.0])}
    if kind == "llama3":
        return original | {"rope_type": kind, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "yarn":
        options: Config = {"beta_fast": rng.choice([2.0, 8.0, 32.0]), "beta_slow": 1.0}
        if rng.random() < 0.5:
            options |= rng.choice([{"attention_factor": 1.3}, {"mscale": 0.7, "mscale_all_dim": 1.0}])
        return original | options | {"rope_type": kind, "factor": rng.choice([2.0, 4.0])}
    return None


def rope(rng: random.Random, config: Config, kinds: tuple[str, ...] = ("linear", "llama3", "yarn", "dynamic")) -> None:
    """Sets base and scaling, in the old spelling or the new."""
    base = rng.choice([20.0, 100.0, 10000.0])
    scaled = scaling(rng, list(kinds))
    if scaled and scaled["rope_type"] == "dynamic":
        config["max_position_embeddings"] = rng.choice([8, 256])
    if rng.random() < 0.5:
        config["rope_parameters"] = (scaled or {"rope_type": "default"}) | {"rope_theta": base}
        return
    config["rope_theta"] = base
    config["rope_scaling"] = scaled
    if scaled and rng.random() < 0.5:
        scaled["type"] = scaled.pop("rope_type")


def layer_types(rng: random.Random, config: Config) -> list[str]:
    """A repeating pattern of windowed and full layers that need not end with the last layer."""
    pattern = [rng.choice([SLIDING, FULL]) for _ in range(rng.randint(1, 3))]
    layers = config["num_hidden_layers"]
    return (pattern * layers)[:layers]


def flags(rng: random.Random, config: Config, *names: str) -> None:
    config |= {name: rng.random() < 0.5 for name in names}


def llama(rng: random.Random, config: Config) -> None:
    sizes(rng, config, free_head_dim=rng.random() < 0.5)
    rope(rng, config)
    flags(rng, config, "attention_bias", "mlp_bias")
    config["hidden_act"] = rng.choice(["silu", "gelu", "gelu_pytorch_tanh"])


def mistral(rng: random.Random, config: Config) -> None:
    sizes(rng, config, free_head_dim=rng.random() < 0.5)
    rope(rng, config)
    config["sliding_window"] = rng.choice([None, 1, 2, 3, 7])


def qwen2(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    rope(rng, config)
    flags(rng, config, "use_sliding_window")
    config["sliding_window"] = rng.choice([2, 4, 7])
    config["max_window_layers"] = rng.randint(0, config["num_hidden_layers"])
    if config["use_sliding_window"] and rng.random() < 0.5:
        config["layer_types"] = layer_types(rng, config)


def qwen3(rng: random.Random, config: Config) -> None:
    qwen2(rng, config)
    config["head_dim"] = rng.choice([4, 6, 8])
    flags(rng, config, "attention_bias")


def gemma2(rng: random.Random, config: Config) -> None:
    sizes(rng, config, free_head_dim=True)
    rope(rng, config)
    flags(rng, config, "attention_bias")
    config |= {
        "hidden_activation": rng.choice(["gelu_pytorch_tanh", "gelu"]),
        "query_pre_attn_scalar": rng.choice([3, 8, 24]),
        "sliding_window": rng.choice([2, 5]),
        "attn_logit_softcapping": rng.choice([None, 2.0, 5.0]),
        "final_logit_softcapping": rng.choice([None, 3.0]),
    }
    if rng.random() < 0.5:
        config["layer_types"] = layer_types(rng, config)


def gemma3_text(rng: random.Random, config: Config) -> None:
    gemma2(rng, config)
    for key in ("rope_parameters", "rope_theta", "rope_scaling", "attn_logit_softcapping"):
        config.pop(key, None)
    if "layer_types" not in config:
        config["sliding_window_pattern"] = rng.choice([2, 3, 6])
    full = scaling(rng, ["linear"])
    if rng.random() < 0.5:
        config |= {"rope_theta": 3000.0, "rope_local_base_freq": 50.0, "rope_scaling": full}
    elif rng.random() < 0.7:
        config["rope_parameters"] = {
            FULL: (full or {"rope_type": "default"}) | {"rope_theta": 700.0},
            SLIDING: {"rope_type": "default", "rope_theta": 20.0},
        }


def phi3(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    part = rng.choice([None, 0.5, 0.75, 1.0]) if head_width(config) == 8 else None
    count = int(head_width(config) * (part or 1.0)) // 2
    original = rng.choice([8, 64])
    factors = {"long_factor": [rng.uniform(1.5, 9.0) for _ in range(count)],
               "short_factor": [rng.uniform(1.0, 2.0) for _ in range(count)]}  # fmt: skip
    config |= {
        "rope_theta": rng.choice([100.0, 10000.0]),
        "rope_scaling": rng.choice([None, factors | {"type": "longrope"}, factors | {"rope_type": "longrope"}]),
        "original_max_position_embeddings": original,
        "max_position_embeddings": original * rng.choice([1, 8]),
        "sliding_window": rng.choice([None, 4, 2048]),
        "pad_token_id": 0,
    }
    if part is not None:
        config["partial_rotary_factor"] = part


def olmo2(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    rope(rng, config)
    flags(rng, config, "attention_bias")
    config["pad_token_id"] = 0


def olmo3(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    flags(rng, config, "attention_bias")
    config |= {"pad_token_id": 0, "sliding_window": rng.choice([2, 5])}
    if rng.random() < 0.5:
        config["layer_types"] = layer_types(rng, config)
    full = scaling(rng, ["yarn", "linear"])
    if rng.random() < 0.5:
        config |= {"rope_theta": 500000.0, "rope_scaling": full}
    else:
        config["rope_parameters"] = {
            FULL: (full or {"rope_type": "default"}) | {"rope_theta": 700.0},
            SLIDING: {"rope_type": "default", "rope_theta": 20.0},
        }


def cohere(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    rope(rng, config)
    config["layer_norm_eps"] = config.pop("rms_norm_eps")
    config |= {"logit_scale": rng.choice([0.0625, 0.5, 1.5]), "eos_token_id": 7}
    flags(rng, config, "attention_bias", "use_qk_norm")


def cohere2(rng: random.Random, config: Config) -> None:
    cohere(rng, config)
    del config["use_qk_norm"]
    config["sliding_window"] = rng.choice([2, 5])
    key, value = rng.choice([
        ("layer_types", layer_types(rng, config)), ("sliding_window_pattern", rng.choice([2, 3, 4]))
    ])  # fmt: skip
    config[key] = value


def apertus(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    rope(rng, config)
    if config.get("rope_scaling", ...) is None:  # versions of transformers disagree on what that is
        config["rope_scaling"] = {"rope_type": "default"}
    flags(rng, config, "attention_bias")
    config |= {"hidden_act": "xielu", "pad_token_id": 3}


def bloom(rng: random.Random, config: Config) -> None:
    heads = rng.choice([1, 2, 3, 4, 5, 6, 7, 8])
    config.pop("max_position_embeddings")
    config |= {
        rng.choice(["n_embed", "hidden_size"]): heads * rng.choice([3, 4, 8]),
        rng.choice(["n_head", "num_attention_heads"]): heads,
        rng.choice(["n_layer", "num_hidden_layers"]): rng.randint(1, 4),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-2]),
    }
    flags(rng, config, "apply_residual_connection_post_layernorm")


def smollm3(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    rope(rng, config)
    flags(rng, config, "attention_bias", "mlp_bias", "use_sliding_window")
    config |= {"sliding_window": rng.choice([None, 4]), "pad_token_id": 5}
    config["no_rope_layer_interval"] = rng.choice([2, 3, 4])
    if rng.random() < 0.5:
        config["no_rope_layers"] = [rng.randint(0, 1) for _ in range(config["num_hidden_layers"])]
    if config["use_sliding_window"] and config["sliding_window"] and rng.random() < 0.5:
        config["layer_types"] = layer_types(rng, config)


def stablelm(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    config["layer_norm_eps"] = config.pop("rms_norm_eps")
    flags(rng, config, "use_qkv_bias", "qk_layernorm", "use_parallel_residual")
    if head_width(config) == 8:
        if rng.random() < 0.7:
            config["partial_rotary_factor"] = rng.choice([0.25, 0.5, 1.0])
    else:
        config["partial_rotary_factor"] = rng.choice([0.5, 1.0]) if head_width(config) == 4 else 1.0
    config |= {"rope_theta": rng.choice([100.0, 10000.0]), "rope_scaling": scaling(rng, ["linear"])}


def granite(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    rope(rng, config)
    flags(rng, config, "attention_bias", "mlp_bias")
    config |= {
        "attention_multiplier": rng.choice([0.1, 0.5]),
        "embedding_multiplier": rng.choice([1.0, 3.0]),
        "logits_scaling": rng.choice([0.5, 4.0]),
        "residual_multiplier": rng.choice([0.3, 1.0]),
    }


def routed(rng: random.Random, config: Config, count: str) -> None:
    experts = rng.randint(2, 6)
    config |= {count: experts, "num_experts_per_tok": rng.randint(1, experts)}


def mixtral(rng: random.Random, config: Config) -> None:
    mistral(rng, config)
    if "head_dim" not in config:  # transformers cannot scale these two ways then
        for key in ("rope_parameters", "rope_scaling", "rope_theta"):
            config.pop(key, None)
        rope(rng, config, ("linear", "llama3"))
    routed(rng, config, "num_local_experts")


def qwen3_moe(rng: random.Random, config: Config) -> None:
    sizes(rng, config, free_head_dim=rng.random() < 0.7)
    rope(rng, config)
    routed(rng, config, "num_experts")
    flags(rng, config, "attention_bias", "norm_topk_prob", "use_sliding_window")
    layers = config["num_hidden_layers"]
    config |= {
        "sliding_window": rng.choice([2, 5]),
        "moe_intermediate_size": rng.choice([6, 8]),
        "decoder_sparse_step": 1 if layers == 1 else rng.choice([1, 2]),
        "mlp_only_layers": [0] if layers > 2 and rng.random() < 0.5 else [],
    }


def olmoe(rng: random.Random, config: Config) -> None:
    sizes(rng, config)
    rope(rng, config)
    routed(rng, config, "num_experts")
    flags(rng, config, "attention_bias", "norm_topk_prob")
    config |= {"clip_qkv": rng.choice([None, 0.8]), "pad_token_id": 1}


FAMILIES: dict[str, Callable[[random.Random, Config], None]] = {
    family.__name__: family
    for family in (
        llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, olmo3, cohere, cohere2, apertus, bloom,
        smollm3, stablelm, granite, mixtral, qwen3_moe, olmoe,
    )
}  # fmt: skip
