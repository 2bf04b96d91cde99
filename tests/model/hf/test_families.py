import functools
import json
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from model.hf.config_file import FamilyError
from model.hf.families import bloom
from model.hf.family import Fused, HubTensor, abstract_whole, constant_tensors, hub_tensors, is_ignored
from model.hf.hub import open_hub
from model.hf.registry import families, read_model, write_config
from model.hf.tensors import open_folder
from model.parallel import UNSHARDED
from model.transformer import apply

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "families"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
LARGEST_DIFFERENCE = 1e-4
"""Of a logit, whose spread is two to three: the reference itself moves by half of it when computed in float64."""


@functools.cache
def values_of(name: str) -> dict:
    return json.loads((GOLDEN / name / "config.json").read_text())


ONE_OF_EACH = {values_of(name)["model_type"]: name for name in NAMES}


def patched(name: str, **patch) -> dict:
    """A golden config with some keys set, or taken out where the value is `...`."""
    merged = values_of(name) | patch
    return {key: value for key, value in merged.items() if value is not ...}


def model_of(name: str, **patch):
    return read_model(patched(name, **patch))[1]


@functools.cache
def tensors_of(name: str) -> list[HubTensor]:
    return hub_tensors(*read_model(values_of(name)))


@functools.cache
def forward():
    return jax.jit(apply, static_argnums=(0, 1))


def test_every_family_has_a_golden_folder():
    assert set(ONE_OF_EACH) == set(families())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_reference_s(name, one_device):
    hub = open_hub(GOLDEN / name)
    params = hub.load(UNSHARDED, dtype=np.dtype("float32"))
    golden = np.load(GOLDEN / name / "golden.npz")
    tokens = golden["tokens"].astype(np.int32)
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    logits = forward()(hub.cfg, UNSHARDED, params, tokens, np.ones_like(tokens), positions)
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=LARGEST_DIFFERENCE)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_comes_from_one_tensor_and_every_tensor_is_used(name):
    family, cfg = read_model(values_of(name))
    filled = {
        tuple(part.key for part in path): np.zeros(leaf.shape, int)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_whole(cfg))
    }
    tensors = tensors_of(name)
    for tensor in tensors:
        for slot in tensor.slots:
            filled[slot.path][slot.index] += 1
    assert all(np.all(counts == 1) for counts in filled.values())
    names = [tensor.name for tensor in tensors] + [each.name for each in constant_tensors(family, cfg)]
    folder = open_folder(GOLDEN / name)
    held = {each.removeprefix(family.optional_prefix) for each in folder.names if not is_ignored(family, each)}
    assert len(set(names)) == len(names)
    assert set(names) == held - ({"lm_head.weight"} if cfg.tied_head else set())


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_put_together_as_they_were(name):
    rng = np.random.default_rng(0)
    for tensor in tensors_of(name):
        stored = rng.standard_normal(tensor.shape).astype(np.float32)
        parts = tensor.split(stored)
        assert [part.shape for part in parts] == [slot.shape for slot in tensor.slots]
        np.testing.assert_array_equal(tensor.join(parts), stored)


@hypothesis.given(heads=st.integers(1, 5), width=st.integers(1, 5), dim=st.integers(1, 5), seed=st.integers(0, 9))
def test_bloom_s_heads_are_unwoven_and_woven_back(heads, width, dim, seed):
    rng = np.random.default_rng(seed)
    weights, biases = rng.standard_normal((3, dim, heads, width)), rng.standard_normal((3, heads, width))
    for parts in (weights, biases):
        woven = bloom.join_heads(list(parts))
        unwoven = bloom.split_heads(woven, [parts[0].shape] * 3)
        np.testing.assert_array_equal(np.stack(unwoven), parts)
    # Row 3 H n + H p + h of the tensor is part p of head n at h.
    row = woven_row = bloom.join_heads(list(weights))[3 * width * (heads - 1) + width]
    np.testing.assert_array_equal(row, weights[1, :, heads - 1, 0])
    assert woven_row.shape == (dim,)


@pytest.mark.parametrize("name", NAMES)
def test_a_written_config_reads_back_as_the_model(name):
    family, cfg = read_model(values_of(name))
    written_family, values = write_config(cfg, family.model_type)
    assert written_family.model_type == family.model_type == values["model_type"]
    assert read_model(json.loads(json.dumps(values))) == (family, cfg)


@pytest.mark.parametrize("family", families())
def test_a_key_that_is_not_understood_is_named(family):
    name = ONE_OF_EACH[family]
    with pytest.raises(FamilyError, match=r"folder/config\.json: a_new_trick = 3: not understood"):
        read_model(patched(name, a_new_trick=3), origin="folder/config.json")
    assert model_of(name, a_new_trick=None, use_cache=False, attention_dropout=0.5) == model_of(name)


@pytest.mark.parametrize("family", families())
def test_quantised_weights_are_refused(family):
    with pytest.raises(FamilyError, match="quantization_config"):
        model_of(ONE_OF_EACH[family], quantization_config={"bits": 4})


OUR_NAMES = {
    "rope_scaling": "rope[_ ]s?caling|short_factor", "num_experts_per_tok": "per_token",
    "num_key_value_heads": "num_k(v|ey_value)_heads", "rms_norm_eps": "norm_eps",
}  # fmt: skip
"""What an error calls a key where it is the decoder that refuses the value."""
REFUSED = [
    ("llama_3", {"hidden_act": "quick_gelu"}),
    ("llama_3", {"hidden_act": "xielu"}),
    ("llama_3", {"rope_interleaved": True}),
    ("llama_3", {"partial_rotary_factor": 0.5}),
    ("llama_3", {"sliding_window": 8}),
    ("llama_3", {"head_dim": 7}),
    ("llama_3", {"num_key_value_heads": 3}),
    ("llama_3", {"num_key_value_heads": 0}),
    ("llama_3", {"rms_norm_eps": 0}),
    ("llama_3", {"rms_norm_eps": float("nan")}),
    ("llama_3", {"vocab_size": "67"}),
    ("llama_3", {"rope_scaling": {"rope_type": "ntk"}}),
    ("mistral_window", {"sliding_window": 0}),
    ("qwen2_tied", {"use_mrope": True}),
    ("qwen2_layer_types", {"use_sliding_window": False}),
    ("qwen2_layer_types", {"layer_types": ["full_attention"]}),
    ("qwen2_layer_types", {"layer_types": ["linear_attention"] * 5}),
    ("qwen3_tied", {"mlp_bias": True}),
    ("granite_tied", {"logits_scaling": 0}),
    ("smollm3_tied", {"no_rope_layers": [1]}),
    ("gemma2_capped", {"use_bidirectional_attention": True}),
    ("gemma2_capped", {"query_pre_attn_scalar": 0}),
    ("gemma2_capped", {"sliding_window": None}),
    ("gemma3_hub", {"use_bidirectional_attention": True}),
    ("gemma3_hub", {"attn_logit_softcapping": 50.0}),
    ("gemma3_hub", {"rope_parameters": {"rope_type": "default"}}),
    ("olmo3_hub", {"rope_theta": 10000.0}),
    ("phi3_plain", {"attention_bias": True}),
    ("phi3_plain", {"lm_head_bias": True}),
    ("phi3_longrope_long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
    ("cohere2_hub", {"position_embedding_type": "alibi"}),
    ("cohere2_hub", {"use_parallel_block": False}),
    ("cohere2_hub", {"use_qk_norm": True}),
    ("apertus_hub", {"hidden_act": "silu"}),
    ("apertus_hub", {"post_norm": True}),
    ("apertus_hub", {"qk_norm": False}),
    ("apertus_hub", {"rope_scaling": None}),
    ("bloom_hub", {"n_inner": 17}),
    ("bloom_hub", {"hidden_size": 999}),
    ("stablelm_parallel", {"head_dim": 2}),
    ("mixtral_hub", {"num_experts_per_tok": 6}),
    ("qwen3_moe_hub", {"mlp_only_layers": [9]}),
    ("olmoe_hub", {"sliding_window": 7}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "patch"), REFUSED, ids=[f"{name}-{patch}" for name, patch in REFUSED])
def test_a_value_that_is_not_computed_is_refused_by_key(name, patch):
    (key,) = patch
    named = OUR_NAMES.get(key, key)
    with pytest.raises(FamilyError, match=named):
        model_of(name, **patch)


WINDOW = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 5}
ALL_FULL, ALL_SLIDE = ["full_attention"] * 4, ["sliding_attention"] * 4
SPELLINGS = {
    "theta inside the scaling": (
        ("llama_new_keys", {}),
        ("llama_new_keys", {"rope_theta": 7.0}),
    ),
    "rope_scaling of 4 and rope_parameters of 5": (
        ("llama_linear", {}),
        ("llama_linear", {"rope_scaling": ..., "rope_theta": ..., "rope_parameters": {
            "rope_type": "linear", "factor": 2.5, "rope_theta": values_of("llama_linear")["rope_theta"]}}),
    ),
    "the original length beside the scaling wins": (
        ("llama_3", {"original_max_position_embeddings": 32}),
        ("llama_3", {"rope_scaling": values_of("llama_3")["rope_scaling"] | {"original_max_position_embeddings": 999},
                     "original_max_position_embeddings": 32}),
    ),
    "su, yarn and longrope of phi3": (
        ("phi3_longrope_long", {}),
        ("phi3_longrope_long", {"rope_scaling": values_of("phi3_longrope_long")["rope_scaling"] | {"type": "su"}}),
        ("phi3_longrope_long", {"rope_scaling": values_of("phi3_longrope_long")["rope_scaling"] | {"type": "yarn"}}),
    ),
    "windows of qwen2 from a layer on": (
        ("qwen2_tied", WINDOW | {"max_window_layers": 4}),
        ("qwen2_tied", WINDOW | {"use_sliding_window": False}),
        ("qwen2_tied", WINDOW | {"layer_types": ALL_FULL}),
    ),
    "windows of qwen2 everywhere": (
        ("qwen2_tied", WINDOW | {"max_window_layers": 0}),
        ("qwen2_tied", WINDOW | {"layer_types": ALL_SLIDE}),
    ),
    "gemma 2 slides first": (
        ("gemma2_capped", {"num_hidden_layers": 2}),
        ("gemma2_capped", {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
        ("gemma2_capped", {"num_hidden_layers": 2, "hidden_act": "relu"}),
    ),
    "bases of gemma 3": (
        ("gemma3_hub", {}),
        ("gemma3_hub", {"rope_theta": ..., "rope_scaling": ..., "rope_local_base_freq": ..., "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
    ),
    "names of bloom's sizes": (
        ("bloom_hub", {}),
        ("bloom_hub", {"n_embed": ..., "hidden_size": values_of("bloom_hub")["n_embed"], "n_layer": ...,
                       "num_hidden_layers": values_of("bloom_hub")["n_layer"], "n_inner": None}),
    ),
    "heads that are not given": (
        ("llama_3", {"num_key_value_heads": ...}),
        ("llama_3", {"num_key_value_heads": None}),
        ("llama_3", {"num_key_value_heads": 4}),
    ),
    "which layers have experts": (
        ("qwen3_moe_hub", {"num_hidden_layers": 4, "decoder_sparse_step": 2}),
        ("qwen3_moe_hub", {"num_hidden_layers": 4, "mlp_only_layers": [0, 2]}),
        ("qwen3_moe_hub", {"num_hidden_layers": 4, "mlp_only_layers": [0, 2], "max_window_layers": 1}),
    ),
    "which layers turn": (
        ("smollm3_tied", {"no_rope_layers": [1, 1, 1, 0], "layer_types": ...}),
        ("smollm3_tied", {"no_rope_layers": ..., "no_rope_layer_interval": 4}),
        ("smollm3_tied", {"no_rope_layers": ..., "no_rope_layer_interval": ...}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SPELLINGS)
def test_two_spellings_of_one_model_are_one_model(what):
    first, *others = (model_of(name, **patch) for name, patch in SPELLINGS[what])
    assert all(other == first for other in others)


DEFAULTS = {
    "a mistral without sliding_window has one of 4096": (
        ("mistral_full", {"sliding_window": ...}), ("mistral_full", {"sliding_window": 4096})),
    "attention caps of gemma 2": (
        ("gemma2_capped", {"attn_logit_softcapping": ..., "final_logit_softcapping": ...}),
        ("gemma2_capped", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})),
    "a quarter of stablelm's heads": (
        ("stablelm_parallel", {"partial_rotary_factor": ...}), ("stablelm_parallel", {"partial_rotary_factor": 0.25})),
    "granite's attention multiplier is 1": (
        ("granite_tied", {"attention_multiplier": ...}), ("granite_tied", {"attention_multiplier": 1.0})),
    "the base of cohere": (("cohere_tied", {"rope_theta": ...}), ("cohere_tied", {"rope_theta": 500_000.0})),
    "the base of smollm3": (("smollm3_tied", {"rope_theta": ...}), ("smollm3_tied", {"rope_theta": 2_000_000.0})),
    "the base of mixtral": (("mixtral_hub", {"rope_theta": ...}), ("mixtral_hub", {"rope_theta": 1_000_000.0})),
    "heads of gemma are 256 wide": (("gemma2_capped", {"head_dim": ...}), ("gemma2_capped", {"head_dim": 256})),
    "heads of qwen3 are 128 wide": (("qwen3_tied", {"head_dim": ...}), ("qwen3_tied", {"head_dim": 128})),
}  # fmt: skip


@pytest.mark.parametrize("what", DEFAULTS)
def test_what_is_not_given_is_the_reference_s_default(what):
    without, given = DEFAULTS[what]
    assert model_of(without[0], **without[1]) == model_of(given[0], **given[1])


@pytest.mark.parametrize("name", ["gemma2_capped", "gemma3_hub", "cohere_tied", "bloom_hub", "smollm3_tied"])
def test_heads_of_these_families_are_tied_unless_said_otherwise(name):
    assert model_of(name, tie_word_embeddings=...).tied_head
    assert not model_of(name, tie_word_embeddings=False).tied_head
    assert not model_of("llama_3", tie_word_embeddings=...).tied_head


def test_null_is_not_the_default_where_it_means_none():
    assert model_of("mistral_window", sliding_window=None).layers[0].window == 0
    assert model_of("gemma2_capped", attn_logit_softcapping=None).attention_softcap == 0
    assert model_of("gemma2_capped", final_logit_softcapping=None).final_softcap == 0


def test_olmo3_scales_only_the_layers_that_see_everything():
    kinds = model_of("olmo3_hub").kinds
    assert {(kind.window > 0, kind.rope.scaling is not None) for kind in kinds} == {(True, False), (False, True)}


def test_cohere2_turns_only_the_layers_with_a_window():
    assert {(kind.window > 0, kind.rope is not None) for kind in model_of("cohere2_hub").kinds} == {
        (True, True), (False, False)
    }  # fmt: skip


def test_phi3_is_written_as_it_was_published():
    """The lengths imply the attention factor, and older readers refuse a scaling with any other key."""
    values = values_of("phi3_longrope_long")
    written = write_config(model_of("phi3_longrope_long"), "phi3")[1]
    assert written["rope_scaling"] == values["rope_scaling"]
    for key in ("max_position_embeddings", "original_max_position_embeddings"):
        assert written[key] == values[key]


STRANGE = [None, True, -1, 0, 1, 2.5, 10**400, float("nan"), "x", [], [None], [[]], {}]


def damaged(values: dict) -> Iterator[dict]:
    """The values with each, also in dictionaries inside, replaced by everything strange."""
    for key, value in values.items():
        inside = damaged(value) if isinstance(value, dict) else ()
        yield from (values | {key: other} for other in [*STRANGE, *inside])


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_a_key_ends_in_another_error(name):
    """Whatever a config.json holds, it is understood or refused with its name."""
    for values in damaged(values_of(name)):
        try:
            read_model(values, origin="here/config.json")
        except FamilyError as error:
            assert str(error).startswith("here/config.json")


def test_buffers_of_old_folders_are_ignored_and_weights_are_not():
    llama = families()["llama"]
    assert is_ignored(llama, "model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not is_ignored(llama, "model.layers.3.self_attn.q_proj.weight")


def test_no_family_names_a_tensor_twice():
    for family in families().values():
        fused = [each.name for each in family.fused]
        names = [*family.names.values(), *fused]
        assert len(set(names)) == len(names), family.model_type
        assert all(isinstance(each, Fused) and "{layer}" in each.name for each in family.fused)
