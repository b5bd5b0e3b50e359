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
        ends = [None if end is None else math.exp(end) for end in (self.low, self.high)]
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


def power(effect: float, values: Sequence[float], confidence: float) -> float:
    """The chance that an interval over as many values as these, spread as these are, would leave zero out if their mean were `effect`.

    The tails of the non-central t-distribution.
    """
    count, spread = len(values), interval(values, confidence)
    bound = float(stdtrit(count - 1, 0.5 + confidence / 2))
    assert spread.high is not None
    error = (spread.high - spread.mean) / bound  # of the mean
    if error == 0:
        return 1.0
    degrees, shift = count - 1, effect / error
    return float(1.0 - nctdtr(degrees, shift, bound) + nctdtr(degrees, shift, -bound))


Curve = Sequence[tuple[float, float]]
"""(cost, loss) by rising cost."""


def cost_at(curve: Curve, loss: float) -> float | None:
    """Where a curve first comes down to a loss, interpolated in the logarithm of the cost; None when it never is above or never below."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss <= high:
            way = 0.0 if high == low else (high - loss) / (high - low)
            return math.exp(math.log(before) + way * (math.log(after) - math.log(before)))
        if high < loss:
            return None
    return curve[-1][0] if curve[-1][1] == loss else None


def loss_at(curve: Curve, cost: float) -> float | None:
    """A curve's loss at a cost, interpolated likewise; None outside the curve."""
    for (before, start), (after, end) in pairwise(curve):
        if before <= cost <= after:
            way = 0.0 if before == after else math.log(cost / before) / math.log(after / before)
            return start + way * (end - start)
    return curve[-1][1] if curve[-1][0] == cost else None
