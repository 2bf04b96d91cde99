"""The training program: recipe in, run directory out. The same command again goes on where it was killed."""

import contextlib
import functools
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import msgspec
from rich.console import Console
from rich.text import Text

from data.held_out import read_held_out
from data.pipeline import make_batches
from data.plan import Plan, trained_per_row
from data.prepare import Prepared, read_prepared
from data.realised import RealisedShares
from data.row_examples import describe_examples
from data.tokenizer import Tokenizer, fits_vocabulary
from eval import goodput
from eval.run_files import read_run
from launch.cluster import Flags, describe, detect_cluster, join
from launch.config import Recipe, RecipeError
from launch.environment import describe_devices, git_state, library_versions
from launch.origin import Origin, foresee_vocabulary, open_origin, size_mesh
from launch.plan_table import describe_head, print_plan
from launch.preparing import prepare_recipe, print_notice
from launch.recipe import recipe_tree, write_recipe
from launch.runtime import lock_run_dir, set_up_process, use_mesh
from launch.shared import check_alike, check_shared, print_waiting
from launch.stored_recipe import check_same_run, describe_filled_in
from launch.together import fail_together
from model import transformer
from model.attention_choice import choose_attention, platform_in_use
from model.attention_splash import check_shards
from model.config import ModelConfig
from model.parallel import check_all_shard, check_divisible, sharded_sizes, ways
from train.beginning import Beginning, find_beginning
from train.config import TrainConfig
from train.held_out import HeldOutJob
from train.hosts import is_first, share_of_batch, tell_all
from train.job import Outcome, TrainJob, head_positions
from train.loop import run_training
from train.metrics import read_metrics
from train.mfu import make_utilisation
from train.optim import check_patterns, make_schedule
from train.progress import show_progress
from train.stage import Stage
from train.step import StepSpec
from train.trackers import check_trackers

ALONE_OR_DETECTED = Flags()
EXIT_STOPPED = 75
"""Told to stop by a signal: the state is saved and the same command goes on. EX_TEMPFAIL, so that launchers retry."""


def run_train(recipe: Recipe, *, recipe_name: str, console: Console, flags: Flags = ALONE_OR_DETECTED) -> int:
    """Trains the recipe and returns the exit code: 0 when finished, EXIT_STOPPED when stopped by a signal.

    In a cluster, every process is started with this; process 0 prepares the data, holds the run directory and talks.
    """
    set_up_process()
    cluster = detect_cluster(flags, os.environ)
    if cluster is not None:
        join(cluster)
    stage = Stage()
    with fail_together(stage=stage, stalled_after_s=recipe.train.stalled_after_s):
        if cluster is not None and is_first():
            console.print(f"[bold]{describe(cluster)}[/]", highlight=False, soft_wrap=True)
        outcome = _run(recipe, recipe_name, console if is_first() else Console(quiet=True), stage)
    if is_first():
        _say_outcome(outcome, Path(recipe.run.dir), console)
    return 0 if outcome.finished else EXIT_STOPPED


def _run(recipe: Recipe, recipe_name: str, console: Console, stage: Stage) -> Outcome:
    run_dir = Path(recipe.run.dir)
    if is_first():
        check_trackers(recipe.train.trackers)
    with contextlib.ExitStack() as held:
        # A run that never starts claims no directory: one that is there is held from here on, a new one further down.
        is_there = run_dir.is_dir()
        if is_first() and is_there:
            held.enter_context(lock_run_dir(run_dir))
        beginning = find_beginning(run_dir)  # first of all: a preset reads the newest checkpoint's model
        mesh = held.enter_context(use_mesh(size_mesh(recipe, jax.device_count())))
        origin = open_origin(recipe)
        check_sizes(recipe, foresee_vocabulary(recipe, origin), mesh)
        if is_first() and not is_there:
            held.enter_context(lock_run_dir(run_dir))
        check_shared(recipe)
        prepared = _prepare(recipe, origin, console)
        job = make_job(recipe, origin, prepared)
        check_alike(job)
        if beginning.newest is None:
            print_plan(prepared.plan.summary, job, mesh, console)
        if job.held_out is not None:
            console.print(describe_held_out(job.held_out), highlight=False, markup=False)
        console.print(make_utilisation(job.spec, job.train).describe(), highlight=False, markup=False)
        outcome = _train(recipe, prepared, job, console, beginning, stage)
        if is_first():
            write_run_card(recipe, prepared, job, outcome, recipe_name)
    return outcome


def _prepare(recipe: Recipe, origin: Origin, console: Console) -> Prepared:
    """The run's data: process 0 prepares it, then the others read what it has written."""

    def prepare() -> None:
        filled_in = check_same_run(recipe, Path(recipe.run.dir), origin.cfg)
        if filled_in:
            print_notice(describe_filled_in(filled_in), console)
        mine.append(prepare_recipe(recipe, origin, run_dir=Path(recipe.run.dir), console=console))

    mine: list[Prepared] = []
    tell_all("prepared", prepare, on_wait=lambda: print_waiting("prepares the data"))
    return mine[0] if mine else read_prepared(Path(recipe.run.dir))


def _say_outcome(outcome: Outcome, run_dir: Path, console: Console) -> None:
    if outcome.finished:
        console.print(f"[bold green]finished[/] {outcome.step} steps in {run_dir}")
        return
    console.print(f"[bold yellow]stopped[/] by a signal; step {outcome.step} is saved. Run the same command to go on")


def check_sizes(recipe: Recipe, cfg: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError, before any data is read: a size the mesh does not divide, a warm-up that does not fit, a
    pattern that matches no parameter, a mesh axis that shards nothing, a model or rows that the wanted attention kernel
    cannot serve.
    """
    check_patterns(recipe.optim, recipe.train.freeze, cfg)
    if recipe.train.steps is not None:
        make_schedule(recipe.optim, recipe.train.steps)
    axes = recipe.axes
    check_all_shard(axes, mesh)
    rows = recipe.train.batch_rows // recipe.train.microbatches
    microbatch = {"rows per microbatch (train.batch_rows / train.microbatches)": (rows, axes.batch)}
    length = {"data.packing.row_length": (recipe.data.packing.row_length, axes.length)}
    check_divisible({**microbatch, **length, **sharded_sizes(cfg, axes)}, mesh)
    kernel = choose_attention(
        cfg, recipe.compute, platform=platform_in_use(), row_length=recipe.data.packing.row_length
    )
    if kernel.name == "splash":
        check_shards(recipe.data.packing.row_length, ways(axes.length, mesh))


def resolve_model(cfg: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model with the tokenizer's vocabulary filled in; RecipeError when it is too small for it."""
    if cfg.vocab_size and not fits_vocabulary(tokenizer, cfg.vocab_size):
        raise RecipeError(
            f"model.vocab_size={cfg.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}; use 0 to take "
            "it from there, or the tokenizer that belongs to the model"
        )
    return msgspec.structs.replace(cfg, vocab_size=cfg.vocab_size or tokenizer.vocab_size)


def make_spec(recipe: Recipe, cfg: ModelConfig, *, languages: int, sources: int, most_trained: int) -> StepSpec:
    """What is static about the step of a recipe, with tables of so many languages and sources; planned and trained."""
    train = recipe.train
    return StepSpec(
        model=cfg,
        axes=recipe.axes,
        compute=recipe.compute,
        num_languages=languages,
        most_trained=most_trained,
        microbatches=train.microbatches,
        loss=train.loss,
        router=train.router,
        freeze=train.freeze,
        ema_decay=train.ema_decay,
        optimizer_memory=train.optimizer_memory,
        neftune_alpha=train.neftune_alpha,
        dropout=train.dropout,
        seed=recipe.run.seed,
        num_sources=sources,
        gradient_share=train.gradient_share,
        spikes=train.spikes,
    )


def make_job(recipe: Recipe, origin: Origin, prepared: Prepared) -> TrainJob:
    """Everything the loop needs, decided before the first step."""
    model_config = resolve_model(origin.cfg, prepared.tokenizer)
    axes, mesh = recipe.axes, jax.sharding.get_mesh()
    check_divisible(sharded_sizes(model_config, axes), mesh)
    largest = prepared.dataset.facts.largest_id
    if largest >= model_config.vocab_size:
        raise RecipeError(
            f"the data has token id {largest}, the model embeds {model_config.vocab_size}: its chat template writes a "
            "token the model does not have. Choose another with tokenizer.template"
        )
    plan = prepared.plan
    most_trained_S = head_positions(
        trained_per_row(prepared.dataset, plan), batch_rows=recipe.train.batch_rows, row_length=plan.row_length,
        multiple=ways(axes.length, mesh),
    )  # fmt: skip
    spec = make_spec(
        recipe, model_config, languages=len(prepared.dataset.facts.languages),
        sources=len(prepared.dataset.facts.sources), most_trained=max(most_trained_S),
    )  # fmt: skip
    return TrainJob(
        run_dir=Path(recipe.run.dir),
        spec=spec,
        optim=recipe.optim,
        train=resolve_length(recipe, plan),
        checkpoint=recipe.checkpoint,
        seed=recipe.run.seed,
        languages=tuple(prepared.dataset.facts.languages),
        sources=tuple(prepared.dataset.facts.sources),
        plan_hash=plan.hash,
        accepts_changed_plan=recipe.data.changed_plan == "accept",
        most_trained_S=most_trained_S,
        meta={
            "model": msgspec.to_builtins(model_config),
            "recipe": recipe_tree(recipe),
            "tokenizer_hash": prepared.tokenizer.hash,
            "template_hash": plan.summary["template_hash"],
            "plan_hash": plan.hash,
            "row_length": plan.row_length,
            "languages": list(prepared.dataset.facts.languages),
            "sources": list(prepared.dataset.facts.sources),
            "stop_ids": list(prepared.chat.stop_ids),
            "dtype": "float32",
            "versions": library_versions(),
            **origin.meta,
        },
        load_params=origin.load,
        held_out=make_held_out(recipe, prepared),
        shares_after=RealisedShares(prepared.dataset, plan).after,
        describe_row=functools.partial(describe_examples, prepared.dataset, plan, prepared.tokenizer),
    )


def make_held_out(recipe: Recipe, prepared: Prepared) -> HeldOutJob | None:
    """What is looked at while training; None where the recipe holds nothing out."""
    rows = read_held_out(recipe.data, training=prepared.dataset, run_dir=Path(recipe.run.dir))
    if rows is None:
        return None
    batch_rows = recipe.train.batch_rows // recipe.train.microbatches
    return HeldOutJob(rows=rows, every=recipe.train.held_out_every, batch_rows=batch_rows)


def describe_held_out(job: HeldOutJob) -> str:
    """One line: what is looked at, and when."""
    examples = sum(map(len, job.rows.rows))
    return (
        f"held out: {examples:,} examples of {len(job.rows.languages) - 1} languages in {len(job.rows.rows):,} rows, "
        f"their loss is looked at every {job.every} steps"
    )


def resolve_length(recipe: Recipe, plan: Plan) -> TrainConfig:
    """The length of the run in steps, which the plan knows where the recipe says epochs, or where sources end it.

    Raises ValueError for a warm-up that does not fit.
    """
    steps = plan.summary["steps"]
    make_schedule(recipe.optim, steps)
    return msgspec.structs.replace(recipe.train, steps=steps, epochs=None)


def write_run_card(recipe: Recipe, prepared: Prepared, job: TrainJob, outcome: Outcome, recipe_name: str) -> None:
    """Writes `run_card.json`: what this run was, for reports, exports and comparisons."""
    abstract = transformer.abstract(job.spec.model, job.spec.axes)
    records = read_metrics(job.run_dir)
    length = recipe.data.packing.row_length
    kernel = choose_attention(job.spec.model, job.spec.compute, platform=platform_in_use(), row_length=length)
    card: dict[str, Any] = {
        "name": job.run_dir.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": outcome.step,
        "steps": job.train.steps,
        "recipe_name": Path(recipe_name).stem,
        "model": {
            "parameters": transformer.count_parameters(abstract),
            **msgspec.to_builtins(job.spec.model),
        },
        "plan_hash": job.plan_hash,
        "tokenizer_hash": prepared.tokenizer.hash,
        "template_hash": job.meta["template_hash"],
        "devices": describe_devices(),
        "mesh": dict(jax.sharding.get_mesh().shape),
        "compute": msgspec.to_builtins(recipe.compute),
        "attention": {"kernel": kernel.name, "block": kernel.block},
        "versions": library_versions(),
        "git": git_state(),
        "processes": jax.process_count(),
        "loss_head": describe_head(job.spec, jax.sharding.get_mesh()),
        "peak_flops_per_s": make_utilisation(job.spec, job.train).peak_flops_per_s,
        "train_seconds": round(_busy_seconds(records), 1),
        "attempts": outcome.attempt,
        "goodput": _describe_goodput(job.run_dir),
        "recipe": job.meta["recipe"],
    }
    path = job.run_dir / "run_card.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def _describe_goodput(run_dir: Path) -> dict[str, Any] | None:
    found = goodput.measure(read_run(run_dir))
    if found is None:
        return None
    seconds = {f"{part}_s": round(seconds, 2) for part, seconds in found.seconds.items()}
    return {"share": round(found.share, 4), "wall_s": round(found.wall_s, 2), **seconds}


def _train(
    recipe: Recipe, prepared: Prepared, job: TrainJob, console: Console, beginning: Beginning, stage: Stage
) -> Outcome:
    def open_batches(first_row: int):
        spec = job.spec.axes.spec("batch", None)
        share = share_of_batch(jax.sharding.get_mesh(), spec, rows=recipe.train.batch_rows)
        return make_batches(
            (prepared.dataset, prepared.plan), start_row=first_row, batch_rows=recipe.train.batch_rows,
            host_index=share.index, host_count=share.count,
            workers=recipe.data.workers, prefetch=recipe.data.prefetch,
        )  # fmt: skip

    def on_start(outcome: Outcome) -> None:
        if is_first():  # only now: a run that never started claims no directory
            write_recipe(recipe, job.run_dir / "recipe.yaml")
        for path in outcome.set_aside:
            console.print(f"[bold yellow]half written[/] checkpoint {path.name} set aside in {path}", soft_wrap=True)
        for path, what in outcome.damaged:
            warn(f"damaged checkpoint set aside in {path}: {what}")
        if outcome.is_unverified:
            print_notice(f"checkpoint {outcome.resumed_from} has no checksums: it could not be verified", console)
        if outcome.resumed_from is not None:
            row = outcome.resumed_from * recipe.train.batch_rows
            console.print(f"[bold]resumed[/] from checkpoint {outcome.resumed_from}; the next global row is {row}")

    def warn(text: str) -> None:
        console.print(Text("warning ", "bold yellow").append(text, "not bold default"), soft_wrap=True)

    with show_progress(
        start=beginning.newest or 0, steps=job.steps, every=job.train.log_every, console=console
    ) as show:
        return run_training(
            job, open_batches=open_batches, show=show, on_start=on_start, beginning=beginning, stage=stage, say=warn
        )


def _busy_seconds(records: list[dict[str, Any]]) -> float:
    """Wall time of all attempts, from each start to its last record."""
    total = 0.0
    start = last = None
    for record in records:
        if record["kind"] == "start":
            total += (last - start) if start is not None and last is not None else 0.0
            start = record["time"]
        last = record["time"]
    return total + ((last - start) if start is not None and last is not None else 0.0)
