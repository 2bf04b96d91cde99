"""`polytune demo`: the whole story on one machine. Train, kill, resume, evaluate, answer, report."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace
from rich.console import Console

from data.cldr import cldr_conversations
from data.dataset import read_dataset
from data.languages import own_name
from data.pipeline import make_batch
from data.plan import read_plan
from data.procedural import ignore_rule_answer, procedural_conversations
from data.schema import Conversation
from data.source_config import CldrSource, ProceduralSource
from eval.report import write_report
from launch.answering import AnswerConfig
from launch.config import Recipe, RecipeError
from launch.generate import answer_prompts
from launch.recipe import load_recipe
from launch.runtime import lock_run_dir
from model.checkpoint import newest_step
from train.metrics import describe_batch, read_metrics

DEMO_MARK = ".demo"
TASKS = "facts,rewrite,heldout"
SHOWN_LANGUAGES = ("en", "ar", "hi", "ja", "sw", "ru", "th", "de")


class DemoError(ValueError):
    """A part of the story did not happen as it should; the message says which and what was seen."""


class Audit(NamedTuple):
    """What the metrics log proves about a killed and resumed run."""

    killed_after: int
    """Last step the killed process had logged."""
    resumed_from: int
    repeated: int
    """Steps both processes made; every one on the same rows with the same digest."""
    steps: int


def run_demo(overrides: Sequence[str], *, console: Console) -> int:
    """Tells the story in the terminal; returns 0 when every part of it happened."""
    recipe = load_recipe("demo", overrides)
    steps = recipe.train.steps
    if steps is None:
        raise DemoError("the demo kills a run at a step it knows beforehand; give train.steps instead of train.epochs")
    run_dir = Path(recipe.run.dir)
    began = time.monotonic()
    clear_old_demo(run_dir, console)
    _headline(console, "1/5  train on facts and procedures in many languages, and be killed half-way")
    kill_step = pick_kill_step(steps, save_every=recipe.checkpoint.save_every)
    _train_and_kill(overrides, run_dir, kill_step, console)
    _headline(console, "2/5  the same command again")
    _run_polytune(["train", "demo", *overrides])
    audit = audit_resume(
        read_metrics(run_dir), steps=steps, batch_rows=recipe.train.batch_rows, owed=list_digests(run_dir)
    )
    console.print(
        f"killed after step {audit.killed_after}, resumed from step {audit.resumed_from}: the {audit.repeated} steps "
        f"in between were made again on the same batches. All {audit.steps:,} steps saw the batches the plan owed: "
        f"every logged digest is that of its own rows, {audit.steps * recipe.train.batch_rows:,} rows in order",
        highlight=False,
    )
    _headline(console, "3/5  evaluate in another process, on another mesh (2 simulated devices)")
    _run_polytune(["eval", str(run_dir), "--tasks", TASKS, "--fsdp", "2"], devices=2)
    _headline(console, "4/5  answer prompts phrased in ways it was never trained on")
    _answer(recipe, run_dir, console)
    _headline(console, "5/5  report")
    report = write_report(run_dir)
    console.print(f"open {report}", highlight=False, soft_wrap=True)
    console.print(f"the whole story took {time.monotonic() - began:.0f} s\n")
    _say_what_next(run_dir, console)
    return 0


def pick_kill_step(steps: int, *, save_every: int) -> int:
    """A step near the middle, half-way between two saves, so that the resumed run has steps to make again."""
    return min(steps // 2 // save_every * save_every + save_every // 2, steps - 1)


def list_digests(run_dir: Path) -> list[str]:
    """Digest of the batch that the stored plan owes each step, in order, made from the plan anew."""
    dataset, plan = read_dataset(run_dir / "plan" / "dataset"), read_plan(run_dir / "plan")
    rows = plan.summary["batch_rows"]
    return [
        describe_batch(
            make_batch(dataset, plan, range(first, first + rows)),
            first_row=first,
            num_languages=len(dataset.facts.languages),
        ).digest
        for first in range(0, plan.rows, rows)
    ]


def audit_resume(records: Sequence[dict[str, Any]], *, steps: int, batch_rows: int, owed: Sequence[str]) -> Audit:
    """Proof, from the log of a run killed once, that the resumed process saw the batches it owed.

    `owed` has the digest of each step's batch. Raises DemoError when a step is missing, or was made, by either process,
    on other rows than its number says or on a batch with another digest.
    """
    starts = [record for record in records if record["kind"] == "start"]
    if len(starts) != 2:
        raise DemoError(f"metrics.jsonl has {len(starts)} starts; one kill and one resume make 2")
    made: dict[int, dict[int, dict[str, Any]]] = {1: {}, 2: {}}
    for record in records:
        if record["kind"] == "step":
            made[record["attempt"]][record["step"]] = record
    first, second = made[1], made[2]
    resumed_from = starts[1]["step"]
    for step in range(1, steps + 1):
        if step not in (second if step > resumed_from else first):
            raise DemoError(f"step {step} is missing from metrics.jsonl")
        for record in (made[step] for made in (first, second) if step in made):
            if record["rows"] != [(step - 1) * batch_rows, step * batch_rows]:
                raise DemoError(f"step {step} was made on rows {record['rows']}, not on its own")
            if record["digest"] != owed[step - 1]:
                raise DemoError(f"step {step} saw batch {record['digest']}, the plan owed it {owed[step - 1]}")
    repeated = len(first.keys() & second.keys())
    return Audit(killed_after=max(first), resumed_from=resumed_from, repeated=repeated, steps=steps)


def pick_prompts(recipe: Recipe) -> list[Conversation]:
    """A trained fact in a held-out phrasing in each shown language, and a held-out rewrite rule that applies."""
    chooser = random.Random(recipe.run.seed)
    facts = next(source for source in recipe.data.sources if isinstance(source, CldrSource))
    rules = next(source for source in recipe.data.sources if isinstance(source, ProceduralSource))
    chosen = []
    for language in SHOWN_LANGUAGES:
        asked = cldr_conversations(replace(facts, languages=(language,), split="heldout"))
        chosen.append(chooser.choice([fact for fact in asked if not fact.task.startswith("write_")]))
    rewrites = procedural_conversations(replace(rules, languages=("en",), split="heldout", examples=20))
    return [*chosen, chooser.choice([it for it in rewrites if it.turns[-1].content != ignore_rule_answer(it)])]


def clear_old_demo(run_dir: Path, console: Console) -> None:
    """Removes an earlier demo's run and marks the directory as a demo's; refuses to touch anything else."""
    if run_dir.exists() and any(run_dir.iterdir()):
        if not (run_dir / DEMO_MARK).exists():
            raise RecipeError(f"{run_dir} was not made by the demo and is left as it is; give run.dir=ANOTHER")
        with lock_run_dir(run_dir):
            console.print(f"removing the earlier demo in {run_dir}", highlight=False)
            shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / DEMO_MARK).touch()


def _headline(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *arguments]


def _run_polytune(arguments: Sequence[str], *, devices: int = 1) -> None:
    shown = " ".join(["polytune", *arguments])
    print(f"$ {shown}", flush=True)
    done = subprocess.run(_command(arguments), env=_environment(devices))
    if done.returncode:
        raise DemoError(f"`{shown}` ended with exit code {done.returncode}")


def _environment(devices: int) -> dict[str, str]:
    """This environment, with as many simulated CPU devices as asked for."""
    if devices == 1:
        return dict(os.environ)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return {**os.environ, "XLA_FLAGS": flags}


def _train_and_kill(overrides: Sequence[str], run_dir: Path, kill_step: int, console: Console) -> None:
    arguments = ["train", "demo", *overrides]
    print(f"$ {' '.join(['polytune', *arguments])}", flush=True)
    process = subprocess.Popen(_command(arguments))
    try:
        while process.poll() is None and _last_step(run_dir) < kill_step:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    if code != -signal.SIGKILL:
        raise DemoError(f"training ended by itself with exit code {code} before step {kill_step}")
    console.print(
        f"\n[bold red]SIGKILL[/] at step {_last_step(run_dir)}; "
        f"the newest complete checkpoint is step {newest_step(run_dir)}",
        highlight=False,
    )


def _last_step(run_dir: Path) -> int:
    return max((record["step"] for record in read_metrics(run_dir) if record["kind"] == "step"), default=0)


def _answer(recipe: Recipe, run_dir: Path, console: Console) -> None:
    picked = pick_prompts(recipe)
    prompts = [conversation.turns[0].content for conversation in picked]
    answers = answer_prompts(str(run_dir), prompts, AnswerConfig(max_new_tokens=32, stop_ids=()), system=None)
    for conversation, answer in zip(picked, answers, strict=True):
        reference = conversation.turns[-1].content
        is_right = answer.text.strip() == reference
        console.print(f"[bold]{conversation.language}[/] {own_name(conversation.language)}", highlight=False)
        console.print("  ", conversation.turns[0].content, style="cyan", markup=False, highlight=False)
        verdict = "right" if is_right else f"wrong, the answer is {reference}"
        console.print(
            "  ",
            answer.text,
            f"({verdict})",
            style="green" if is_right else "red",
            markup=False,
            highlight=False,
        )


def _say_what_next(run_dir: Path, console: Console) -> None:
    console.print("Next:", style="bold")
    for line in (
        "polytune preview demo --rows 2                       what the model is fed, trained spans in colour",
        f"polytune generate {run_dir} --prompt '...'           ask it something",
        'polytune train my_recipe.yaml                        your own data: README, "Tune your own"',
    ):
        console.print("  " + line, highlight=False, markup=False, soft_wrap=True)
