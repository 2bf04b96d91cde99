"""A run goes on with a later version of polytune: what its recipe lacks is what was done then, and said."""

from pathlib import Path

import jax
import msgspec
import pytest
from ruamel.yaml import YAML

from launch.config import RecipeError
from launch.recipe import decode_recipe, load_recipe, recipe_tree, write_recipe
from launch.stored_recipe import check_same_run, describe_filled_in, read_stored
from model.checkpoint import CheckpointError, CheckpointPath, decode_model
from model.config import ModelConfig
from model.parallel import MeshConfig, make_mesh

LATER = {
    "train": ("freeze", "ema_decay", "dropout", "non_finite", "stalled_after_s"),
    "optim": ("name", "mu_dtype", "decay_steps", "weight_decay_params"),
    "compute": ("attention",),
    "data": ("held_out",),
}
"""Fields that were added after the first runs, by part of the recipe."""
NAMES = {f"{part}.{field}" for part, fields in LATER.items() for field in fields}
RECIPE = """
run: {dir: unused}
model: {num_layers: 2, dim: 8, num_heads: 2, num_kv_heads: 2, head_dim: 4, mlp_dim: 8}
data: {sources: [{kind: cldr, languages: [en]}]}
optim: {learning_rate: 1e-3, weight_decay: 0.1}
train: {steps: 10, batch_rows: 4}
"""


def read_yaml(path):
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def write_yaml(tree, path):
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(tree, file)


def make_older(tree):
    """The recipe as it would have been written before the later fields existed."""
    for part, fields in LATER.items():
        for field in fields:
            del tree[part][field]
    return tree


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return load_recipe(str(tmp_path / "mine.yaml"))


@pytest.fixture
def older(recipe, tmp_path):
    """A run directory of this recipe with a `recipe.yaml` of an earlier version."""
    write_yaml(make_older(recipe_tree(recipe)), tmp_path / "recipe.yaml")
    return tmp_path


def test_every_field_that_was_filled_in_is_named_once_and_by_its_outermost_name(recipe, older):
    assert set(check_same_run(recipe, older, None)) == NAMES
    told = describe_filled_in(check_same_run(recipe, older, None))
    assert told.count(", ") == len(NAMES) - 1 and "train.non_finite.action" not in told


def test_a_value_other_than_the_default_of_a_field_that_was_not_there_is_another_run(recipe, older):
    """Resuming must not begin to drop out, or to freeze, what the run trained so far without."""
    tree = recipe_tree(recipe)
    tree["train"]["dropout"] = 0.1
    with pytest.raises(RecipeError, match=r"another recipe's run: train.dropout: 0.0 there, 0.1 here"):
        check_same_run(decode_recipe(tree, "here"), older, None)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("train", "tensorboard", True, r"train.tensorboard: unknown key \(value True\)"),
        ("model", "rope_base", 10000.0, r"model.rope_base: unknown key \(value 10000.0\)"),
    ],
)
def test_a_field_that_there_is_no_longer_is_an_error_that_says_what_to_do(recipe, older, part, field, value, message):
    tree = read_yaml(older / "recipe.yaml")
    tree[part][field] = value
    write_yaml(tree, older / "recipe.yaml")
    with pytest.raises(RecipeError, match=message) as caught:
        check_same_run(recipe, older, None)
    assert "Another version of polytune wrote it: go on with that one; or, where a field only says" in str(caught.value)
    assert str(older / "recipe.yaml") in str(caught.value)


def test_a_file_that_holds_no_recipe_is_an_error():
    with pytest.raises(RecipeError, match=r"recipe.yaml is no recipe"):
        read_stored("[]", "recipe.yaml")


@pytest.fixture
def mesh():
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        yield


def with_bias(recipe, **changed):
    return ModelConfig(**{**recipe_tree(recipe)["model"], "layers": recipe.model.layers, "qkv_bias": True, **changed})


def test_decay_of_biases_is_not_dropped_in_silence_by_a_later_version(recipe, older, mesh):
    """Before `optim.weight_decay_params` existed biases decayed too; its default leaves them out."""
    with pytest.raises(RecipeError, match=r"begun before optim.weight_decay_params existed: all parameters") as caught:
        check_same_run(recipe, older, with_bias(recipe))
    assert "optim.weight_decay_params=['*/bias','*/weight']" in str(caught.value)
    tree = recipe_tree(recipe)
    tree["optim"]["weight_decay_params"] = ["*/bias", "*/weight"]
    assert set(check_same_run(decode_recipe(tree, "here"), older, with_bias(recipe))) == NAMES
    write_recipe(decode_recipe(tree, "here"), older / "recipe.yaml")
    assert check_same_run(decode_recipe(tree, "here"), older, with_bias(recipe)) == (), "what it goes on with is kept"


def test_decay_is_not_asked_about_where_only_matrices_ever_decayed(recipe, older, mesh):
    assert set(check_same_run(recipe, older, with_bias(recipe, qkv_bias=False))) == NAMES
    tree = recipe_tree(recipe)
    tree["optim"]["weight_decay_params"] = ["layers/*"]
    with pytest.raises(RecipeError, match=r"optim.weight_decay_params.0: '\(absent\)' there, 'layers/\*' here"):
        check_same_run(decode_recipe(tree, "here"), older, with_bias(recipe, qkv_bias=False))


def test_a_model_of_an_earlier_version_has_the_defaults_and_one_of_a_later_version_is_refused():
    """A checkpoint whose model has a switch that this version does not know would be evaluated without it."""
    where = CheckpointPath(run_dir=Path("run"), step=5, path=Path("run/checkpoints/5"))
    cfg = ModelConfig(num_layers=2, dim=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=8, tied_head=False)
    model = msgspec.to_builtins(cfg)
    assert decode_model({"model": {key: model[key] for key in model if key != "embedding_norm"}}, where) == cfg
    with pytest.raises(CheckpointError, match=r"run/checkpoints/5 holds a model that .* unknown field `sinks`"):
        decode_model({"model": model | {"sinks": True}}, where)
