"""What a step with frozen parameters needs, by the formula that runs and plans share, against what XLA compiles."""

import dataclasses

import jax
import msgspec
import pytest
from toy import mesh_of

from launch.plan_ahead import roofline
from launch.plan_ahead.costs import count_flops
from launch.plan_ahead.hlo import parse_program
from launch.plan_ahead.program import compile_step, make_step
from launch.recipe import decode_recipe
from train.mfu import make_utilisation

RECIPE = {
    "run": {"dir": "runs/tiny"},
    "model": {
        "vocab_size": 96, "num_layers": 3, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 64,
        "tied_head": False,
    },
    "data": {
        "sources": [{"kind": "files", "name": "none", "path": "no/such/file.jsonl"}],
        "packing": {"row_length": 16},
    },
    "optim": {"learning_rate": 1e-3},
    "train": {"steps": 1, "batch_rows": 8, "trackers": [], "gradient_share": False},
}  # fmt: skip


@pytest.mark.parametrize(
    "freeze",
    [
        (),
        ("embedding/*",),
        ("embedding/*", "layers/*", "final_norm/*"),
        ("embedding/*", "layers/*/attention*", "head/*"),
    ],
    ids=["nothing", "embedding", "all but the head", "attention and head"],
)
def test_the_formula_is_what_xla_compiles(freeze):
    """Sums by language add some products; dense attention looks at all pairs instead of the causal half."""
    recipe = decode_recipe(RECIPE, "tiny")
    recipe = msgspec.structs.replace(recipe, train=msgspec.structs.replace(recipe.train, freeze=freeze))
    with jax.set_mesh(mesh_of((1, 1))):
        step = make_step(recipe, recipe.model, trained_share=1.0)
        step = step._replace(spec=dataclasses.replace(step.spec, num_languages=4))
        compiled = count_flops(parse_program(compile_step(step).text))
        cost = make_utilisation(step.spec, recipe.train).cost
    products, attention = roofline.model_flops(step)
    assert compiled == pytest.approx(products + attention * 2 * 16 / 17, rel=0.02)
    assert cost == roofline.cost_of(step), "runs and plans count alike"
