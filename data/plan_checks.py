"""What is refused before a plan is made or used: mixtures that would silently lose a source or a language."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.cells import Examples
from data.config import DataConfig
from data.mixture import Cell, closest_names
from data.mixture_config import MixtureConfig
from data.schema import DataError
from data.stages import Stage, pinched_languages


def check_sources(dataset: Examples, config: DataConfig) -> None:
    """Raises DataError for sources that the dataset does not have, or that lost every row, or a language that did."""
    named = [source.name for source in config.sources]
    unknown = sorted(set(dataset.facts.sources[1:]) - set(named))
    if unknown:
        raise DataError(f"the dataset has sources {unknown} but data.sources names {named}; prepare it again")
    for name in named:
        if name in dataset.facts.sources:
            continue
        dropped = [item for item in dataset.facts.dropped if item.source == name]
        if not dropped:
            raise DataError(f"source {name!r} gave no example; check its path, `where`, bad rows and data.cleaning")
        shortest = min(item.shortest for item in dropped)
        raise DataError(
            f"all {sum(item.count for item in dropped)} rows of source {name!r} were dropped: the "
            f"shortest fills {shortest} positions and data.packing.row_length is "
            f"{config.packing.row_length}; set it to {shortest} or more, or remove the source"
        )
    _check_lost_languages(dataset, config)


def check_extent(config: MixtureConfig, *, steps: int | None, epochs: float | None) -> None:
    """Raises DataError unless exactly one of the two is given, and epochs only of a mixture that has them."""
    if (steps is None) == (epochs is None):
        raise DataError(
            f"a run is given in steps or in epochs: got steps={steps} and epochs={epochs}; give one of the two"
        )
    if steps is not None and steps < 1:
        raise DataError(f"a plan of {steps} steps; use 1 or more")
    if epochs is None:
        return
    if not epochs > 0:
        raise DataError(f"a plan of {epochs} epochs; use a number above 0")
    if config.pinch or config.stages or config.exhausted != "repeat":
        raise DataError(
            "epochs are passes over everything, so the run ends by itself: give train.steps instead, or remove "
            "data.mixture.pinch, stages and exhausted"
        )


def check_proportional(cells: Sequence[Cell], stage: Stage) -> None:
    """Raises DataError where a mixture would see some examples more often than others; weights of 0 are fine."""
    parts_C = stage.parts_of(np.ones(len(cells), bool))
    rate_C = np.array([part / cell.examples for part, cell in zip(parts_C.tolist(), cells, strict=True)])
    drawn = np.flatnonzero(parts_C)
    most, least = drawn[np.argmax(rate_C[drawn])], drawn[np.argmin(rate_C[drawn])]
    # Parts are rounded to whole 2**-32.
    if rate_C[most] > rate_C[least] * (1 + 1e-6) + 1:
        raise DataError(
            f"an epoch sees every example once, but this mixture sees those of {cells[most].language!r} in source "
            f"{cells[most].source!r} {rate_C[most] / max(rate_C[least], 1e-12):.3g} times as often as those of "
            f"{cells[least].language!r} in {cells[least].source!r}; give train.steps, or remove what weighs them"
        )


def check_max_epochs(cells: Sequence[Cell], config: MixtureConfig) -> None:
    """Raises DataError for limits on sources that are not there."""
    present = sorted({cell.source for cell in cells})
    for name in config.max_epochs if isinstance(config.max_epochs, dict) else ():
        if name not in present:
            raise DataError(
                f"data.mixture.max_epochs names {name!r}, but no example has this source "
                f"({closest_names(name, present)}); use a source of the data or remove the entry"
            )


def check_starved(rows: Sequence[dict[str, Any]], stages: Sequence[Stage], config: MixtureConfig, steps: int) -> None:
    """Raises DataError for a language or source of positive weight that no planned row holds; says what would help."""
    some_C = np.any([stage.mixed.shares_C > 0 for stage in stages], axis=0)
    rate_C = np.mean([stage.parts_of(np.ones(len(rows), bool)) for stage in stages], axis=0)
    drawn = sum(row["planned_examples"] for row in rows)
    pinched = pinched_languages(config)
    for field in ("language", "source"):
        wanted, planned = {}, {}
        for row, some, rate in zip(rows, some_C.tolist(), rate_C.tolist(), strict=True):
            name = row[field]
            wanted[name] = wanted.get(name, 0.0) + (rate if some or row["language"] in pinched else 0.0)
            planned[name] = planned.get(name, 0) + row["planned_examples"]
        starved = sorted(name for name, part in wanted.items() if part > 0 and planned[name] == 0)
        if starved:
            rarest = min(wanted[name] for name in starved) / max(sum(wanted.values()), 1e-12)
            enough = int(np.ceil(2 * steps / max(drawn * rarest, 1e-12)))
            _refuse_starved(starved, len(wanted), field, steps=steps, enough=max(enough, 2 * steps))


def _refuse_starved(starved: Sequence[str], of: int, field: str, *, steps: int, enough: int) -> None:
    shown = f"{', '.join(starved[:12])}{' ...' if len(starved) > 12 else ''}"
    weights = "data.mixture.language_weights" if field == "language" else "data.mixture.sources.weights"
    raise DataError(
        f"{len(starved)} of {of} {field}s would get no example in {steps} steps: {shown}. Train longer (about "
        f"{enough} steps), raise data.mixture.temperature or data.mixture.{field}s.floor, lower "
        f"data.packing.block_examples, or set {weights} to 0 for {field}s to leave out on purpose"
    )


def _check_lost_languages(dataset: Examples, config: DataConfig) -> None:
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
