"""`polytune prepare`: everything `train` does before its first step, so that training only reads."""

from pathlib import Path

from rich.console import Console

from launch.config import Recipe
from launch.origin import open_origin
from launch.plan_table import print_mixture
from launch.preparing import prepare_recipe, store_of
from launch.runtime import lock_run_dir, use_mesh
from launch.stored_recipe import check_same_run
from model.parallel import MeshConfig


def run_prepare(recipe: Recipe, *, console: Console) -> int:
    """Tokenises what is not yet, plans the rows, prints the plan; the run directory is then ready to train in."""
    run_dir = Path(recipe.run.dir)
    with use_mesh(MeshConfig()):
        origin = open_origin(recipe)
        with lock_run_dir(run_dir):
            check_same_run(recipe, run_dir, origin.cfg)
            prepared = prepare_recipe(recipe, origin, run_dir=run_dir, console=console)
    print_mixture(prepared.plan.summary, console)
    console.print(
        f"[bold green]prepared[/] plan {prepared.plan.hash[:12]} in {run_dir}/plan, tokens in {store_of(recipe)}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0
