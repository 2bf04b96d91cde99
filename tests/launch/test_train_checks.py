"""What `polytune train` refuses, and in which order it looks, before any data is read."""

from types import SimpleNamespace

import jax
import msgspec
import pytest
from programs import write_tiny_recipe
from rich.console import Console
from toy import mesh_of

import launch.origin
import launch.train
from launch.origin import foresee_vocabulary, open_origin
from launch.recipe import load_recipe
from model.checkpoint import CheckpointPath
from model.parallel import MeshConfig
from train.stage import Stage


@pytest.fixture
def load(tmp_path):
    path = write_tiny_recipe(tmp_path, run_dir=tmp_path / "run", steps=20, save_every=1)
    return lambda *overrides: load_recipe(str(path), overrides)


def check(recipe, mesh):
    with jax.set_mesh(mesh_of(mesh)) as mesh:
        launch.train.check_sizes(recipe, recipe.model, jax.sharding.get_mesh())


def test_rows_that_splash_cannot_split_are_refused_before_the_data_is_prepared(load, monkeypatch):
    """It was seen only when the step was traced, after all data had been tokenised."""
    monkeypatch.setattr(launch.train, "platform_in_use", lambda: "tpu")
    check(load("data.packing.row_length=256"), MeshConfig(fsdp=2, sequence=2))
    with pytest.raises(
        ValueError, match=r"rows of 192 positions on 2 devices each.*use rows of 256, or compute.attention=blockwise"
    ):
        check(load("data.packing.row_length=192"), MeshConfig(fsdp=2, sequence=2))


def test_a_mesh_axis_that_the_recipe_s_rules_leave_out_is_refused(load):
    with pytest.raises(ValueError, match="mesh axis sequence=2 shards nothing"):
        check(load("axes.length=null"), MeshConfig(fsdp=2, sequence=2))


@pytest.mark.parametrize("mesh", ["mesh.preset=fsdp_tp", "mesh.tensor=2"])
@pytest.mark.parametrize("of_a_file", [False, True], ids=["trained", "file"])
def test_a_vocabulary_that_the_mesh_cannot_divide_is_refused_before_any_data_is_read(
    load, tmp_path, monkeypatch, mesh, of_a_file
):
    """Left to the tokenizer, it was looked at only after all data had been tokenised."""
    vocabulary, size = "tokenizer.vocab_size=501", 501
    if of_a_file:
        vocabulary, size = "tokenizer.path=mine.model", 301
        monkeypatch.setattr(launch.origin, "load_tokenizer", lambda path: SimpleNamespace(vocab_size=size))
    recipe = load(mesh, vocabulary, "data.sources=[{kind: files, name: none, path: no/such/file.jsonl}]")
    wanted = rf"model\.vocab_size .*={size}(; let model.* be| is not divisible.*; use) {size - 1} or {size + 1}"
    with pytest.raises(ValueError, match=wanted):
        launch.train._run(recipe, "tiny", Console(quiet=True), Stage())
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_vocabulary_that_its_texts_sufficed_for(load, tmp_path, monkeypatch):
    """501 pieces asked for, 300 trained: on two devices the run began, so there it also goes on."""
    recipe = load("tokenizer.vocab_size=501")
    origin = open_origin(recipe)
    assert foresee_vocabulary(recipe, origin).vocab_size == 501
    monkeypatch.setattr(launch.origin, "newest_step", lambda run_dir: 5)
    monkeypatch.setattr(
        launch.origin, "find_checkpoint", lambda run_dir: CheckpointPath(run_dir=run_dir, step=5, path=run_dir)
    )
    trained = msgspec.to_builtins(msgspec.structs.replace(recipe.model, vocab_size=300))
    monkeypatch.setattr(launch.origin, "read_meta", lambda checkpoint: {"model": trained})
    assert foresee_vocabulary(recipe, origin).vocab_size == 300


def test_a_damaged_checkpoint_is_set_aside_before_a_preset_reads_the_newest(load, monkeypatch):
    """A preset reads the model of the newest checkpoint: a damaged one ended the run instead of being set aside."""

    class LookedAsideError(Exception):
        pass

    def look(run_dir):
        raise LookedAsideError

    monkeypatch.setattr(launch.train, "find_beginning", look)
    with pytest.raises(LookedAsideError):
        launch.train._run(load("mesh.preset=fsdp", "model=nowhere"), "tiny", Console(quiet=True), Stage())
