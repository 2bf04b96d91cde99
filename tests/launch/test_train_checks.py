"""What `polytune train` refuses, and in which order it looks, before any data is read."""

import jax
import pytest
from programs import write_tiny_recipe
from rich.console import Console
from toy import mesh_of

import launch.train
from launch.recipe import load_recipe
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


def test_a_damaged_checkpoint_is_set_aside_before_a_preset_reads_the_newest(load, monkeypatch):
    """A preset reads the model of the newest checkpoint: a damaged one ended the run instead of being set aside."""

    class LookedAsideError(Exception):
        pass

    def look(run_dir):
        raise LookedAsideError

    monkeypatch.setattr(launch.train, "find_beginning", look)
    with pytest.raises(LookedAsideError):
        launch.train._run(load("mesh.preset=fsdp", "model=nowhere"), "tiny", Console(quiet=True), Stage())
