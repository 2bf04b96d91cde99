"""The parts of a run: from which row to which, and with which shares."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.mixture import Cell, Mixed, closest_names, mix_cells
from data.mixture_config import MixtureConfig, StageConfig, stage_mixture
from data.quotas import draw_shares, redeal
from data.schema import DataError


class Stage(NamedTuple):
    """Rows `first_row` to `end_row` (None: as far as anyone asks) and the shares of the C cells there."""

    first_row: int
    end_row: int | None
    mixed: Mixed
    cells: Sequence[Cell]
    unit: str

    def parts_of(self, open_C: np.ndarray) -> np.ndarray:
        """Shares of the next draws when only some cells can still give; zeros when none can."""
        shares_C = redeal(self.mixed, open_C)
        return draw_shares(self.cells, shares_C, self.unit) if shares_C.any() else np.zeros(len(open_C), np.int64)


def resolve_stages(
    cells: Sequence[Cell],
    config: MixtureConfig,
    *,
    source_weights: Mapping[str, float],
    steps: int | None,
    batch_rows: int,
    row_length: int,
) -> list[Stage]:
    """The stages of a run of so many steps (None: of one whose length is not known yet), in order.

    Only the last may be without end. Raises DataError for stages that do not add up to the run, and what `mix_cells`
    raises, with the stage's number.
    """
    given = config.stages or (StageConfig(),)
    ends = _end_steps(given, steps) if config.stages else [None]
    stages, begin = [], 0
    for number, (stage, end) in enumerate(zip(given, ends, strict=True), start=1):
        last = end if end is not None else steps
        positions = None if last is None else float((last - begin) * batch_rows * row_length)
        weights = dict(source_weights) | dict(stage.source_weights or {})
        try:
            _check_sources(stage.source_weights or {}, source_weights)
            mixed = mix_cells(
                cells, stage_mixture(config, stage), source_weights=weights,
                apart=pinched_languages(config), positions=positions,
            )  # fmt: skip
        except DataError as error:
            if not config.stages:
                raise
            raise DataError(f"stage {number} of data.mixture.stages: {error}") from None
        end_row = None if end is None or number == len(given) else end * batch_rows
        stages.append(Stage(begin * batch_rows, end_row, mixed, cells, config.unit))
        begin = end if end is not None else begin
    return stages


def pinched_languages(config: MixtureConfig) -> list[str]:
    """Languages that are counted apart from the shares."""
    return [tag for pinch in config.pinch for tag in pinch.languages]


def _end_steps(given: Sequence[StageConfig], steps: int | None) -> list[int | None]:
    """The step after each stage; None for a last one that lasts to the end."""
    if steps is None:
        raise DataError(
            "data.mixture.stages divide a number of steps, but the run is given in epochs; give train.steps or no "
            "stages"
        )
    ends: list[int | None] = []
    # Shares are summed apart from steps, so that rounding to whole steps does not add up.
    fixed, shared = 0, 0.0
    for stage in given:
        fixed += stage.steps or 0
        shared += stage.share or 0.0
        lasts_to_end = stage.steps is None and stage.share is None
        ends.append(None if lasts_to_end else fixed + round(shared * steps))
    begins = [0, *(end for end in ends if end is not None)]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=False), start=1):
        if begin >= steps or (end is not None and end <= begin):
            raise DataError(
                f"stage {number} of data.mixture.stages would have no step: it begins at step {begin} of {steps}; "
                "train longer, make the stages before it shorter, or remove it"
            )
    if ends[-1] is not None and ends[-1] != steps:
        raise DataError(
            f"data.mixture.stages last {ends[-1]} steps, but the run has {steps}; leave `steps` and `share` out of the "
            "last stage to make it last to the end"
        )
    return ends


def _check_sources(named: Iterable[str], sources: Mapping[str, float]) -> None:
    for name in named:
        if name not in sources:
            raise DataError(
                f"source_weights names {name!r}, but data.sources has none of this name "
                f"({closest_names(name, sorted(sources))}); use the name of a source"
            )
