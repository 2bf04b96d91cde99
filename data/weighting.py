"""Amounts to shares: the published ways, as arithmetic on arrays that know no names."""

from typing import NamedTuple

import numpy as np

from data.schema import DataError


class UniMax(NamedTuple):
    """What UniMax deals out."""

    shares_G: np.ndarray
    amounts_G: np.ndarray
    """How much of the budget each gets (the paper's U), in the unit of the sizes."""
    unfilled: float
    """What is left of the budget when everyone is at the most epochs allowed."""


def power_shares(amounts_G: np.ndarray, exponent: float) -> np.ndarray:
    """Shares proportional to amount ** exponent. T5's temperature is 1 / exponent, mT5's alpha the exponent itself.

    Amounts 1000, 100 and 10 with exponent 0.3 have shares .571, .286 and .143. Source: arXiv:1910.10683, section 3.5.2.
    """
    # Divided by the largest first: a power of a ratio neither overflows nor loses the tail.
    powers_G = (amounts_G / amounts_G.max()) ** exponent
    return powers_G / powers_G.sum()


def taylor_softmax_shares(gains_G: np.ndarray) -> np.ndarray:
    """Shares proportional to 1 + g + g**2 / 2, the second-order Taylor softmax. Source: SMART, arXiv:2403.08370."""
    terms_G = 1 + gains_G + gains_G**2 / 2
    return terms_G / terms_G.sum()


def unimax_shares(amounts_G: np.ndarray, budget: float, max_epochs: float) -> UniMax:
    """Equal parts of the budget, the smallest first, nobody above `max_epochs` times its amount.

    Amounts 1000, 100 and 10, budget 600, 4 epochs: 40 for the smallest, then (600 - 40) / 2 = 280 for both others.
    Source: arXiv:2304.09151, algorithm 1.
    """
    dealt_G = np.zeros(len(amounts_G))
    left = float(budget)
    for place, index in enumerate(np.argsort(amounts_G, kind="stable").tolist()):
        dealt = min(left / (len(amounts_G) - place), max_epochs * float(amounts_G[index]))
        dealt_G[index] = dealt
        left -= dealt
    # What rounding leaves of a budget that is dealt out is not unfilled.
    full = np.all(dealt_G >= max_epochs * amounts_G)
    return UniMax(dealt_G / dealt_G.sum(), dealt_G, max(left, 0.0) if full else 0.0)


def filling_budget(amounts_G: np.ndarray, tokens_G: np.ndarray, max_epochs: float, positions: float) -> float:
    """The budget, in the unit of the amounts, whose UniMax mixture fills this many positions of rows.

    Where even `max_epochs` of everything does not, the rest counts at the mean number of positions per unit.
    """
    per_unit_G = tokens_G / amounts_G
    most = float(max_epochs * tokens_G.sum())
    if most <= positions:
        return float(max_epochs * amounts_G.sum() + (positions - most) * amounts_G.sum() / tokens_G.sum())
    low, high = 0.0, float(max_epochs * amounts_G.max() * len(amounts_G))
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        filled = float((unimax_shares(amounts_G, middle, max_epochs).amounts_G * per_unit_G).sum())
        low, high = (middle, high) if filled < positions else (low, middle)
    return high


def bounded_shares(shares_G: np.ndarray, lower_G: np.ndarray, upper_G: np.ndarray) -> np.ndarray:
    """The shares scaled by one common factor and held between their bounds, so that they sum to one.

    Shares .7, .2 and .1 with a floor of .15: the last is lifted to .15, the others keep their ratio in what is left,
    .661 and .189. Exact: the sum is piecewise linear in the factor, and the piece that holds one is solved.

    Raises DataError for bounds that no shares meet.
    """
    _check_bounds(lower_G, upper_G)
    # Where each share leaves its floor, and where it meets its ceiling.
    factors = np.unique(np.concatenate(([0.0], lower_G / shares_G, upper_G / shares_G)))
    sums = np.array([np.clip(factor * shares_G, lower_G, upper_G).sum() for factor in factors])
    after = min(int(np.searchsorted(sums, 1.0)), len(factors) - 1)
    before = max(after - 1, 0)
    rise = sums[after] - sums[before]
    within = min(max((1.0 - sums[before]) / rise, 0.0), 1.0) if rise > 0 else 0.0
    factor = factors[before] + within * (factors[after] - factors[before])
    bounded_G = np.clip(factor * shares_G, lower_G, upper_G)
    return bounded_G / bounded_G.sum()


def budgets(shares_G: np.ndarray, total: int, capacities_G: np.ndarray | None = None) -> np.ndarray:
    """Whole numbers that sum to `total`: floors, what they leave one each from the first on, nobody above its capacity.

    What a capacity cuts off is dealt out one by one, round and round, to those below theirs. Shares .673, .198, .129 of
    100 are 68, 20 and 12. Source: SMART, arXiv:2403.08370, and its code.

    Raises DataError where the capacities together are less than `total`.
    """
    dealt_G = np.floor(shares_G * total).astype(np.int64)
    dealt_G[: total - int(dealt_G.sum())] += 1
    if capacities_G is None:
        return dealt_G
    if int(capacities_G.sum()) < total:
        raise DataError(
            f"a budget of {total} from {int(capacities_G.sum())} in all; use at most {int(capacities_G.sum())}"
        )
    dealt_G = np.minimum(dealt_G, capacities_G)
    left = total - int(dealt_G.sum())
    while left:
        open_G = np.flatnonzero(dealt_G < capacities_G)
        # Whole rounds at once, as far as nobody fills up on the way.
        rounds = min(int((capacities_G - dealt_G)[open_G].min()), left // len(open_G))
        dealt_G[open_G] += rounds
        left -= rounds * len(open_G)
        if left < len(open_G):
            dealt_G[open_G[:left]] += dealt_G[open_G[:left]] < capacities_G[open_G[:left]]
            left = total - int(dealt_G.sum())
    return dealt_G


def _check_bounds(lower_G: np.ndarray, upper_G: np.ndarray) -> None:
    slack = 1e-9
    crossed = np.flatnonzero(lower_G > upper_G)
    if len(crossed):
        index = int(crossed[0])
        raise DataError(f"a floor of {lower_G[index]:g} is above its ceiling of {upper_G[index]:g}; lower the floor")
    if lower_G.sum() > 1 + slack:
        raise DataError(
            f"least shares of {len(lower_G)} sum to {lower_G.sum():.6g}, more than the whole; lower `floor` or `shares`"
        )
    if upper_G.sum() < 1 - slack:
        raise DataError(
            f"largest shares of {len(upper_G)} sum to {upper_G.sum():.6g}, less than the whole; raise `ceiling` or "
            "`shares`"
        )
