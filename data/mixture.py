"""How much of each language and source: the recipe's rules, applied to the amounts there are, give shares."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.mixture_config import MixtureConfig, SharesConfig, language_rule
from data.schema import DataError
from data.weighting import bounded_shares, filling_budget, power_shares, taylor_softmax_shares, unimax_shares


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
    characters: int = 0


class Mixed(NamedTuple):
    """The shares of C cells, and which of them stand in for one another."""

    shares_C: np.ndarray
    """Wanted share in the mixture's unit, float64, summing to one; 0 for a cell that is left out."""
    group_C: np.ndarray
    """Which language (or source, where those come first) each cell belongs to."""
    unfilled: tuple[str, ...] = ()
    """What UniMax could not fill, in words."""


class _Names(NamedTuple):
    """G names that divide a whole, what there is of each, and where that is, for messages."""

    names: list[str]
    amounts_G: np.ndarray
    tokens_G: np.ndarray
    where: str


def mix_cells(
    cells: Sequence[Cell],
    config: MixtureConfig,
    *,
    source_weights: Mapping[str, float] | None = None,
    apart: Collection[str] = (),
    positions: float | None = None,
) -> Mixed:
    """Wanted share of each cell in `config.unit`.

    The outer names (languages, unless `config.first` says sources) divide the whole by their rule, from amounts that
    are sums over cells of source weight x amount; then the inner names divide each outer name's share by theirs.
    `apart` are languages outside the shares (a pinch), `positions` are those of the rows to fill, which a UniMax
    mixture without a budget needs. Source of the temperature: arXiv:1910.10683 section 3.5.2.

    Raises DataError for no cells, an unknown name, a negative or non-finite weight, a cell that trains on nothing,
    bounds that no shares meet, and weights that leave nothing to somebody.
    """
    if not cells:
        raise DataError("the mixture has no examples; check data.sources and their `where`, `limit` and paths")
    by_source = {cell.source: 1.0 for cell in cells} | dict(source_weights or {})
    _check_weights("weight of source", by_source)
    rules = (language_rule(config), config.sources)
    _check_rules(cells, config)
    _check_apart(language_rule(config), apart)
    weighted_C = np.array([by_source[cell.source] * amount_of(cell, config.unit) for cell in cells])
    weighted_C[[cell.language in set(apart) for cell in cells]] = 0
    for rule, names in zip(rules, _names_of(cells), strict=True):
        removed = {name for name, weight in (rule.weights | rule.shares).items() if weight == 0}
        weighted_C[[name in removed for name in names]] = 0
    if not weighted_C.sum() > 0:
        raise DataError(
            "the mixture's weights sum to zero, so nothing would be trained; "
            "give at least one source and one language of data.mixture.language_weights a weight above 0"
        )
    return _divide_twice(cells, config, weighted_C, positions)


def cell_shares(
    cells: Sequence[Cell], config: MixtureConfig, *, source_weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """The shares of `mix_cells` alone."""
    return mix_cells(cells, config, source_weights=source_weights).shares_C


def amount_of(cell: Cell, unit: str) -> int:
    """One epoch of the cell, in the unit. Raises DataError where nothing is trained on, or nothing counts."""
    if cell.target_tokens <= 0:
        raise DataError(
            f"none of the {cell.examples} examples of source {cell.source!r} in {cell.language!r} has a "
            "token to train on; give them an assistant message or remove them with `where`"
        )
    amount = {
        "examples": cell.examples, "tokens": cell.tokens, "target_tokens": cell.target_tokens,
        "bytes": cell.content_bytes, "characters": cell.characters,
    }[unit]  # fmt: skip
    if amount <= 0:
        raise DataError(
            f"the {cell.examples} examples of source {cell.source!r} in {cell.language!r} have no {unit}; "
            "use data.mixture.unit=tokens"
        )
    return amount


def closest_names(name: str, present: Sequence[str]) -> str:
    """What to say of a name that is not there."""
    near = difflib.get_close_matches(name, present, n=3)
    return f"nearest: {', '.join(near)}" if near else f"it has {', '.join(present[:20])}"


def _divide_twice(
    cells: Sequence[Cell], config: MixtureConfig, weighted_C: np.ndarray, positions: float | None
) -> Mixed:
    languages, sources = _names_of(cells)
    outer, inner = (languages, sources) if config.first == "languages" else (sources, languages)
    rules = (language_rule(config), config.sources)
    outer_rule, inner_rule = rules if config.first == "languages" else rules[::-1]
    tokens_C = np.array([cell.tokens for cell in cells], float)
    names, group_C = np.unique(outer, return_inverse=True)
    amounts_G = np.bincount(group_C, weights=weighted_C)
    tokens_G = np.bincount(group_C, weights=np.where(weighted_C > 0, tokens_C, 0))
    there = np.flatnonzero(amounts_G > 0)
    whole = _Names([str(names[g]) for g in there], amounts_G[there], tokens_G[there], f"data.mixture.{config.first}")
    outer_shares, unfilled = _divide(whole, outer_rule, positions=positions, part=1.0, nested=False)
    # How many of the positions each outer name fills, for a UniMax inside it.
    fills = outer_shares * whole.tokens_G / whole.amounts_G
    fills /= fills.sum()
    inner_name = "sources" if config.first == "languages" else "languages"
    shares_C, notes = np.zeros(len(cells)), [unfilled]
    for place, group in enumerate(there.tolist()):
        inside = np.flatnonzero((group_C == group) & (weighted_C > 0))
        where = f"data.mixture.{inner_name} inside {whole.names[place]!r}"
        members = _Names([inner[c] for c in inside], weighted_C[inside], tokens_C[inside], where)
        shares, unfilled = _divide(
            members, inner_rule, positions=None if positions is None else positions * fills[place],
            part=float(outer_shares[place]), nested=True,
        )  # fmt: skip
        shares_C[inside] = outer_shares[place] * shares
        notes.append(unfilled)
    return Mixed(shares_C, group_C, tuple(note for note in notes if note))


def _divide(
    whole: _Names, rule: SharesConfig, *, positions: float | None, part: float, nested: bool
) -> tuple[np.ndarray, str]:
    """Shares of the names, summing to one, and what could not be filled."""
    base_G, unfilled = _base_shares(whole, rule, positions, part)
    base_G = base_G * [rule.weights.get(name, 1.0) for name in whole.names]
    base_G /= base_G.sum()
    lower_G, upper_G = _bound(rule.floor, 0.0, whole.names), _bound(rule.ceiling, 1.0, whole.names)
    exact = {name: rule.shares[name] for name in whole.names if name in rule.shares}
    if exact and nested and len(exact) == len(whole.names):
        exact = {name: share / sum(exact.values()) for name, share in exact.items()}
    for place, name in enumerate(whole.names):
        if name in exact:
            lower_G[place] = upper_G[place] = exact[name]
    if not lower_G.any() and (upper_G >= 1).all():
        return base_G, unfilled
    try:
        shares_G = bounded_shares(base_G, lower_G, upper_G)
    except DataError as error:
        raise DataError(f"{whole.where}: {error}") from None
    nothing = [name for name, share in zip(whole.names, shares_G.tolist(), strict=True) if share < 1e-12]
    if nothing:
        raise DataError(
            f"{whole.where}: `shares` and `floor` leave nothing for {', '.join(nothing[:12])}; lower them, or give "
            "these a weight of 0 to leave them out on purpose"
        )
    return shares_G, unfilled


def _base_shares(whole: _Names, rule: SharesConfig, positions: float | None, part: float) -> tuple[np.ndarray, str]:
    if rule.gains:
        lacking = [name for name in whole.names if name not in rule.gains]
        if lacking:
            raise DataError(f"{whole.where}.gains has no gain for {', '.join(lacking[:12])}; give one to each")
        return taylor_softmax_shares(np.array([rule.gains[name] for name in whole.names])), ""
    if rule.unimax is None:
        capped_G = whole.amounts_G if rule.cap is None else np.minimum(whole.amounts_G, rule.cap)
        return power_shares(capped_G, rule.alpha or 1 / rule.temperature), ""
    most = rule.unimax.max_epochs
    if rule.unimax.budget is not None:
        budget = rule.unimax.budget * part
    elif positions is not None:
        budget = filling_budget(whole.amounts_G, whole.tokens_G, most, positions)
    else:
        raise DataError(f"{whole.where}.unimax needs a `budget`, or a number of steps to fill")
    dealt = unimax_shares(whole.amounts_G, budget, most)
    # Rounding of a budget that was searched for is no shortfall.
    if dealt.unfilled <= 1e-9 * budget:
        return dealt.shares_G, ""
    return dealt.shares_G, (
        f"{whole.where}: {most:g} epochs of everything leave {dealt.unfilled:,.0f} of a budget of {budget:,.0f} "
        "unfilled; more epochs fill it"
    )


def _bound(rule: float | Mapping[str, float], default: float, names: Sequence[str]) -> np.ndarray:
    if isinstance(rule, Mapping):
        return np.array([rule.get(name, default) for name in names], float)
    return np.full(len(names), float(rule))


def _names_of(cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    return [cell.language for cell in cells], [cell.source for cell in cells]


def _check_rules(cells: Sequence[Cell], config: MixtureConfig) -> None:
    for what, rule, names in zip(
        ("languages", "sources"), (language_rule(config), config.sources), _names_of(cells), strict=True
    ):
        _check_weights(f"data.mixture.{what}.weights of", rule.weights)
        given = {"weights": rule.weights, "shares": rule.shares, "gains": rule.gains}
        given |= {"floor": rule.floor, "ceiling": rule.ceiling}
        for key, table in given.items():
            if isinstance(table, Mapping):
                short = what == "languages" and key == "weights" and bool(config.language_weights)
                path = "language_weights" if short else f"{what}.{key}"
                _check_known(f"data.mixture.{path}", table, sorted(set(names)), what.removesuffix("s"))


def _check_apart(rule: SharesConfig, apart: Collection[str]) -> None:
    """A weight that has no effect would be a silent mistake."""
    bounds = [table for table in (rule.floor, rule.ceiling) if isinstance(table, Mapping)]
    for table in (rule.weights, rule.shares, rule.gains, *bounds):
        for name in table:
            if name in apart:
                raise DataError(
                    f"data.mixture.pinch counts the examples of {name!r}, so it has no share; remove its weight, "
                    "share or bound, or take it out of the pinch"
                )


def _check_weights(what: str, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"{what} {name!r} is {weight}; needed a finite number, 0 or more")


def _check_known(path: str, table: Mapping[str, float], present: Sequence[str], kind: str) -> None:
    for name in table:
        if name not in present:
            raise DataError(
                f"{path} names {name!r}, but no example has this {kind} ({closest_names(name, present)}); "
                f"use a {kind} of the data or remove the entry"
            )
