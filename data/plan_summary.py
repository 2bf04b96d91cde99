"""What a plan's rows really hold, counted from the rows and not from the quotas they were made to: `plan.json`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.cells import Examples
from data.languages import script_of
from data.mixture import Cell
from data.mixture_config import MixtureConfig
from data.pinch import Pinch
from data.stages import Stage, pinched_languages


class Content(NamedTuple):
    """The planned rows, and the examples and cells that they index."""

    cells: Sequence[Cell]
    cell_N: np.ndarray
    amounts: Mapping[str, np.ndarray]
    """What each of the N examples counts, by unit."""
    row_offsets: np.ndarray
    row_examples: np.ndarray


def summarise_content(
    content: Content,
    config: MixtureConfig,
    stages: Sequence[Stage],
    *,
    pinch: Pinch,
    limit_C: np.ndarray | None,
    batch_rows: int,
) -> dict[str, Any]:
    """Cells, stages, pinch and sources used up, as `plan.json` has them."""
    rows = len(content.row_offsets) - 1
    # A plan that ends early may not reach all of its stages.
    stages = [stage for stage in stages if stage.first_row < rows]
    ends = [*(stage.first_row for stage in stages[1:]), rows]
    counted, tables, wanted_C = [], [], np.zeros(len(content.cells))
    for stage, end_row in zip(stages, ends, strict=True):
        begin, end = content.row_offsets[stage.first_row], content.row_offsets[end_row]
        sums = _count(content, content.row_examples[begin:end])
        counted.append(sums)
        due = pinch.examples[(pinch.due >= stage.first_row) & (pinch.due < end_row)]
        shares_C = _with_pinch(stage.mixed.shares_C, sums[config.unit], _count(content, due)[config.unit])
        wanted_C += shares_C * sums[config.unit].sum()
        tables.append(_describe_stage(content, sums, shares_C, config.unit, (stage.first_row, end_row), batch_rows))
    sums = {unit: np.sum([stage[unit] for stage in counted], axis=0) for unit in counted[0]}
    wanted_C /= max(wanted_C.sum(), 1e-300)
    return {
        "unit": config.unit,
        "first": config.first,
        "cells": [
            {
                "source": cell.source,
                "language": cell.language,
                "script": script_of(cell.language),
                "examples": cell.examples,
                "tokens": cell.tokens,
                "target_tokens": cell.target_tokens,
                "content_bytes": cell.content_bytes,
                "characters": cell.characters,
                **_describe_cell(sums, wanted_C, config.unit, index),
                "epochs": float(sums["examples"][index] / cell.examples),
            }
            for index, cell in enumerate(content.cells)
        ],
        "stages": tables,
        "pinch": _describe_pinch(content, sums["examples"], config),
        "exhausted": config.exhausted,
        "used_up": _list_used_up(content, sums["examples"], limit_C, batch_rows),
        "unfilled": [note for stage in stages for note in stage.mixed.unfilled],
    }


def summarise_facts(dataset: Examples) -> dict[str, Any]:
    """Names, what was dropped and hashes, from the dataset."""
    facts = dataset.facts
    dropped: dict[str, int] = {}
    for item in facts.dropped:
        dropped[item.language] = dropped.get(item.language, 0) + item.count
    cut: dict[str, int] = {}
    for item in facts.cut:
        cut[item.language] = cut.get(item.language, 0) + item.count
    return {
        "languages": list(facts.languages),
        "sources": list(facts.sources),
        "dropped": dropped,
        "cut": cut,
        "left_out": facts.left_out,
        "cleaned": facts.cleaned,
        "bad_rows": dict(facts.bad_rows),
        "tokenizer_hash": facts.tokenizer_hash,
        "template_hash": facts.template_hash,
    }


def _count(content: Content, examples: np.ndarray) -> dict[str, np.ndarray]:
    """Sums over these visits, by unit and cell."""
    visits_N = np.bincount(examples, minlength=len(content.cell_N))
    return {
        unit: np.bincount(content.cell_N, weights=amount_N * visits_N, minlength=len(content.cells))
        for unit, amount_N in content.amounts.items()
    }


def _with_pinch(shares_C: np.ndarray, realised_C: np.ndarray, pinched_C: np.ndarray) -> np.ndarray:
    """The shares that are left beside a pinch, which is a count and no share: what is due of it, in all there is."""
    part_C = pinched_C / max(realised_C.sum(), pinched_C.sum(), 1)
    return shares_C * (1 - part_C.sum()) + part_C


def _describe_cell(sums: dict[str, np.ndarray], wanted_C: np.ndarray, unit: str, index: int) -> dict[str, Any]:
    return {
        "wanted_share": float(wanted_C[index]),
        "realised_share": float(sums[unit][index] / max(sums[unit].sum(), 1)),
        "planned_examples": int(sums["examples"][index]),
        "planned_tokens": int(sums["tokens"][index]),
        "planned_target_tokens": int(sums["target_tokens"][index]),
    }


def _describe_stage(
    content: Content,
    sums: dict[str, np.ndarray],
    wanted_C: np.ndarray,
    unit: str,
    rows: tuple[int, int],
    batch_rows: int,
) -> dict[str, Any]:
    return {
        "first_step": rows[0] // batch_rows,
        "steps": (rows[1] - rows[0]) // batch_rows,
        "first_row": rows[0],
        "rows": rows[1] - rows[0],
        "examples": int(sums["examples"].sum()),
        "tokens": int(sums["tokens"].sum()),
        "target_tokens": int(sums["target_tokens"].sum()),
        "cells": [
            {"source": cell.source, "language": cell.language, **_describe_cell(sums, wanted_C, unit, index)}
            for index, cell in enumerate(content.cells)
            if wanted_C[index] > 0 or sums["examples"][index] > 0
        ],
    }


def _describe_pinch(content: Content, examples_C: np.ndarray, config: MixtureConfig) -> dict[str, int]:
    """Planned examples of the languages that are counted apart."""
    planned = dict.fromkeys(pinched_languages(config), 0)
    for cell, count in zip(content.cells, examples_C.tolist(), strict=True):
        if cell.language in planned:
            planned[cell.language] += int(count)
    return planned


def _list_used_up(
    content: Content, examples_C: np.ndarray, limit_C: np.ndarray | None, batch_rows: int
) -> list[dict[str, Any]]:
    """Cells of which the plan holds all that they may give, and the step of the last."""
    if limit_C is None:
        return []
    rows = np.repeat(np.arange(len(content.row_offsets) - 1), np.diff(content.row_offsets))
    last_C = np.zeros(len(content.cells), np.int64)
    np.maximum.at(last_C, content.cell_N[content.row_examples], rows)
    return [
        {
            "source": content.cells[index].source,
            "language": content.cells[index].language,
            "examples": int(examples_C[index]),
            "last_step": int(last_C[index]) // batch_rows,
        }
        for index in np.flatnonzero((examples_C > 0) & (examples_C >= limit_C)).tolist()
    ]
