"""The evaluation program: a checkpoint path in, results.json, samples and tables out.

Its own process and its own mesh: it reads `params` and `meta` of a checkpoint, and nothing of `train`.

    python -m eval.run runs/demo --tasks facts,rewrite
"""

import argparse
import functools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
from rich.console import Console

from eval.config import EvalConfig, EvalError
from eval.engine import Limits
from eval.grading import Graded, ask_task, grade_task
from eval.opening import OpenModel, load_model, open_model
from eval.results import TaskResult, build_results, read_results, write_results
from eval.table import draw_table
from eval.task import Document, TaskConfig, follow_recipe, load_documents, load_task, thin_out
from model.parallel import make_mesh


def run_eval(config: EvalConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Evaluates a checkpoint, writes results.json and samples beside it, prints tables; returns results.json.

    Everything that can be wrong with the request is looked at before the model is loaded. Tasks that results.json
    already holds for this checkpoint stay in it. Raises EvalError, DataError or CheckpointError.
    """
    started = time.perf_counter()
    console = Console() if console is None else console
    named = _load_tasks(config.tasks)
    opened = open_model(config.checkpoint, template=config.template, weights=config.weights)
    chat = opened.need_chat()
    tasks = [follow_recipe(task, opened.recipe) if opened.recipe else task for task in named]
    documents = [_load_task_documents(task, config) for task in tasks]
    limits = Limits(config.batch_tokens, config.max_length or opened.max_length)
    requests = [
        ask_task(task, chosen, chat=chat, max_length=limits.max_length)
        for task, (chosen, _) in zip(tasks, documents, strict=True)
    ]
    folder = Path(config.output) if config.output else opened.results_dir
    read_results(folder)  # A damaged one is refused now, not after the first task.
    built: dict[str, Any] = {}
    with jax.set_mesh(make_mesh(config.mesh)):
        model = load_model(opened, config.compute)
        for task, (chosen, original), asked in zip(tasks, documents, requests, strict=True):
            answer = functools.partial(grade_task, requests=asked, chat=chat, model=model, limits=limits)
            graded = _time_task(task, chosen, answer, console=console)
            result = TaskResult(task, chosen, graded, original, config.limit, limits.max_length, time.time())
            facts = _list_facts(config, opened, limits, time.perf_counter() - started)
            # Written after each task: what fails later loses nothing that is computed.
            built = write_results(folder, build_results([result], facts), [result])
    beside = _read_beside(opened)
    for task in tasks:
        console.print(draw_table(built, task.name, beside=beside))
    console.print(f"wrote {folder}/results.json", highlight=False, soft_wrap=True)
    return built


def _read_beside(opened: OpenModel) -> dict[str, dict[str, Any]]:
    """Evaluations of the same run to show beside this one, by their columns' names: untrained, and of other weights."""
    if not opened.step:
        return {}
    name, weights = ("EMA", "ema") if opened.weights == "params" else ("last", "params")
    folders = {name: opened._replace(weights=weights).results_dir, "untrained": opened.run_dir / "eval" / "0"}
    found = {name: read_results(folder) for name, folder in folders.items()}
    return {name: results for name, results in found.items() if results is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.run",
        description="Evaluate a model by language.",
        epilog="example: python -m eval.run runs/demo --tasks facts,rewrite",
    )
    parser.add_argument("checkpoint", help="run directory, RUN/checkpoints/STEP, or Hugging Face folder")
    parser.add_argument("--tasks", required=True, help="names or .yaml files, separated by commas")
    parser.add_argument("--output", help="folder for results.json (default: RUN/eval/STEP)")
    parser.add_argument("--data-root", help="folder that the tasks' files are under (default: here)")
    parser.add_argument("--template", help="chat template: a shipped name or a file (default: the model's own)")
    parser.add_argument("--weights", help="params, or ema: their average (default: params)")
    parser.add_argument("--limit", help="at most this many documents per language")
    parser.add_argument("--max-length", help="longest input in tokens (default: the training row length)")
    parser.add_argument("--batch-tokens", help="positions computed at once")
    given = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        fields = {**given, "tasks": tuple(given["tasks"].split(","))}
        run_eval(msgspec.convert(fields, EvalConfig, strict=False))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _load_tasks(names: Sequence[str]) -> list[TaskConfig]:
    tasks = [load_task(name) for name in names]
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise EvalError(f"two of the tasks are called {twice[0]}; rename one, results are kept by name")
    return tasks


def _load_task_documents(task: TaskConfig, config: EvalConfig) -> tuple[list[Document], Counter[str]]:
    """The documents to ask, and how many each language has before the limit."""
    root = Path(config.data_root)
    if not root.is_dir():
        raise EvalError(f"data_root {root} does not exist; give the folder that holds the evaluation files")
    documents = load_documents(task, data_root=root)
    counts = Counter(document.conversation.language for document in documents)
    return thin_out(documents, config.limit), counts


def _time_task(
    task: TaskConfig,
    documents: Sequence[Document],
    grade: Callable[[TaskConfig, Sequence[Document]], list[Graded]],
    *,
    console: Console,
) -> list[Graded]:
    """The documents answered and graded, with a line on how long it took.

    Raises EvalError if the likelihoods are not finite.
    """
    started = time.perf_counter()
    graded = grade(task, documents)
    if not all(math.isfinite(ratio.numerator) for each in graded for ratio in each.metrics.values()):
        raise EvalError(f"task {task.name}: the model's likelihoods are not finite; the checkpoint's training diverged")
    seconds = time.perf_counter() - started
    languages = len({document.conversation.language for document in documents})
    console.print(f"{task.name}: {len(documents)} documents, {languages} languages, {seconds:.1f} s", highlight=False)
    return graded


def _list_facts(config: EvalConfig, opened: OpenModel, limits: Limits, seconds: float) -> dict[str, Any]:
    """What results.json says about the run itself."""
    return {
        "config": {
            "model": "polytune",
            "step": opened.step,
            "checkpoint": f"{opened.run_dir.resolve().name}/{opened.step}",
            "weights": config.weights,
            "mesh": msgspec.to_builtins(config.mesh),
            "devices": jax.device_count(),
            "platform": jax.default_backend(),
            "compute": msgspec.to_builtins(config.compute),
            "limit": config.limit,
            "batch_tokens": limits.batch_tokens,
            "max_length": limits.max_length,
        },
        "chat_template_sha": opened.need_chat().hash,
        "tokenizer_hash": opened.tokenizer.hash,
        "date": time.time(),
        "total_evaluation_time_seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
