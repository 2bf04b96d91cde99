"""How much of each language and source: amounts to shares, shares to whole numbers of examples."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.mixture_config import MixtureConfig
from data.schema import DataError

# Draw shares are integers of this many bits, so quotas are exact integer arithmetic on every platform.
SHARE_BITS = 32
MAX_DRAWS = 1 << 31


class Cell(NamedTuple):
    """All examples of one language in one source: the smallest thing the mixture can weigh."""

    source: str
    language: str
    examples: int
    tokens: int
    """Positions the examples fill, one epoch."""
    target_tokens: int
    """Positions whose target is trained on, one epoch."""
    content_bytes: int = 0


def cell_shares(
    cells: Sequence[Cell], config: MixtureConfig, *, source_weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """Wanted share of each cell in `config.unit`, float64, summing to one.

    A language's amount is the sum over its cells of source weight x amount; its share is proportional to
    amount ** (1 / temperature) x its language weight, and is split over its cells like the weighted amounts.
    Source: arXiv:1910.10683 section 3.5.2; mT5's alpha is 1 / temperature.

    Raises DataError for no cells, an unknown language in `language_weights`, a negative or non-finite weight,
    a cell that trains on nothing, or weights that leave nothing.
    """
    if not cells:
        raise DataError("the mixture has no examples; check data.sources and their `where`, `limit` and paths")
    by_source = {cell.source: 1.0 for cell in cells} | dict(source_weights or {})
    _check_weights("weight of source", by_source)
    _check_weights("data.mixture.language_weights of", config.language_weights)
    _check_known(config.language_weights, sorted({cell.language for cell in cells}))
    languages, language_C = np.unique([cell.language for cell in cells], return_inverse=True)
    weighted_C = np.array([by_source[cell.source] * _amount(cell, config.unit) for cell in cells])
    amount_R = np.bincount(language_C, weights=weighted_C)
    explicit_R = np.array([config.language_weights.get(str(tag), 1.0) for tag in languages])
    if not (amount_R * explicit_R).sum() > 0:
        raise DataError(
            "the mixture's weights sum to zero, so nothing would be trained; "
            "give at least one source and one language of data.mixture.language_weights a weight above 0"
        )
    # Divided by the largest first: a power of a ratio neither overflows nor loses the tail.
    share_R = (amount_R / amount_R.max()) ** (1.0 / config.temperature) * explicit_R
    share_R /= share_R.sum()
    inside_C = np.divide(
        weighted_C, amount_R[language_C], out=np.zeros_like(weighted_C), where=amount_R[language_C] > 0
    )
    return share_R[language_C] * inside_C


def draw_shares(cells: Sequence[Cell], shares_C: np.ndarray, unit: str) -> np.ndarray:
    """Share of *examples* to draw from each cell so that `unit` comes out as `shares_C`; integers of 2**-32.

    A cell with long examples needs fewer of them: draws are proportional to share / mean amount per
    example. Half the target tokens from examples of 30 and half from examples of 10 are draws of 1 : 3.
    Positive shares stay positive.
    """
    mean_C = np.array([_amount(cell, unit) / cell.examples for cell in cells])
    draws_C = shares_C / mean_C
    whole = 1 << SHARE_BITS
    parts_C = np.floor(draws_C / draws_C.sum() * whole).astype(np.int64)
    parts_C[(parts_C == 0) & (draws_C > 0)] = 1
    parts_C[np.argmax(parts_C)] += whole - int(parts_C.sum())
    return parts_C


def quotas_through(parts_C: np.ndarray, drawn_C: np.ndarray, total: int) -> np.ndarray:
    """Examples each cell has given once `total` were drawn, continuing from `drawn_C`; sums to `total`.

    The error of one block is carried into the next: at every block boundary each cell is within one example
    of its exact share of everything drawn so far, and no quota ever falls. Of the cells whose share is not a
    whole number, those whose next example is due first are rounded up. That order (earliest deadline first)
    is what makes both bounds hold; plain largest remainders would at times have to take examples back.
    Source: the quota method of Balinski and Young, American Mathematical Monthly 82 (1975).
    """
    if not 0 <= total < MAX_DRAWS:
        raise DataError(f"a plan of {total} examples; at most {MAX_DRAWS - 1} are supported, use fewer steps")
    exact_C = parts_C * total
    lower_C = exact_C >> SHARE_BITS
    quota_C = np.maximum(lower_C, drawn_C)
    open_C = np.flatnonzero((quota_C == lower_C) & (exact_C != lower_C << SHARE_BITS))
    due_C = (lower_C[open_C] + 1) / parts_C[open_C]
    left = total - int(quota_C.sum())
    assert 0 <= left <= len(open_C), "quotas must continue from the quotas of an earlier total"
    quota_C[open_C[np.argsort(due_C, kind="stable")[:left]]] += 1
    return quota_C


def _amount(cell: Cell, unit: str) -> int:
    amount = {"examples": cell.examples, "tokens": cell.tokens, "target_tokens": cell.target_tokens}[unit]
    if cell.target_tokens <= 0:
        raise DataError(
            f"none of the {cell.examples} examples of source {cell.source!r} in {cell.language!r} has a "
            "token to train on; give them an assistant message or remove them with `where`"
        )
    return amount


def _check_weights(what: str, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"{what} {name!r} is {weight}; needed a finite number, 0 or more")


def _check_known(language_weights: Mapping[str, float], present: Sequence[str]) -> None:
    for tag in language_weights:
        if tag not in present:
            near = difflib.get_close_matches(tag, present, n=3)
            hint = f"nearest: {', '.join(near)}" if near else f"it has {', '.join(present[:20])}"
            raise DataError(
                f"data.mixture.language_weights names {tag!r}, but no example has this language ({hint}); "
                "use a tag of the data or remove the entry"
            )
