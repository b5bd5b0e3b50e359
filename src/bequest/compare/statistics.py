"""Crossings of curves, and intervals over seeds.

Ratios are averaged as logarithms, pair by pair of runs with the same seed, with Student's t: at three seeds a percentile
bootstrap covers three quarters of what it promises, the t-interval all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import nctdtr, stdtrit

HIGHEST = 700.0
"""The logarithm of about the largest number."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and where the true one lies with some confidence; both ends are None where none was asked for."""

    mean: float
    low: float | None
    high: float | None

    def holds(self, value: float) -> bool:
        """Whether a value cannot be told from the mean."""
        return self.low is None or self.high is None or self.low <= value <= self.high

    def exp(self) -> Interval:
        """Of logarithms: the geometric mean and its interval."""
        ends = [None if end is None else math.exp(min(end, HIGHEST)) for end in (self.low, self.high)]
        return Interval(math.exp(self.mean), *ends)


def interval(values: Sequence[float], confidence: float | None) -> Interval:
    """Student's t-interval of the mean of independent values; two at least if a confidence is asked for."""
    count = len(values)
    mean = math.fsum(values) / count
    if confidence is None:
        return Interval(mean, None, None)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.5 + confidence / 2)) * spread / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


CERTAIN = 100.0
"""So many standard errors from zero are seen always."""


def power(effect: float, values: Sequence[float], confidence: float) -> float:
    """The chance that an interval over as many values as these, spread as these are, would leave zero out if their mean were `effect`.

    The upper tail of the non-central t-distribution, for an effect above zero; the lower one is next to nothing.
    """
    count, spread = len(values), interval(values, confidence)
    bound = float(stdtrit(count - 1, 0.5 + confidence / 2))
    assert spread.high is not None
    error = (spread.high - spread.mean) / bound  # of the mean
    degrees, shift = count - 1, min(CERTAIN, effect / error) if error else CERTAIN
    return float(1.0 - nctdtr(degrees, shift, bound))


Curve = Sequence[tuple[float, float]]
"""(cost, loss) by rising cost."""


def cost_at(curve: Curve, loss: float) -> float | None:
    """Where a curve first comes down to a loss; None when it never does, or begins below it."""
    places = [(y, math.log(x)) for x, y in curve]
    if places[0][0] < loss:
        return None
    for number, (high, low) in enumerate(pairwise(places)):
        if loss in (high[0], low[0]):
            return curve[number][0] if loss == high[0] else curve[number + 1][0]
        if low[0] < loss < high[0]:
            return math.exp(_between(places, number, loss))
    return curve[-1][0] if curve[-1][1] == loss else None


def loss_at(curve: Curve, cost: float) -> float | None:
    """A curve's loss at a cost; None outside the curve."""
    places = [(math.log(x), y) for x, y in curve]
    for number, (before, after) in enumerate(pairwise(places)):
        if before[0] <= math.log(cost) <= after[0]:
            return _between(places, number, math.log(cost))
    return curve[-1][1] if curve[-1][0] == cost else None


def _between(places: Sequence[tuple[float, float]], number: int, x: float) -> float:
    """y at x between two neighbours of a curve: on the parabola through them and a third, as losses bend with the logarithm of the cost.

    On the straight line where there is no third, or the three do not go one way.
    """
    (x0, y0), (x1, y1) = places[number : number + 2]
    if x0 == x1:
        return y0
    line = y0 + (x - x0) / (x1 - x0) * (y1 - y0)
    for third in (number + 2, number - 1):
        if 0 <= third < len(places):
            x2, y2 = places[third]
            slopes = [(y1 - y0) / (x1 - x0), *((y - y2) / (x - x2) for x, y in ((x0, y0), (x1, y1)) if x != x2)]
            if len(slopes) == 3 and len({slope > 0 for slope in slopes}) == 1:
                bent = line + (slopes[2] - slopes[0]) / (x2 - x0) * (x - x0) * (x - x1)
                return min(max(bent, min(y0, y1)), max(y0, y1))
    return line
