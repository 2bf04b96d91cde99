"""The options of the command line, verb by verb."""

import argparse
from collections.abc import Sequence

MODEL = "a run directory (newest step), RUN/checkpoints/STEP, or a Hugging Face folder"
DTYPES = ("float32", "bfloat16", "float16")
EXAMPLES = {
    "demo": "polytune demo",
    "train": "polytune train demo run.dir=runs/mine train.steps=200",
    "prepare": "polytune prepare my_recipe.yaml data.store=prepared",
    "plan": "polytune plan dense_8b_v5e_256 --topology v5e:16x16",
    "eval": "polytune eval runs/demo --tasks facts,rewrite",
    "preview": "polytune preview demo --rows 2 --language sw --html preview.html",
    "data": "polytune data stats demo --json statistics.json",
    "generate": "polytune generate runs/demo --prompt 'Which day comes after Monday?'",
    "chat": "polytune chat runs/demo",
    "import": "polytune import HF_DIR runs/imported --dtype bfloat16",
    "export": "polytune export runs/demo exported/demo",
    "report": "polytune report runs/demo",
    "compare": "polytune compare runs/demo runs/mine --json comparison.json",
    "launch": "polytune launch local --processes 2 --devices-per-process 2 demo run.dir=runs/two train.steps=200",
    "env": "polytune env",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; overrides may stand before, between and after them.

    argparse alone gives up on `preview demo --rows 2 train.steps=3`: it takes the overrides to have ended at --rows.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; each verb's help ends in an example that works."""
    parser = argparse.ArgumentParser(
        prog="polytune", description="Instruction-tune language models in many languages, in JAX."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(verb: str, summary: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            verb, help=summary, description=summary, epilog=f"example: {EXAMPLES[verb]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    demo = add("demo", "Train, kill, resume, evaluate and report a small model on this machine.")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the demo recipe to change")
    train = add("train", "Train a recipe; the same command again goes on from the newest checkpoint.")
    _add_recipe(train)
    _add_cluster(train)
    preparing = add("prepare", "Tokenise a recipe's data and plan its rows, so that training only reads.")
    _add_recipe(preparing)
    _add_plan(add("plan", "Compile a recipe's step for machines that are not here: memory, FLOPs, traffic, time."))
    _add_eval(add("eval", "Evaluate a checkpoint: results.json, samples and a table by language."))
    preview = add("preview", "Show what a recipe feeds the model: roles and trained spans in colour.")
    _add_recipe(preview)
    preview.add_argument("--rows", type=int, default=3, help="packed rows to show")
    preview.add_argument("--language", metavar="TAG", help="only rows that hold this language")
    preview.add_argument("--html", metavar="FILE", help="write the rows as one HTML page, token by token")
    _add_data_stats(add("data", "Know the data: languages, sizes and what tokenizers make of them."))
    generate = add("generate", "Answer prompts with a model.")
    generate.add_argument("--prompt", required=True, action="append", help="may be given several times")
    _add_answering(generate, max_new_tokens=64)
    chat = add("chat", "Talk with a model, its answers shown as they come.")
    _add_answering(chat, max_new_tokens=512)
    importing = add("import", "Turn a Hugging Face folder into a run directory with one checkpoint.")
    importing.add_argument("folder", help="config.json, safetensors, tokenizer")
    importing.add_argument("out", help="the run directory to write")
    importing.add_argument("--dtype", choices=DTYPES, help="of the parameters (default: the folder's own)")
    importing.add_argument("--template", help="chat template: a shipped name or a file (default: the folder's own)")
    importing.add_argument(
        "--vocab-multiple", type=int, default=1, metavar="N", help="pad the vocabulary to a multiple of N (default: 1)"
    )
    export = add("export", "Turn a checkpoint into a Hugging Face folder that transformers loads.")
    export.add_argument("checkpoint", help=MODEL)
    export.add_argument("out", help="the folder to write")
    export.add_argument("--dtype", choices=DTYPES, help="of the tensors (default: as they came, else float32)")
    _add_weights(export)
    export.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a file, e.g. 500MB (default: 5GB)")
    report = add("report", "Write RUN/report.html: one file, no network.")
    report.add_argument("run_dir")
    comparing = add("compare", "List what differs between two runs, and their numbers side by side.")
    comparing.add_argument("run_a", help="a run directory")
    comparing.add_argument("run_b", help="another")
    comparing.add_argument("--json", metavar="FILE", help="write everything, exactly")
    _add_launch(add("launch", "Train a recipe in several processes."))
    add("env", "Describe machine and versions, to paste into a bug report.")
    return parser


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help=MODEL)
    parser.add_argument("--template", help="chat template: a shipped name or a file (default: the model's own)")
    _add_weights(parser)
    parser.add_argument("--tasks", required=True, help="names of tasks or task files, with commas")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: RUN/eval/STEP)")
    parser.add_argument("--data-root", default=".", help="folder that the tasks' files are relative to")
    parser.add_argument("--limit", type=int, help="at most this many documents per language and task")
    parser.add_argument("--max-length", type=int, help="longest input in tokens (default: the run's row length)")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="positions computed at once")
    parser.add_argument("--fsdp", type=int, default=-1, help="devices on the fsdp axis of its own mesh (default: all)")
    parser.add_argument("--expert", type=int, default=1, help="devices on the expert axis")
    parser.add_argument("--tensor", type=int, default=1, help="devices on the tensor axis")
    _add_compute(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster", choices=("auto", "none"), default="auto",
        help="auto: join the processes told of by flags, JAX_* variables, TPU metadata, Slurm or MPI; none: alone",
    )  # fmt: skip
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens for the others")
    parser.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    parser.add_argument("--process-index", type=int, metavar="I", help="which of them this is, from 0")


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("where", choices=("local",), help="local: all on this machine, on simulated CPU devices")
    _add_recipe(parser)
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many processes")
    parser.add_argument("--devices-per-process", type=int, default=1, metavar="M", help="CPU devices of each")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--topology", required=True, metavar="KIND:CHIPS", help="v5e:16x16, v6e:8x8, v5p:8x8x8, gpu:h200:8, cpu:8"
    )
    parser.add_argument(
        "--trained-share", type=float, default=1.0, metavar="SHARE",
        help="of a row's positions, for how many logits are made (default: 1, the worst case)",
    )  # fmt: skip
    parser.add_argument(
        "--search", action="store_true", help="find the least remat, then the fewest microbatches, that fit"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything, exactly")


def _add_data_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("stats",), help="rows, characters, bytes, words and tokens by language")
    _add_recipe(parser)
    parser.add_argument(
        "--tokenizer", action="append", default=[], metavar="PATH",
        help="a SentencePiece .model, a Hugging Face folder or tokenizer.json; repeatable (default: the recipe's own)",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write everything, by source and language, exactly")
    parser.add_argument("--limit-rows", type=int, metavar="N", help="at most N rows of each source of files, spread")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that count (default: this one)")


def _add_answering(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    parser.add_argument("checkpoint", help=MODEL)
    _add_weights(parser)
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument("--template", help="chat template: a shipped name or a file (default: the model's own)")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens only")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens that together reach p")
    parser.add_argument("--min-p", type=float, default=0.0, help="draw from tokens at least p times the likeliest's")
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    _add_compute(parser)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", choices=("params", "ema"), default="params",
        help="of a run: its last parameters, or their average (train.ema_decay)",
    )  # fmt: skip


def _add_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compute", choices=("float32", "bfloat16"), default="float32", help="of activations and matrix products"
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe's name or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change, e.g. train.steps=100")


# Imports live in the verbs: `polytune --help` answers at once, and `env` works where half of the packages do not.
