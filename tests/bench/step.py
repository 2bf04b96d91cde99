"""Times polytune's training step against the same model in Hugging Face transformers, on one device.

    python -m tests.bench.step
    python -m tests.bench.step --recipe dense_1b_gpu_1 --random compute.remat=none

Every contender is a process of its own, starts from the same exported weights and trains on the same examples: the
recipe's own first batches, or with --random random rows of its size, which need neither data nor tokenizer. Before
anything is timed, losses and gradient norms of the first batch must agree: otherwise it would not be the same work.

On a CPU contenders take turns, one step each, so that whatever else the machine does hits all of them. On a GPU they
run one after the other, each with the whole of its memory.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from data.batch import Batch
from launch.config import Recipe, RecipeError
from launch.recipe import load_recipe
from model.hf.config_file import FamilyError
from model.parallel import MeshConfig, make_mesh
from tests.bench.same_work import NotTheSameWorkError, check_first, check_memory, check_recipe
from tests.bench.start_writer import plan_from_data, plan_from_random_rows, write_start
from tests.bench.step_table import WARM_UP, describe_outcome, print_table
from tests.bench.worker import Contender, DeviceFacts, Machine, Outcome, Worker, find_device

TURNS = {"cpu": "steps", "gpu": "runs"}
ALSO = {
    "compile": ("torch.compile", {"is_compiled": True}),
    "checkpointing": ("gradient checkpointing", {"checkpoints_activations": True}),
    "bfloat16-weights": ("bfloat16 weights and moments", {"weights": "bfloat16"}),
}
"""Further forms of the torch side on packed rows."""


def list_contenders(attentions: list[str], also: list[str]) -> list[Contender]:
    """The contenders; the first is the one that ratios are of."""
    contenders = [
        Contender(name="polytune", side="polytune"),
        Contender(name="polytune, logits everywhere", side="polytune", options={"everywhere": True}),
        Contender(name="transformers, padded (Trainer's default)", side="transformers", is_packed=False),
    ]
    for attention in attentions:
        name = f"transformers, our packed rows, {attention}"
        contenders.append(Contender(name=name, side="transformers", options={"attention": attention}))
        for form in also:
            what, options = ALSO[form]
            options = {"attention": attention, **options}
            contenders.append(Contender(name=f"{name}, {what}", side="transformers", options=options))
    return contenders


def measure(
    groups: list[list[Contender]],
    start_worker: Callable[[Contender], Worker],
    *,
    count: int,
    dtype: str,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """What came of each contender, told of as soon as it is there; those of a group take turns, one step each.

    Before any is timed, its first loss and gradient norm must be those of the very first contender. Raises RuntimeError
    when the first group fails, or does other work; a later one has an outcome that says so.
    """
    outcomes: list[Outcome] = []
    for group in groups:
        workers: list[Worker] = []
        try:
            for contender in group:
                workers.append(start_worker(contender))
            first = [worker.step(0) for worker in workers]
            wanted = outcomes[0].steps[0] if outcomes else first[0]
            for worker, made in zip(workers, first, strict=True):
                check_first(worker.contender.name, made, wanted, dtype=dtype)
            rows = [first, *([worker.step(index) for worker in workers] for index in range(1, count))]
            found = [worker.finish(list(steps)) for worker, steps in zip(workers, zip(*rows, strict=True), strict=True)]
        except RuntimeError as error:
            if not outcomes:
                raise
            found = [Outcome(contender, [], failure=str(error).strip().splitlines()[-1]) for contender in group]
        finally:
            for worker in workers:
                worker.stop()
        outcomes += found
        for outcome in found:
            tell(outcome)
    return outcomes


def run(options: argparse.Namespace, scratch: Path, console: Console) -> list[Outcome]:
    """Prepares the work, runs the contenders and prints the table."""
    recipe = load_recipe(options.recipe, options.overrides)
    device = find_device(options.device)
    check_recipe(recipe, device)
    attentions = options.attention or list(device.attentions)
    contenders = list_contenders(attentions, options.also)
    count, start = WARM_UP + options.steps, scratch / "start"
    turns = options.turns or TURNS[device.kind]
    batches = prepare(recipe, start, device, count=count, random=options.random)
    machine = Machine(
        device=device.kind, cores=options.cores, keep_memory=not options.plain_malloc, is_shared=turns == "steps"
    )
    groups = [contenders] if turns == "steps" else [[contender] for contender in contenders]
    load = os.getloadavg()[0]
    outcomes = measure(
        groups, lambda contender: Worker(contender, recipe, start, machine), count=count, dtype=recipe.compute.dtype,
        tell=lambda outcome: console.print(describe_outcome(outcome), highlight=False, markup=False, soft_wrap=True),
    )  # fmt: skip
    facts = [
        f"{recipe.train.batch_rows} rows of {recipe.data.packing.row_length}{', random' if options.random else ''}",
        f"{recipe.train.microbatches} microbatch(es)",
        f"{recipe.compute.dtype}, polytune's remat {recipe.compute.remat}",
        f"{options.steps} steps, {'in turn' if turns == 'steps' else 'one contender after the other'}",
        f"{device.name}, {options.cores} of {os.cpu_count()} cores",
        f"load average {load:.1f} to {os.getloadavg()[0]:.1f}",
        f"jax {jax.__version__}, {device.versions}",
    ]
    console.print(", ".join(facts), highlight=False, soft_wrap=True)
    print_table(console, outcomes, batches, microbatches=recipe.train.microbatches)
    return outcomes


def prepare(recipe: Recipe, start: Path, device: DeviceFacts, *, count: int, random: bool) -> list[Batch]:
    """Writes what contenders start from, and returns its batches. This process computes on the CPU only."""
    jax.config.update("jax_platforms", "cpu")
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])):
        if random:
            facts, batches = plan_from_random_rows(recipe, count)
        else:
            facts, batches = plan_from_data(recipe, start.parent / "run", count)
        check_memory(facts.model, device)
        write_start(start, facts, batches, seed=recipe.run.seed)
    return batches


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises SystemExit when it is wrong or what the benchmark needs is not installed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.bench.step", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("overrides", nargs="*", help="key=value, as for polytune train")
    add("--recipe", default="demo", help="a shipped recipe or a YAML file (default: demo)")
    add("--random", action="store_true", help="random rows; the recipe's data are not read")
    add("--steps", type=int, default=20, help="timed steps of each contender (default: 20)")
    add("--device", choices=("auto", *TURNS), default="auto", help="default: the GPU that torch sees, else the CPU")
    add("--turns", choices=("steps", "runs"), help="what contenders take turns at (default: steps on a CPU, else runs)")
    add("--attention", action="append", help="of transformers on packed rows (default: all that are here)")
    add("--also", action="append", choices=ALSO, default=[], help="a further form of transformers' step")
    add("--cores", type=int, default=os.cpu_count(), help="cores that each may use (default: all)")
    add("--plain-malloc", action="store_true", help="leave glibc's allocator as it is, on both sides")
    return parser.parse_intermixed_args(arguments)  # overrides may stand anywhere


def check_installed() -> None:
    """Raises SystemExit when the other side is not installed."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{' and '.join(missing)} not installed; the benchmark needs the optional extra: "
            "pip install -e .[bench] (install a CPU build of torch first if you have no GPU)"
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark of the command line; 1 if a contender failed."""
    options = parse_options(arguments)
    check_installed()
    # Rich guesses 80 columns when the output is a file; the table is wider.
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(" ".join(["$ python -m tests.bench.step", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            outcomes = run(options, Path(scratch), console)
        except (NotTheSameWorkError, RecipeError, FamilyError) as error:
            raise SystemExit(str(error)) from None
    return int(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
