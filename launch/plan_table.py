"""The plan in the terminal: what will be trained on, in which languages, and how."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.languages import own_name, script_of
from data.printable import isolate
from model.attention_choice import choose_attention, describe_attention
from model.parallel import describe_axes, ways
from model.transformer import abstract, count_parameters
from train.chunked_loss import chunk_positions
from train.job import TrainJob
from train.paths import split_frozen
from train.step import StepSpec

MOST_ROWS = 48
# Languages or names shown on one line.
MOST_NAMED = 8
# Of a terminal, for the name of a language.
LEAST_NAME_COLUMNS, MOST_NAME_COLUMNS = 8, 20


class Share(NamedTuple):
    """Sums over the cells of one language or source."""

    examples: int
    tokens: int
    target_tokens: int
    wanted: float
    realised: float
    planned_examples: int

    @property
    def epochs(self) -> float:
        """How often each example is seen on average."""
        return self.planned_examples / self.examples


def share_by(cells: Sequence[dict[str, Any]], field: str) -> dict[str, Share]:
    """Sums of the plan's cells by `language` or `source`."""
    keys = {cell[field] for cell in cells}
    return {
        key: Share(
            examples=sum(c["examples"] for c in cells if c[field] == key),
            tokens=sum(c["tokens"] for c in cells if c[field] == key),
            target_tokens=sum(c["target_tokens"] for c in cells if c[field] == key),
            wanted=sum(c["wanted_share"] for c in cells if c[field] == key),
            realised=sum(c["realised_share"] for c in cells if c[field] == key),
            planned_examples=sum(c["planned_examples"] for c in cells if c[field] == key),
        )
        for key in sorted(keys)
    }


def print_plan(summary: dict[str, Any], job: TrainJob, mesh: jax.sharding.Mesh, console: Console) -> None:
    """Prints sources, languages and the resolved choices of the run."""
    print_mixture(summary, console)
    platform, length = mesh.devices.flat[0].platform, summary["row_length"]
    kernel = choose_attention(job.spec.model, job.spec.compute, platform=platform, row_length=length)
    mean_k = sum(job.most_trained_S) / len(job.most_trained_S)
    console.print(
        f"mesh {describe_axes(mesh.shape)} on {mesh.devices.size} {platform} device(s); "
        f"compute {job.spec.compute.dtype}, parameters float32; attention: {describe_attention(kernel)}; "
        f"loss: {describe_head(job.spec, mesh)}, logits at trained positions only (on average {mean_k:.0f} of "
        f"{length} a row); "
        f"remat {job.spec.compute.remat}; microbatches {job.spec.microbatches}",
        highlight=False,
    )
    console.print(describe_optimizer(job), highlight=False)


def describe_optimizer(job: TrainJob) -> str:
    """The optimizer with its options, the schedule, what is frozen, and what else is done to parameters or inputs."""
    optim, spec = job.optim, job.spec
    options = ", ".join(f"{name} {value}" for name, value in optim.options.items())
    decayed = "matrices" if optim.weight_decay_params is None else " ".join(optim.weight_decay_params)
    decay = f", weight decay {optim.weight_decay:g} on {decayed}" if optim.weight_decay else ""
    warmup = f" after {optim.warmup_steps:,} steps of warm-up" if optim.warmup_steps else ""
    params = abstract(spec.model, spec.axes)
    total, trained = count_parameters(params), count_parameters(split_frozen(params, spec.freeze)[0])
    frozen = f"{1 - trained / total:.1%} of {total:,} parameters frozen" if spec.freeze else f"{total:,} parameters"
    average = f"; average of parameters with decay {spec.ema_decay:g}" if spec.ema_decay is not None else ""
    noise = f"; NEFTune noise, alpha {spec.neftune_alpha:g}" if spec.neftune_alpha is not None else ""
    noise += f"; dropout {spec.dropout:g}" if spec.dropout else ""
    return (
        f"optimizer: {optim.name} ({options}){decay}; learning rate {optim.learning_rate:g}, {optim.lr_scheduler_type}"
        f"{warmup}; {frozen}{average}{noise}"
    )


def describe_head(spec: StepSpec, mesh: jax.sharding.Mesh) -> str:
    """The loss head in use, and what is minimised beside the cross-entropy."""
    beside = {"z-loss": spec.loss.z_loss_weight, "label smoothing": spec.loss.label_smoothing}
    added = "".join(f", {name} {weight:g}" for name, weight in beside.items() if weight)
    if spec.loss.head == "full":
        return f"full head{added}"
    vocabulary = spec.model.padded_vocab // ways(spec.axes.vocab, mesh)
    most = chunk_positions(spec.loss, vocabulary, mesh.devices.flat[0].device_kind)
    return f"chunked head, at most {most:,} positions a device at a time{added}"


def print_mixture(summary: dict[str, Any], console: Console) -> None:
    """Prints what will be seen: sources, languages, stages, what was left out."""
    unit = summary["unit"].replace("_", " ")
    _print_whole(_source_table(share_by(summary["cells"], "source"), unit), console)
    languages = share_by(summary["cells"], "language")
    shown = sorted(languages, key=lambda tag: -languages[tag].planned_examples)
    _print_whole(_language_table({tag: languages[tag] for tag in shown[:MOST_ROWS]}, unit), console)
    if len(shown) > MOST_ROWS:
        console.print(f"... and {len(shown) - MOST_ROWS} languages with smaller shares, all in plan/plan.json")
    scripts = {script_of(tag) for tag in shown}
    examples = sum(share.examples for share in languages.values())
    tokens = sum(share.tokens for share in languages.values())
    console.print(
        f"[bold]{len(shown)} languages[/], {len(scripts)} scripts, {examples:,} examples, "
        f"{tokens:,} tokens; {summary['rows']:,} rows of {summary['row_length']} planned, "
        f"{summary['padding']:.1%} padding; overlong dropped: {_counts(summary['dropped'])}, "
        f"cut: {_counts(summary['cut'])}; bad rows skipped: {_counts(summary['bad_rows'])}; "
        f"cleaned out: {_counts(summary['cleaned'])}",
        highlight=False,
    )
    if len(summary["stages"]) > 1:
        console.print(_stage_table(summary["stages"], unit))
    for notice in list_notices(summary):
        console.print(Text(notice, "yellow"), soft_wrap=True)


def list_notices(summary: dict[str, Any]) -> list[str]:
    """What a user should know of a plan besides its tables: pinches, sources used up, an early end, empty rows."""
    notices = []
    if summary["pinch"]:
        notices.append(f"pinch, exact number of examples in the run: {_counts(summary['pinch'])}")
    if summary["steps_asked"] not in (None, summary["steps"]):
        notices.append(
            f"the plan ends after {summary['steps']:,} of {summary['steps_asked']:,} steps: a source is used up, and "
            "data.mixture.exhausted=stop"
        )
    if summary["used_up"]:
        gone = [f"{item['language']} in {item['source']} at step {item['last_step']:,}" for item in summary["used_up"]]
        more = f" and {len(gone) - MOST_NAMED} more" if len(gone) > MOST_NAMED else ""
        notices.append(f"used up ({summary['exhausted']}): {', '.join(gone[:MOST_NAMED])}{more}")
    if summary["empty_rows"]:
        notices.append(f"{summary['empty_rows']:,} rows without examples fill the last batch")
    return notices + summary["unfilled"]


def _stage_table(stages: Sequence[dict[str, Any]], unit: str) -> Table:
    """One line a stage, and what is seen in it: the largest languages, as wanted and as the rows really have them."""
    table = _new_table("stage", "steps")
    for column in ("rows", "examples", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("seen")
    table.caption = f"seen: language, share wanted, share the rows really have, in {unit}"
    table.caption_justify = "left"
    for number, stage in enumerate(stages, start=1):
        last = stage["first_step"] + stage["steps"] - 1
        table.add_row(
            str(number), f"{stage['first_step']:,}-{last:,}", f"{stage['rows']:,}", f"{stage['examples']:,}",
            f"{stage['tokens']:,}", _shares_seen(stage["cells"]),
        )  # fmt: skip
    return table


def _shares_seen(cells: Sequence[dict[str, Any]]) -> str:
    sums: dict[str, tuple[float, float]] = {}
    for cell in cells:
        wanted, realised = sums.get(cell["language"], (0.0, 0.0))
        sums[cell["language"]] = (wanted + cell["wanted_share"], realised + cell["realised_share"])
    most = sorted(sums, key=lambda tag: (-sums[tag][0], tag))
    shown = ", ".join(f"{tag} {sums[tag][0]:.1%} {sums[tag][1]:.1%}" for tag in most[:MOST_NAMED])
    return f"{shown}, {len(most) - MOST_NAMED} more" if len(most) > MOST_NAMED else shown


def _source_table(shares: dict[str, Share], unit: str) -> Table:
    table = _new_table("source")
    _add_numbers(table, unit)
    for name, share in shares.items():
        table.add_row(Text(name), *_numbers(share))
    return table


def _language_table(shares: dict[str, Share], unit: str) -> Table:
    table = _new_table("tag", "language", "script")
    _add_numbers(table, unit)
    for tag, share in shares.items():
        table.add_row(tag, isolate(own_name(tag)), script_of(tag), *_numbers(share))
    return table


def _new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for column in columns:
        table.add_column(column, no_wrap=True, max_width=20)
    return table


def _print_whole(table: Table, console: Console) -> None:
    """Prints a table without cutting a number: names of languages take what room the other columns leave."""
    widths = [max(console.measure(cell).maximum for cell in (column.header, *column.cells)) for column in table.columns]
    named = [column.header == "language" for column in table.columns]
    # A space stands between columns.
    others = sum(width + 1 for width, is_name in zip(widths, named, strict=True) if not is_name)
    for column, width, is_name in zip(table.columns, widths, named, strict=True):
        if is_name:
            column.max_width = min(MOST_NAME_COLUMNS, max(LEAST_NAME_COLUMNS, console.width - others))
        else:
            column.min_width = width if column.max_width is None else min(width, column.max_width)
    # Where even that is too wide, lines go on: a number without its end is another number.
    console.print(table, crop=False)


def _add_numbers(table: Table, unit: str) -> None:
    table.caption = f"trained: tokens with loss; weight: share wanted, in {unit}; planned: share the rows really have"
    table.caption_justify = "left"
    for column in ("examples", "tokens", "trained", "weight", "planned", "epochs"):
        table.add_column(column, justify="right", no_wrap=True)


def _numbers(share: Share) -> list[str]:
    return [
        f"{share.examples:,}", f"{share.tokens:,}", f"{share.target_tokens:,}", f"{share.wanted:.2%}",
        f"{share.realised:.2%}", f"{share.epochs:.1f}",
    ]  # fmt: skip


def _counts(by_language: dict[str, int]) -> str:
    if not by_language:
        return "0"
    most = sorted(by_language.items(), key=lambda item: -item[1])
    more = f", {len(most) - MOST_NAMED} more languages" if len(most) > MOST_NAMED else ""
    shown = ", ".join(f"{tag or 'unreadable'} {n}" for tag, n in most[:MOST_NAMED])
    return f"{sum(by_language.values())} ({shown}{more})"
