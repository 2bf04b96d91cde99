import msgspec
import pytest
from toy import TOY

from model.config import ExpertsConfig, LayerKind, ModelConfig, RopeConfig, YarnScaling
from model.hf.config_file import FamilyError
from model.hf.registry import families, family_of, read_model, write_config

PLAIN = ModelConfig(vocab_size=32, num_layers=4, dim=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=24)
LOCAL, WHOLE = LayerKind(window=4, rope=RopeConfig(base=100.0)), LayerKind(rope=RopeConfig(base=1e6))


def replace(**changes) -> ModelConfig:
    return msgspec.structs.replace(PLAIN, **changes)


def test_the_families_are_those_promised():
    assert set(families()) == {
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "olmo3", "cohere", "cohere2",
        "apertus", "bloom", "smollm3", "stablelm", "granite", "mixtral", "qwen3_moe", "olmoe",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "near"),
    [("gemma3", "gemma3_text"), ("qwen3_5", "qwen3"), ("mistral4", "mistral"), ("olmo", "olmo2")],
)
def test_an_unknown_family_is_refused_with_all_and_the_nearest(model_type, near):
    with pytest.raises(FamilyError, match=f"'{model_type}' is not supported; the nearest by name is {near}") as error:
        family_of(model_type)
    assert all(known in str(error.value) for known in families())


def test_an_unknown_family_that_is_like_none_gets_no_hint():
    with pytest.raises(FamilyError, match=r"'gpt_neox' is not supported\. Supported are apertus, bloom"):
        family_of("gpt_neox")


@pytest.mark.parametrize("values", [{}, {"model_type": 3}, {"model_type": "gpt_neox"}, {"model_type": "llama"}])
def test_errors_name_the_file(values):
    with pytest.raises(FamilyError, match=r"^dir/config\.json"):
        read_model(values, origin="dir/config.json")


def test_a_number_out_of_the_decoder_s_bounds_names_its_field():
    values = write_config(PLAIN)[1]
    with pytest.raises(FamilyError, match=r"config\.json: .*\$\.norm_eps"):
        read_model(values | {"rms_norm_eps": -1.0})


WRITTEN = {
    "llama": PLAIN,
    "qwen2": replace(qkv_bias=True),
    "qwen3": replace(qk_norm="head", qkv_bias=True, out_bias=True),
    "mistral": replace(layers=(LayerKind(window=7),)),
    "granite": TOY,
    "smollm3": replace(layers=(LayerKind(), LayerKind(rope=None))),
    "gemma2": replace(
        norm_plus_one=True, norm_placement="sandwich", embedding_scale=4.0, activation="gelu_tanh", final_softcap=30.0,
        query_scale=24**-0.5, layers=(msgspec.structs.replace(LOCAL, rope=WHOLE.rope), WHOLE),
    ),
    "gemma3_text": replace(
        norm_plus_one=True, norm_placement="sandwich", embedding_scale=4.0, qk_norm="head", layers=(LOCAL, LOCAL, WHOLE)
    ),
    "olmo2": replace(norm_placement="post", qk_norm="full", tied_head=False),
    "olmo3": replace(norm_placement="post", qk_norm="full", layers=(LOCAL, WHOLE)),
    "cohere": replace(
        norm="layer", parallel=True, qk_norm="each_head", layers=(LayerKind(rope=RopeConfig(interleaved=True)),)
    ),
    "stablelm": replace(
        norm="layer", norm_bias=True, head_dim=4, layers=(LayerKind(rope=RopeConfig(fraction=0.5)),), num_kv_heads=4
    ),
    "apertus": replace(activation="xielu", gated=False, qk_norm="head"),
    "mixtral": replace(
        layers=(LayerKind(experts=True),), experts=ExpertsConfig(num_experts=4, per_token=2, dim=8)
    ),
    "qwen3_moe": replace(
        layers=(LayerKind(), LayerKind(experts=True)), qk_norm="head",
        experts=ExpertsConfig(num_experts=4, per_token=2, dim=8, normalize=False),
    ),
    "olmoe": replace(
        layers=(LayerKind(experts=True),), experts=ExpertsConfig(num_experts=4, per_token=2, dim=8), qk_norm="full",
        head_dim=4, qkv_clip=5.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", WRITTEN)
def test_a_model_is_written_as_the_first_family_that_can_say_it(model_type):
    cfg = WRITTEN[model_type]
    family, values = write_config(cfg)
    assert family.model_type == values["model_type"] == model_type
    assert values["architectures"] == [family.architecture]
    back = read_model(values)[1]
    assert back.kinds == cfg.kinds
    same = {"layers": cfg.layers, "mlp_dim": cfg.mlp_dim}
    assert msgspec.structs.replace(back, **same) == cfg


def test_the_family_it_came_from_is_asked_first():
    assert write_config(PLAIN, "mistral")[0].model_type == "mistral"
    assert write_config(replace(qkv_bias=True), "mistral")[0].model_type == "qwen2"
    with pytest.raises(FamilyError, match="not supported"):
        write_config(PLAIN, "gpt_neox")


def test_padding_of_the_vocabulary_is_never_written():
    assert write_config(replace(vocab_padding=32)) == write_config(PLAIN)


def test_layers_that_are_spelled_longer_than_needed_are_the_same_model():
    assert write_config(replace(layers=(LayerKind(),) * 4)) == write_config(PLAIN)
    assert write_config(replace(query_scale=6**-0.5)) == write_config(PLAIN)


def test_a_model_that_no_family_can_say_names_what_is_too_much():
    with pytest.raises(FamilyError, match=r"nearest is llama, which cannot say alibi=True\. "):
        write_config(replace(alibi=True))


def test_layers_with_two_windows_are_refused_by_all():
    layers = (LOCAL, msgspec.structs.replace(LOCAL, window=8))
    with pytest.raises(FamilyError, match="no family has keys for this model"):
        write_config(replace(layers=layers))


def test_a_scaling_with_its_own_factor_survives():
    rope = RopeConfig(base=100.0, scaling=YarnScaling(factor=4.0, original_length=16, attention_factor=1.25))
    cfg = replace(layers=(LayerKind(rope=rope),))
    assert read_model(write_config(cfg)[1])[1] == cfg
