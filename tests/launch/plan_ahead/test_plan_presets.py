"""A plan is of the run that the recipe would be: its mesh from a preset, its watch for spikes."""

from types import SimpleNamespace

import jax
import pytest
from rich.console import Console
from toy import mesh_of

import launch.plan_ahead.run
from launch.plan_ahead.program import make_step, resolve_config
from launch.recipe import load_recipe
from tests.launch.programs import write_tiny_recipe
from train.spikes import WatchedState


@pytest.fixture
def load(tmp_path):
    path = write_tiny_recipe(tmp_path, run_dir=tmp_path / "run", steps=20, save_every=1)
    return lambda *overrides: load_recipe(str(path), overrides)


def test_a_search_from_a_preset_says_the_mesh_that_it_planned_for(load, monkeypatch, capsys):
    """With the preset and the microbatches found, training would choose another mesh than the one that fitted."""
    seen = []

    def search(recipe, batch_ways, plan):
        seen.append((recipe.mesh.preset, batch_ways))
        return recipe, SimpleNamespace(
            remat="none", microbatches=1, mesh=dict(jax.sharding.get_mesh().shape), fits=True
        )

    monkeypatch.setattr(launch.plan_ahead.run, "search", search)
    monkeypatch.setattr(launch.plan_ahead.run, "print_ahead_plan", lambda *printed: None)
    launch.plan_ahead.run.run_plan_ahead(
        load("mesh.preset=long", "train.microbatches=8"), topology="cpu:8", trained_share=1.0, is_search=True,
        json_file=None, console=Console(),
    )  # fmt: skip
    assert seen == [(None, 1)]
    wanted = "compute.remat=none train.microbatches=1 mesh.preset=null mesh.sequence=8"
    assert wanted in capsys.readouterr().out


def test_a_watch_for_spikes_is_part_of_the_planned_step(load):
    recipe = load("train.spikes={}")
    with jax.set_mesh(mesh_of((4, 2))):
        step = make_step(recipe, resolve_config(recipe), trained_share=1.0)
        assert isinstance(step.state.opt_state, WatchedState)
        assert step.spec.spikes == recipe.train.spikes
