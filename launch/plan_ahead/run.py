"""The verb `plan`: does a recipe fit machines that are not here, and what will a step of it cost there?"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import msgspec
from rich.console import Console

from launch.config import Recipe, RecipeError
from launch.origin import size_mesh
from launch.plan_ahead.plan import AheadPlan, make_plan, to_builtins
from launch.plan_ahead.program import resolve_config
from launch.plan_ahead.search import search
from launch.plan_ahead.table import print_ahead_plan, verdict
from launch.plan_ahead.topology import Topology, make_devices, parse_topology
from model.config import ModelConfig
from model.parallel import make_mesh, ways

EXIT_DOES_NOT_FIT = 1


def run_plan_ahead(
    recipe: Recipe,
    *,
    topology: str,
    trained_share: float,
    is_search: bool,
    json_file: str | None,
    console: Console,
) -> int:
    """Prints the plan; returns 0 if the recipe (or what the search found) fits, EXIT_DOES_NOT_FIT if not.

    Raises RecipeError for a topology that is none or whose compiler is not installed, and ValueError for sizes that
    its mesh does not divide.
    """
    if not 0 < trained_share <= 1:
        raise RecipeError(f"--trained-share {trained_share:g} is no share of a row's positions; give one in (0, 1]")
    place = parse_topology(topology)
    _set_up(place)
    devices = list(make_devices(place))
    is_preset, sized = recipe.mesh.preset is not None, size_mesh(recipe, len(devices))
    # The search changes microbatches, from which a preset would choose other sizes: the mesh stays as it is now.
    recipe = msgspec.structs.replace(recipe, mesh=sized)
    mesh = make_mesh(sized, devices)
    with jax.set_mesh(mesh):
        cfg = resolve_config(recipe)

        def plan(tried: Recipe) -> AheadPlan:
            made = make_plan(tried, cfg, place, trained_share=trained_share)
            if is_search:
                console.print(
                    f"remat {made.remat}, {made.microbatches} microbatch(es): {verdict(made).partition(';')[0]}",
                    highlight=False, soft_wrap=True,
                )  # fmt: skip
            return made

        if is_search:
            recipe, made = search(recipe, ways(recipe.axes.batch, mesh), plan)
        else:
            made = plan(recipe)
    print_ahead_plan(made, place, console)
    if is_search and made.fits:
        sizes = [f"mesh.{name}={size}" for name, size in made.mesh.items() if size > 1]
        found = [f"compute.remat={made.remat}", f"train.microbatches={made.microbatches}"]
        found += ["mesh.preset=null", *sizes] if is_preset else []
        console.print(f"[bold]{' '.join(found)}[/]", highlight=False, soft_wrap=True)
    if json_file is not None:
        _write(made, recipe, cfg, place, Path(json_file))
    return 0 if made.fits else EXIT_DOES_NOT_FIT


def _set_up(topology: Topology) -> None:
    """Settings of a process that compiles and runs nothing."""
    for name in ("absl", "jax._src.compiler", "jax._src.xla_bridge", "jax._src.cloud_tpu_init"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if topology.platform == "tpu":  # what the cache holds is read by a device only, and there is none
        jax.config.update("jax_enable_compilation_cache", False)
    # Loops are told apart by the names of their scopes: a program kept from code that had other names will not do.
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)


def _write(plan: AheadPlan, recipe: Recipe, cfg: ModelConfig, topology: Topology, path: Path) -> None:
    chip = topology.chip._asdict() if topology.chip else None
    tree: dict[str, Any] = {
        **to_builtins(plan), "chip": chip, "model": msgspec.to_builtins(cfg),
        "compute": msgspec.to_builtins(recipe.compute), "train": msgspec.to_builtins(recipe.train),
    }  # fmt: skip
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(tree, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)
