"""Which examples share which row, for a whole run: a pure function of dataset, recipe and seed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from data.cells import Examples, amounts, tabulate
from data.config import DataConfig
from data.mixture import Cell
from data.mixture_config import MixtureConfig
from data.packing import padding_share
from data.pinch import NO_PINCH, Pinch, schedule_pinch
from data.plan_checks import check_extent, check_max_epochs, check_proportional, check_sources, check_starved
from data.plan_summary import Content, summarise_content, summarise_facts
from data.quotas import NO_LIMIT
from data.schema import DataError
from data.stages import Stage, resolve_stages
from data.stream import Block, Supply, stream_rows

# Part of every plan's hash: raise it when the same inputs come to mean other rows.
FORMAT = 2


class Plan(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """R rows; row r holds examples `row_examples[row_offsets[r]:row_offsets[r + 1]]`, in that order, or none."""

    row_offsets: np.ndarray
    """int64, R + 1 of them."""
    row_examples: np.ndarray
    """int32 indices into the dataset."""
    row_length: int
    hash: str
    """sha256 of all that decides the stream of rows. Steps and batch size only decide how far it goes, unless stages, a
    pinch or a UniMax budget are given in terms of them."""
    summary: dict[str, Any]
    """What `plan.json` holds: the mixture as wanted and as the rows really have it."""
    directory: Path | None = None

    @property
    def rows(self) -> int:
        """How many rows are planned."""
        return len(self.row_offsets) - 1

    def __reduce__(self):
        # As with datasets: a loader process gets the path.
        if self.directory is not None:
            return read_plan, (self.directory,)
        return _restore, (msgspec.structs.asdict(self),)


class _Inputs(NamedTuple):
    """All that decides the rows of a run, resolved."""

    cells: list[Cell]
    cell_N: np.ndarray
    stages: list[Stage]
    limit_C: np.ndarray | None
    pinch: Pinch


def build_plan(
    dataset: Examples,
    config: DataConfig,
    *,
    steps: int | None,
    batch_rows: int,
    seed: int,
    epochs: float | int | None = None,
) -> Plan:
    """The first `steps * batch_rows` rows of the stream that dataset, mixture, packing and seed define.

    Examples are drawn block by block in the mixture's shares, each cell in a fresh order every epoch, packed
    within their block, and the block's rows shuffled. A plan for more steps starts with the same rows, unless the
    mixture speaks of the run's length (a stage's `share`, a pinch, UniMax without a budget).

    With `epochs` instead of `steps` the rows hold every example exactly that many times (rounded, for a part of an
    epoch), and empty rows fill the last batch. Where a source is used up under `exhausted: stop`, the plan has fewer
    steps than were asked for; `summary["steps"]` says how many.

    Raises DataError for impossible weights, a source none of whose rows is left, a language or source that would
    not get a single example, and sources that are used up too early.
    """
    check_extent(config.mixture, steps=steps, epochs=epochs)
    check_sources(dataset, config)
    inputs = _resolve(dataset, config, steps=steps, batch_rows=batch_rows, seed=seed, epochs=epochs)
    row_offsets, row_examples = _lay_rows(dataset, config, inputs, steps=steps, batch_rows=batch_rows, seed=seed)
    content = Content(inputs.cells, inputs.cell_N, amounts(dataset), row_offsets, row_examples)
    # A run in epochs uses up everything.
    limit_C = inputs.limit_C if epochs is None else None
    rows, row_length = len(row_offsets) - 1, config.packing.row_length
    summary = {
        "hash": _hash_inputs(dataset, config, seed, inputs),
        "rows": rows,
        "empty_rows": int((np.diff(row_offsets) == 0).sum()),
        "row_length": row_length,
        "batch_rows": batch_rows,
        "steps": rows // batch_rows,
        "steps_asked": steps,
        "epochs_asked": epochs,
        "seed": seed,
        "padding": padding_share(int(np.asarray(dataset.lengths)[row_examples].sum()), rows, row_length),
        **summarise_content(
            content, config.mixture, inputs.stages, pinch=inputs.pinch, limit_C=limit_C, batch_rows=batch_rows
        ),
        "overlong": config.packing.overlong,
        **summarise_facts(dataset),
    }
    check_starved(summary["cells"], inputs.stages, config.mixture, rows // batch_rows)
    return Plan(
        row_offsets=row_offsets, row_examples=row_examples, row_length=row_length, hash=summary["hash"], summary=summary
    )


def write_plan(plan: Plan, directory: Path) -> None:
    """Writes the rows, then `plan.json`; a folder without the latter is incomplete."""
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "row_offsets.npy", plan.row_offsets, allow_pickle=False)
    np.save(directory / "row_examples.npy", plan.row_examples, allow_pickle=False)
    text = json.dumps(plan.summary, ensure_ascii=False, indent=1)
    (directory / "plan.json").write_text(text + "\n", encoding="utf-8")


def read_plan(directory: Path) -> Plan:
    """The plan written to a folder, its rows mapped read-only. Raises DataError if incomplete."""
    try:
        summary = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
        row_offsets = np.load(directory / "row_offsets.npy", mmap_mode="r")
        row_examples = np.load(directory / "row_examples.npy", mmap_mode="r")
        whole = len(row_offsets) - 1 == summary["rows"] and int(row_offsets[-1]) == len(row_examples)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{directory} is no complete plan ({error!r}); delete it and prepare again") from error
    if not whole:
        raise DataError(f"{directory} is damaged: plan.json and the rows disagree; delete it and prepare again")
    return Plan(
        row_offsets=row_offsets,
        row_examples=row_examples,
        row_length=summary["row_length"],
        hash=summary["hash"],
        summary=summary,
        directory=directory,
    )


def _resolve(
    dataset: Examples, config: DataConfig, *, steps: int | None, batch_rows: int, seed: int, epochs: float | int | None
) -> _Inputs:
    mixture = config.mixture
    cells, cell_N = tabulate(dataset)
    check_max_epochs(cells, mixture)
    stages = resolve_stages(
        cells, mixture, source_weights={source.name: source.weight for source in config.sources}, steps=steps,
        batch_rows=batch_rows, row_length=config.packing.row_length,
    )  # fmt: skip
    pinch = NO_PINCH
    if mixture.pinch and steps is not None:
        rows = steps * batch_rows
        members = {
            tag: np.flatnonzero(dataset.language == place) for place, tag in enumerate(dataset.facts.languages) if tag
        }
        members = {tag: own for tag, own in members.items() if len(own)}
        pinch = schedule_pinch(mixture.pinch, members, rows=rows, seed=seed)
        # A count over the whole run needs its end.
        stages[-1] = stages[-1]._replace(end_row=rows)
    if epochs is not None:
        check_proportional(cells, stages[0])
    return _Inputs(cells, cell_N, stages, _limit_cells(cells, mixture, epochs), pinch)


def _lay_rows(
    dataset: Examples, config: DataConfig, inputs: _Inputs, *, steps: int | None, batch_rows: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and examples of whole batches of rows."""
    names = [(cell.source, cell.language) for cell in inputs.cells]
    supply = Supply(np.asarray(dataset.lengths), inputs.cell_N, names, inputs.limit_C)
    leave = steps is None or config.mixture.exhausted == "leave"
    blocks = stream_rows(supply, inputs.stages, config.packing, seed=seed, leave=leave, pinch=inputs.pinch)
    needed = None if steps is None else steps * batch_rows
    row_offsets, row_examples = _collect_rows(blocks, needed)
    if needed is None:
        return _fill_batch(row_offsets, batch_rows), row_examples
    rows = len(row_offsets) - 1
    if rows < needed:
        rows = _whole_batches(rows, row_examples, inputs, config.mixture, needed, batch_rows) * batch_rows
    return row_offsets[: rows + 1], row_examples[: row_offsets[rows]]


def _limit_cells(cells: Sequence[Cell], mixture: MixtureConfig, epochs: float | int | None) -> np.ndarray | None:
    """How many examples each cell may give in the run; None for any number."""
    if epochs is not None:
        return np.array([max(1, round(epochs * cell.examples)) for cell in cells], np.int64)
    if mixture.exhausted == "repeat":
        return None
    most = 1.0 if mixture.max_epochs is None else mixture.max_epochs
    by_source = most if isinstance(most, dict) else {cell.source: most for cell in cells}
    limits = [
        max(1, int(by_source[cell.source] * cell.examples + 1e-9)) if cell.source in by_source else NO_LIMIT
        for cell in cells
    ]
    return np.array(limits, np.int64)


def _collect_rows(blocks: Iterator[Block], needed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and examples of the first `needed` rows, or of all there are."""
    examples, counts, rows = [np.empty(0, np.int32)], [np.zeros(1, np.int64)], 0
    for block in blocks:
        examples.append(block.examples.astype(np.int32))
        counts.append(block.counts)
        rows += len(block.counts)
        if needed is not None and rows >= needed:
            break
    offsets = np.cumsum(np.concatenate(counts))[: None if needed is None else needed + 1]
    return offsets, np.concatenate(examples)[: offsets[-1]]


def _fill_batch(row_offsets: np.ndarray, batch_rows: int) -> np.ndarray:
    """The offsets with empty rows up to a whole number of batches."""
    missing = -(len(row_offsets) - 1) % batch_rows
    return np.concatenate((row_offsets, np.full(missing, row_offsets[-1])))


def _whole_batches(
    rows: int, row_examples: np.ndarray, inputs: _Inputs, mixture: MixtureConfig, needed: int, batch_rows: int
) -> int:
    """How many batches there are where a source is used up before the run is over, if the recipe lets it end there."""
    whole = rows // batch_rows
    if mixture.exhausted == "stop" and whole:
        return whole
    given_C = np.bincount(inputs.cell_N[row_examples], minlength=len(inputs.cells))
    limit_C = np.zeros(len(inputs.cells)) if inputs.limit_C is None else inputs.limit_C
    gone = [
        f"{cell.language!r} in source {cell.source!r} ({cell.examples} examples)"
        for cell, given, limit in zip(inputs.cells, given_C.tolist(), limit_C.tolist(), strict=True)
        if given >= limit
    ]
    shown = f"{', '.join(gone[:6])}{f' and {len(gone) - 6} more' if len(gone) > 6 else ''}"
    raise DataError(
        f"used up after {whole} of {needed // batch_rows} steps: {shown}; use at most {whole} steps, a higher "
        "data.mixture.max_epochs, or data.mixture.exhausted=repeat"
    )


def _hash_inputs(dataset: Examples, config: DataConfig, seed: int, inputs: _Inputs) -> str:
    weights = sorted((source.name, source.weight) for source in config.sources)
    every_C = np.ones(len(inputs.cells), bool)
    resolved = (
        [(stage.first_row, stage.parts_of(every_C).tolist()) for stage in inputs.stages],
        None if inputs.limit_C is None else inputs.limit_C.tolist(),
        # What is due in which row tells the rows of the run.
        hashlib.sha256(inputs.pinch.examples.tobytes() + inputs.pinch.due.tobytes()).hexdigest(),
    )
    decides = (FORMAT, dataset.facts.hash, weights, config.mixture, config.packing, seed, resolved)
    return hashlib.sha256(msgspec.json.encode(decides, order="sorted")).hexdigest()


def _restore(fields: dict[str, Any]) -> Plan:
    return Plan(**fields)


def trained_per_row(dataset: Examples, plan: Plan) -> np.ndarray:
    """How many positions of each planned row are trained on, R of them; 0 for a row without examples."""
    trained = np.zeros(plan.rows, np.int64)
    filled = np.flatnonzero(np.diff(plan.row_offsets))
    if len(filled):
        # Sums run from one offset to the next given: rows without examples, which have no first one, are left out.
        trained[filled] = np.add.reduceat(dataset.target_tokens[plan.row_examples], plan.row_offsets[filled])
    return trained
