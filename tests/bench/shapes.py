"""Times the training step of a recipe's model on random packed rows: no data, no tokenizer, all devices present.

    python -m tests.bench.shapes dense_1b_gpu_1
    python -m tests.bench.shapes dense_8b_gpu_8 data.packing.row_length=4096 train.batch_rows=8

Rows are full of examples of 16 tokens to a row, half of whose positions are trained. Steps are dispatched as the loop
does, one ahead of the devices. The first ones, with the compilation, are not counted.
"""

import argparse
import functools
import statistics
import time

import jax
import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from data.batch import Batch
from launch.config import Recipe
from launch.origin import size_mesh
from launch.plan_ahead.program import resolve_config
from launch.recipe import load_recipe
from launch.runtime import set_up_process, use_mesh
from launch.train import make_spec
from model.attention_choice import choose_attention, describe_attention, platform_in_use
from model.parallel import describe_axes, ways
from model.transformer import count_parameters
from tests.bench.workload import draw_batch
from train.device_memory import read_memory
from train.hosts import put_batch
from train.job import head_positions
from train.mfu import make_utilisation
from train.optim import make_optimizer
from train.state import init_state
from train.step import train_step

WARM_UP = 3


def time_steps(recipe: Recipe, steps: int, console: Console) -> None:
    """Makes the state, times the steps and prints one table."""
    cfg, length, rows = resolve_config(recipe), recipe.data.packing.row_length, recipe.train.batch_rows
    mesh, rng = jax.sharding.get_mesh(), np.random.default_rng(0)
    batches = [draw_batch(rng, rows=rows, length=length, vocabulary=cfg.vocab_size) for _ in range(4)]
    trained_R = np.concatenate([(batch.loss_weight_BT > 0).sum(axis=1) for batch in batches])
    multiple = ways(recipe.axes.length, mesh)
    most = max(head_positions(trained_R, batch_rows=rows, row_length=length, multiple=multiple))
    spec = make_spec(recipe, cfg, languages=2, sources=0, most_trained=most)
    tx = make_optimizer(recipe.optim, 10**6, freeze=spec.freeze)
    state = init_state(cfg, spec.axes, tx, jax.random.key(0), memory=spec.optimizer_memory)
    utilisation = make_utilisation(spec, recipe.train)
    kernel = choose_attention(cfg, spec.compute, platform=platform_in_use(), row_length=length)
    console.print(
        f"{count_parameters(state.params):,} parameters; mesh {describe_axes(mesh.shape)} on {mesh.devices.size} x "
        f"{mesh.devices.flat[0].device_kind}; {rows} rows of {length}, {spec.microbatches} microbatch(es); "
        f"{spec.compute.dtype}, attention {describe_attention(kernel)}, remat {spec.compute.remat}; "
        f"{steps} steps; jax {jax.__version__}\n{utilisation.describe()}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    update = jax.jit(functools.partial(train_step, spec, tx), donate_argnums=0)
    placed = [put_batch(batch, spec.axes.spec("batch", None)) for batch in batches]
    seconds, losses, before, ended = [], [], None, time.monotonic()
    for step in range(WARM_UP + steps + 1):
        state, metrics = update(state, placed[step % len(placed)])
        if before is not None:
            jax.block_until_ready(before)
            now = time.monotonic()
            seconds.append(now - ended)
            ended = now
            sums = jax.device_get(before.sums)  # as NumPy: another sum on the device would wait for the next step
            losses.append(float(sums.loss_R.sum() / sums.weight_R.sum()))
        before = metrics
    _print_table(seconds[WARM_UP:], losses, batches, utilisation, console)


def _print_table(seconds, losses, batches: list[Batch], utilisation, console: Console) -> None:
    median = statistics.median(seconds)
    real = statistics.mean(int((batch.segments_BT > 0).sum()) for batch in batches)
    target = statistics.mean(float(batch.loss_weight_BT.sum()) for batch in batches)
    flops, peak = statistics.mean(map(utilisation.count_flops, batches)), utilisation.peak_of_all
    fullest = max(read_memory(), key=lambda use: use.peak)
    table = Table("ms/step", "fastest", "real tok/s", "target tok/s", "MFU", "peak memory", "loss, first to last")
    table.add_row(
        f"{median * 1e3:,.1f}",
        f"{min(seconds) * 1e3:,.1f}",
        f"{real / median:,.0f}",
        f"{target / median:,.0f}",
        "-" if peak is None else f"{flops / median / peak:.1%}",
        f"{fullest.peak / 2**30:.2f} GiB of {fullest.of}",
        f"{losses[0]:.3f} to {losses[-1]:.3f}",
    )
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.shapes", description=__doc__)
    parser.add_argument("recipe", help="a shipped recipe or a YAML file; its data are not read")
    parser.add_argument("overrides", nargs="*", help="key=value, as for polytune train")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    options = parser.parse_intermixed_args(arguments)  # overrides may stand anywhere
    set_up_process()
    recipe = load_recipe(options.recipe, options.overrides)
    recipe = msgspec.structs.replace(recipe, run=msgspec.structs.replace(recipe.run, dir="/nonexistent"))
    with use_mesh(size_mesh(recipe, jax.device_count())):
        time_steps(recipe, options.steps, Console())


if __name__ == "__main__":
    main()
