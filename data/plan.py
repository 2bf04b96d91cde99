"""Which examples share which row, for a whole run: a pure function of dataset, recipe and seed."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data.config import DataConfig
from data.dataset import Dataset
from data.languages import script_of
from data.mixture import Cell, cell_shares, draw_shares
from data.packing import padding_share
from data.schema import DataError
from data.stream import stream_rows

# Part of every plan's hash: raise it when the same inputs come to mean other rows.
FORMAT = 1


class Plan(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """R rows; row r holds examples `row_examples[row_offsets[r]:row_offsets[r + 1]]`, in that order."""

    row_offsets: np.ndarray
    """int64, R + 1 of them."""
    row_examples: np.ndarray
    """int32 indices into the dataset."""
    row_length: int
    hash: str
    """sha256 of all that decides the stream of rows. Steps and batch size only decide how far it goes."""
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


def build_plan(dataset: Dataset, config: DataConfig, *, steps: int, batch_rows: int, seed: int) -> Plan:
    """The first `steps * batch_rows` rows of the stream that dataset, mixture, packing and seed define.

    Examples are drawn block by block in the mixture's shares, each cell in a fresh order every epoch, packed
    within their block, and the block's rows shuffled. A plan for more steps starts with the same rows.

    Raises DataError for impossible weights, a source none of whose rows is left, and a language that would
    not get a single example.
    """
    _check_sources(dataset, config)
    cells, cell_N = tabulate(dataset)
    source_weights = {source.name: source.weight for source in config.sources}
    shares_C = cell_shares(cells, config.mixture, source_weights=source_weights)
    parts_C = draw_shares(cells, shares_C, config.mixture.unit)
    plan_hash = _hash_inputs(dataset, config, seed)
    needed = steps * batch_rows
    members = [np.flatnonzero(cell_N == index) for index in range(len(cells))]
    names = [(cell.source, cell.language) for cell in cells]
    blocks = stream_rows(dataset.lengths, members, config.packing, names=names, parts_C=parts_C, seed=seed)
    row_offsets, row_examples = _collect_rows(blocks, needed)
    summary = {
        "hash": plan_hash,
        "rows": needed,
        "row_length": config.packing.row_length,
        "batch_rows": batch_rows,
        "steps": steps,
        "seed": seed,
        "padding": padding_share(int(dataset.lengths[row_examples].sum()), needed, config.packing.row_length),
        "unit": config.mixture.unit,
        **_summarise(dataset, cells, cell_N, shares_C, row_examples, config),
    }
    _check_starved(summary["cells"], steps=steps, parts_C=parts_C, drawn=len(row_examples))
    return Plan(
        row_offsets=row_offsets,
        row_examples=row_examples,
        row_length=config.packing.row_length,
        hash=plan_hash,
        summary=summary,
    )


def tabulate(dataset: Dataset) -> tuple[list[Cell], np.ndarray]:
    """The dataset's cells in a fixed order, and for each example the index of its cell."""
    key_N = dataset.source.astype(np.int64) * len(dataset.facts.languages) + dataset.language
    keys, cell_N = np.unique(key_N, return_inverse=True)
    counted = [np.bincount(cell_N, weights=weights) for weights in _amounts(dataset)]
    cells = []
    for index, key in enumerate(keys.tolist()):
        source, language = divmod(key, len(dataset.facts.languages))
        amounts = (int(amount[index]) for amount in counted)
        cells.append(Cell(dataset.facts.sources[source], dataset.facts.languages[language], *amounts))
    return cells, cell_N


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


def _collect_rows(blocks: Iterator[list[np.ndarray]], needed: int) -> tuple[np.ndarray, np.ndarray]:
    rows: list[np.ndarray] = []
    while len(rows) < needed:
        rows.extend(next(blocks))
    del rows[needed:]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return offsets, np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)


def _summarise(
    dataset: Dataset,
    cells: list[Cell],
    cell_N: np.ndarray,
    shares_C: np.ndarray,
    row_examples: np.ndarray,
    config: DataConfig,
) -> dict[str, Any]:
    """Counted from the final rows, not from the quotas they were made to."""
    visits_N = np.bincount(row_examples, minlength=len(dataset))
    examples_C, tokens_C, targets_C, _ = (
        np.bincount(cell_N, weights=amount * visits_N) for amount in _amounts(dataset)
    )
    by_unit = {"examples": examples_C, "tokens": tokens_C, "target_tokens": targets_C}
    realised_C = by_unit[config.mixture.unit] / max(by_unit[config.mixture.unit].sum(), 1)
    rows = [
        {
            "source": cell.source,
            "language": cell.language,
            "script": script_of(cell.language),
            "examples": cell.examples,
            "tokens": cell.tokens,
            "target_tokens": cell.target_tokens,
            "content_bytes": cell.content_bytes,
            "wanted_share": float(shares_C[index]),
            "planned_examples": int(examples_C[index]),
            "planned_tokens": int(tokens_C[index]),
            "planned_target_tokens": int(targets_C[index]),
            "realised_share": float(realised_C[index]),
            "epochs": float(examples_C[index] / cell.examples),
        }
        for index, cell in enumerate(cells)
    ]
    facts = dataset.facts
    dropped: dict[str, int] = {}
    for item in facts.dropped:
        dropped[item.language] = dropped.get(item.language, 0) + item.count
    return {
        "cells": rows,
        "languages": list(facts.languages),
        "sources": list(facts.sources),
        "dropped": dropped,
        "bad_rows": dict(facts.bad_rows),
        "tokenizer_hash": facts.tokenizer_hash,
        "template_hash": facts.template_hash,
    }


def _amounts(dataset: Dataset) -> tuple[np.ndarray, ...]:
    """Examples, tokens, target tokens and bytes of each example, in the order `Cell` counts them."""
    return np.ones(len(dataset)), dataset.lengths, dataset.target_tokens, np.asarray(dataset.content_bytes)


def _check_sources(dataset: Dataset, config: DataConfig) -> None:
    named = [source.name for source in config.sources]
    unknown = sorted(set(dataset.facts.sources[1:]) - set(named))
    if unknown:
        raise DataError(f"the dataset has sources {unknown} but data.sources names {named}; prepare it again")
    for name in named:
        if name in dataset.facts.sources:
            continue
        dropped = [item for item in dataset.facts.dropped if item.source == name]
        if not dropped:
            raise DataError(f"source {name!r} gave no example; check its path, `where` and bad rows")
        shortest = min(item.shortest for item in dropped)
        raise DataError(
            f"all {sum(item.count for item in dropped)} rows of source {name!r} were dropped: the "
            f"shortest fills {shortest} positions and data.packing.row_length is "
            f"{config.packing.row_length}; set it to {shortest} or more, or remove the source"
        )
    _check_lost_languages(dataset, config)


def _check_lost_languages(dataset: Dataset, config: DataConfig) -> None:
    """A language that is there in the files but too long for every row must not vanish from the table."""
    lost: dict[str, int] = {}
    for item in dataset.facts.dropped:
        if item.language not in dataset.facts.languages:
            lost[item.language] = min(item.shortest, lost.get(item.language, item.shortest))
    bad = sorted(tag for tag in dataset.facts.bad_rows if tag and tag not in dataset.facts.languages)
    if bad:
        raise DataError(
            f"every row of {', '.join(bad)} was skipped as bad, so these languages would get nothing; the reasons come "
            "with data.bad_rows=error. Mend the rows, or leave those languages out with `where`"
        )
    if lost:
        raise DataError(
            f"every example of {', '.join(sorted(lost))} is longer than data.packing.row_length="
            f"{config.packing.row_length} and would be dropped; set it to {max(lost.values())} or more, "
            "or leave those languages out with `where`"
        )


def _check_starved(rows: list[dict[str, Any]], *, steps: int, parts_C: np.ndarray, drawn: int) -> None:
    wanted, planned = {}, {}
    for row, part in zip(rows, parts_C.tolist(), strict=True):
        wanted[row["language"]] = wanted.get(row["language"], 0) + part
        planned[row["language"]] = planned.get(row["language"], 0) + row["planned_examples"]
    starved = [language for language, part in wanted.items() if part > 0 and planned[language] == 0]
    if not starved:
        return
    rarest = min(wanted[language] for language in starved) / sum(wanted.values())
    enough = int(np.ceil(2 * steps / max(drawn * rarest, 1e-12)))
    raise DataError(
        f"{len(starved)} of {len(wanted)} languages would get no example in {steps} steps: "
        f"{', '.join(sorted(starved)[:12])}{' ...' if len(starved) > 12 else ''}. Train longer (about "
        f"{max(enough, 2 * steps)} steps), raise data.mixture.temperature, lower "
        "data.packing.block_examples, or set data.mixture.language_weights to 0 for languages to leave out "
        "on purpose"
    )


def _hash_inputs(dataset: Dataset, config: DataConfig, seed: int) -> str:
    weights = sorted((source.name, source.weight) for source in config.sources)
    decides = (FORMAT, dataset.facts.hash, weights, config.mixture, config.packing, seed)
    return hashlib.sha256(msgspec.json.encode(decides, order="sorted")).hexdigest()


def _restore(fields: dict[str, Any]) -> Plan:
    return Plan(**fields)


def trained_per_row(dataset: Dataset, plan: Plan) -> np.ndarray:
    """How many positions of each planned row are trained on, R of them."""
    trained_N = dataset.target_tokens
    return np.add.reduceat(trained_N[plan.row_examples], plan.row_offsets[:-1])
