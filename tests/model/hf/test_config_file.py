import pytest

from model.hf.config_file import INERT, ConfigFile, FamilyError, read_config_file


def config(**values) -> ConfigFile:
    return ConfigFile({"model_type": "llama", **values}, origin="m/config.json")


def test_a_missing_key_is_named_unless_it_has_a_default():
    with pytest.raises(FamilyError, match=r"m/config\.json lacks 'hidden_size'"):
        config().take("hidden_size", int)
    assert config().take("hidden_size", int, 5) == 5
    assert config(hidden_size=None).take("hidden_size", int, 5) == 5


@pytest.mark.parametrize(("value", "kind"), [("7", int), (True, int), (7.5, int), (True, float), (1, bool), ({}, list)])
def test_a_value_of_another_type_is_refused(value, kind):
    with pytest.raises(FamilyError, match="size is .* of type " + kind.__name__):
        config(size=value).take("size", kind)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_number_that_is_none_is_refused(value):
    with pytest.raises(FamilyError, match="size"):
        config(size=value).take("size", float)


def test_whole_numbers_pass_for_fractions():
    taken = config(rope_theta=10_000).take("rope_theta", float)
    assert taken == 10_000.0
    assert isinstance(taken, float)


def test_null_is_none_only_where_it_has_a_meaning():
    assert config(window=None).take_nullable("window", int, 4) is None
    assert config().take_nullable("window", int, 4) == 4
    assert config(window=9).take_nullable("window", int, 4) == 9
    with pytest.raises(FamilyError, match="window"):
        config(window="9").take_nullable("window", int, 4)


@pytest.mark.parametrize("value", [0, -3])
def test_sizes_are_at_least_one(value):
    with pytest.raises(FamilyError, match=f"layers is {value}; it should be at least 1"):
        config(layers=value).take_size("layers")


def test_names_of_one_thing_must_agree():
    assert config(n_layer=3, num_hidden_layers=3).take_alias(("n_layer", "num_hidden_layers")) == 3
    assert config(num_hidden_layers=2).take_alias(("n_layer", "num_hidden_layers")) == 2
    assert config().take_alias(("n_layer", "num_hidden_layers"), 6) == 6
    with pytest.raises(FamilyError, match=r"n_layer.*num_hidden_layers.*differ"):
        config(n_layer=3, num_hidden_layers=4).take_alias(("n_layer", "num_hidden_layers"))
    both = config(n_layer=3, num_hidden_layers=3)
    both.take_alias(("n_layer", "num_hidden_layers"))
    both.check_all_asked()


def test_an_expected_value_may_be_missing_and_no_other():
    config().expect("mlp_bias", False)
    config(mlp_bias=None).expect("mlp_bias", False)
    config(mlp_bias=False).expect("mlp_bias", False)
    with pytest.raises(FamilyError, match="mlp_bias is True, which changes what is computed; polytune computes False"):
        config(mlp_bias=True).expect("mlp_bias", False)


def test_keys_nobody_asked_for_are_all_named():
    given = config(hidden_size=3, trick=1, other_trick="long" * 99, use_cache=True, nothing=None)
    given.take("hidden_size", int)
    with pytest.raises(FamilyError, match=r"m/config\.json: other_trick = .*, trick = 1: not understood for .*'llama'"):
        given.check_all_asked()
    given.ignore("trick", "other_trick")
    given.check_all_asked()


def test_no_inert_key_is_one_that_families_read():
    read = {"hidden_size", "rope_theta", "sliding_window", "tie_word_embeddings", "head_dim", "quantization_config",
            "attention_bias", "layer_types", "rope_scaling", "rope_parameters", "partial_rotary_factor"}  # fmt: skip
    assert not read & INERT


@pytest.mark.parametrize("content", ["", "{", "\udce9"])
def test_a_config_that_is_no_json_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(FamilyError, match=r"config\.json is no JSON"):
        read_config_file(tmp_path)


def test_a_folder_without_a_config_is_explained(tmp_path):
    with pytest.raises(FamilyError, match=r"cannot read .*config\.json.*give a Hugging Face model folder"):
        read_config_file(tmp_path)


def test_a_config_that_is_a_list_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(FamilyError, match="holds a list; it should be a JSON object"):
        read_config_file(tmp_path)
