"""The command line: `polytune VERB ...`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from launch.options import parse_arguments

if TYPE_CHECKING:
    from launch.answering import AnswerConfig

EXIT_USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code. Errors a user can mend are one message, no traceback.

    POLYTUNE_TRACEBACK=1 shows the traceback too.
    """
    options = parse_arguments(arguments)
    console = Console()
    try:
        return VERBS[options.verb](options, console)
    except (ValueError, OSError) as error:
        if os.environ.get("POLYTUNE_TRACEBACK"):
            raise
        message = Text("error: ", "bold red").append(str(error), "not bold default")
        Console(stderr=True).print(message, soft_wrap=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130


def _demo(options: argparse.Namespace, console: Console) -> int:
    from launch.demo import run_demo

    return run_demo(options.overrides, console=console)


def _train(options: argparse.Namespace, console: Console) -> int:
    from launch.cluster import Flags
    from launch.recipe import load_recipe
    from launch.train import run_train

    return run_train(
        load_recipe(options.recipe, options.overrides), recipe_name=options.recipe, console=console,
        flags=Flags(options.cluster, options.coordinator, options.processes, options.process_index),
    )  # fmt: skip


def _launch(options: argparse.Namespace, console: Console) -> int:
    from launch.local import run_local

    return run_local(
        options.recipe, options.overrides, processes=options.processes,
        devices_per_process=options.devices_per_process, console=console,
    )  # fmt: skip


def _prepare(options: argparse.Namespace, console: Console) -> int:
    from launch.prepare import run_prepare
    from launch.recipe import load_recipe
    from launch.runtime import set_up_process

    set_up_process(keep_memory=False)
    return run_prepare(load_recipe(options.recipe, options.overrides), console=console)


def _plan(options: argparse.Namespace, console: Console) -> int:
    from launch.plan_ahead.run import run_plan_ahead
    from launch.recipe import load_recipe

    return run_plan_ahead(
        load_recipe(options.recipe, options.overrides), topology=options.topology, trained_share=options.trained_share,
        is_search=options.search, json_file=options.json, console=console,
    )  # fmt: skip


def _eval(options: argparse.Namespace, console: Console) -> int:
    import msgspec

    from eval.config import EvalConfig
    from eval.run import run_eval
    from launch.runtime import set_up_process

    set_up_process()
    fields = {
        "checkpoint": options.checkpoint,
        "tasks": options.tasks.split(","),
        "output": options.output,
        "data_root": options.data_root,
        "limit": options.limit,
        "max_length": options.max_length,
        "batch_tokens": options.batch_tokens,
        "mesh": {"fsdp": options.fsdp, "expert": options.expert, "tensor": options.tensor},
        "template": options.template,
        "weights": options.weights,
        "compute": {"dtype": options.compute, "attention": "any"},
    }
    config = msgspec.convert(fields, EvalConfig)
    run_eval(config, console=console)
    return 0


def _preview(options: argparse.Namespace, console: Console) -> int:
    from launch.preview import run_preview
    from launch.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    return run_preview(recipe, rows=options.rows, language=options.language, html=options.html, console=console)


def _data(options: argparse.Namespace, console: Console) -> int:
    from launch.data_stats import run_data_stats
    from launch.recipe import load_recipe

    return run_data_stats(
        load_recipe(options.recipe, options.overrides), tokenizers=options.tokenizer, json_file=options.json,
        limit_rows=options.limit_rows, workers=options.workers, console=console,
    )  # fmt: skip


def _generate(options: argparse.Namespace, console: Console) -> int:
    from launch.generate import run_generate
    from model.config import ComputeConfig

    return run_generate(
        options.checkpoint, options.prompt, _read_answering(options), system=options.system,
        template=options.template, compute=ComputeConfig(dtype=options.compute), weights=options.weights,
        console=console,
    )  # fmt: skip


def _chat(options: argparse.Namespace, console: Console) -> int:
    from launch.chat import run_chat
    from model.config import ComputeConfig

    return run_chat(
        options.checkpoint, _read_answering(options), system=options.system, template=options.template,
        compute=ComputeConfig(dtype=options.compute), weights=options.weights, console=console,
    )  # fmt: skip


def _read_answering(options: argparse.Namespace) -> "AnswerConfig":
    import msgspec

    from launch.answering import AnswerConfig
    from model.sampling import SamplingConfig

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = msgspec.convert({name: getattr(options, name) for name in names}, SamplingConfig)
    return AnswerConfig(options.max_new_tokens, (), tuple(options.stop), sampling, options.seed)


def _import(options: argparse.Namespace, console: Console) -> int:
    from launch.interchange import run_import

    return run_import(
        options.folder, options.out, dtype=options.dtype, template=options.template,
        vocab_multiple=options.vocab_multiple, console=console,
    )  # fmt: skip


def _export(options: argparse.Namespace, console: Console) -> int:
    from launch.interchange import run_export

    return run_export(
        options.checkpoint, options.out, dtype=options.dtype, max_shard_size=options.max_shard_size,
        weights=options.weights, console=console,
    )  # fmt: skip


def _report(options: argparse.Namespace, console: Console) -> int:
    from pathlib import Path

    from eval.report import write_report

    path = write_report(Path(options.run_dir))
    console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    from launch.compare import run_compare

    return run_compare(options.run_a, options.run_b, json_file=options.json, console=console)


def _env(_options: argparse.Namespace, console: Console) -> int:
    from launch.environment import describe_environment

    console.print(describe_environment(), highlight=False, markup=False, soft_wrap=True)
    return 0


VERBS = {
    "demo": _demo,
    "train": _train,
    "prepare": _prepare,
    "plan": _plan,
    "eval": _eval,
    "preview": _preview,
    "data": _data,
    "generate": _generate,
    "chat": _chat,
    "import": _import,
    "export": _export,
    "report": _report,
    "compare": _compare,
    "launch": _launch,
    "env": _env,
}

if __name__ == "__main__":
    sys.exit(main())
