"""Means and their standard errors: within a language, and over languages."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """What one document adds to a metric: the metric is sum(numerator) / sum(denominator)."""

    numerator: float
    denominator: float = 1.0


class Estimate(NamedTuple):
    """A metric's value, its standard error (None where it cannot be told), and its number of documents."""

    value: float
    stderr: float | None
    n: int


def estimate(ratios: Sequence[Ratio]) -> Estimate:
    """sum(numerators) / sum(denominators) and its standard error.

    With all denominators 1 that is the mean and the sample standard deviation (n - 1) over sqrt(n). Otherwise
    it is the linearised error of a ratio of sums, the same formula (Cochran, Sampling Techniques, 6.4).
    """
    n = len(ratios)
    total = math.fsum(ratio.denominator for ratio in ratios)
    value = math.fsum(ratio.numerator for ratio in ratios) / total
    if n < 2:
        return Estimate(value, None, n)
    squares = math.fsum((ratio.numerator - value * ratio.denominator) ** 2 for ratio in ratios)
    return Estimate(value, math.sqrt(squares * n / (n - 1)) / total, n)


def macro_average(estimates: Iterable[Estimate]) -> Estimate:
    """The mean of the values, every one counting the same; its standard error is the mean of theirs.

    Most benchmarks ask every language the same items, translated, so an easy sample is easy in all of them: the
    errors are no independent draws that would cancel out. The standard deviation of a mean is at most the mean of
    the standard deviations (Cauchy-Schwarz), and equals it when the errors move together, which is assumed here.
    The error is None where a language has none.
    """
    items = list(estimates)
    errors = [item.stderr for item in items if item.stderr is not None]
    stderr = math.fsum(errors) / len(items) if len(errors) == len(items) else None
    return Estimate(math.fsum(item.value for item in items) / len(items), stderr, sum(item.n for item in items))


def find_worst(scores: Mapping[str, float], *, higher_is_better: bool, count: int = 5) -> list[tuple[str, float]]:
    """The `count` languages with the worst scores, worst first, equal ones by name."""
    sign = 1 if higher_is_better else -1
    return sorted(scores.items(), key=lambda item: (sign * item[1], item[0]))[:count]
