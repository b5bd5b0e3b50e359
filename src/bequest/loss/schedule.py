"""Weights that move with the clock: pure functions of it that know when they have ended, so that a teacher can leave.

All shapes run over the share `until` of the stage (1.0 is its end). The literature's inheritance rates: linear, Heaviside
and constant (Qin et al. 2022, section 3.3), 4 to 1 (Lee et al. 2023, section 4), warm-up-stable-decay (arXiv 2410.16215).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..types import Clock


@dataclass(frozen=True)
class Schedule:
    """A weight per clock. `ended` says that it is zero from here to the end of the stage."""

    at: Callable[[Clock], float]
    ended: Callable[[Clock], bool] = lambda clock: False

    def __call__(self, clock: Clock) -> float:
        return self.at(clock)

    def __rsub__(self, whole: float) -> Schedule:
        return Schedule(lambda clock: whole - self.at(clock))


def constant(value: float) -> Schedule:
    """Always `value`."""
    return Schedule(lambda clock: value, lambda clock: value == 0.0)


def _course(start: float, end: float, until: float, shape: Callable[[float], float]) -> Schedule:
    """From `start` to `end` over the share `until`; `shape` maps the share of the way behind to the share that remains."""

    def at(clock: Clock) -> float:
        way = clock.step / (until * clock.steps) if until * clock.steps > 0 else math.inf
        return end if way >= 1.0 else end + (start - end) * shape(way)

    return Schedule(at, lambda clock: end == 0.0 and clock.step >= until * clock.steps)


def linear(start: float, end: float, until: float = 1.0) -> Schedule:
    """A straight line, exactly `end` from `until` on."""
    return _course(start, end, until, lambda way: 1.0 - way)


def cosine(start: float, end: float, until: float = 1.0) -> Schedule:
    """Half a cosine wave."""
    return _course(start, end, until, lambda way: 0.5 * (1.0 + math.cos(math.pi * way)))


def heaviside(start: float, end: float, until: float = 1.0) -> Schedule:
    """`start` up to `until`, then `end` at once."""
    return _course(start, end, until, lambda way: 1.0)


def wsd(start: float, end: float, until: float = 1.0) -> Schedule:
    """Warm-up over a tenth of the way, stable, straight decay over the last four tenths."""
    return _course(start, end, until, lambda way: min(1.0, way / 0.1, (1.0 - way) / 0.4))


SHAPES: dict[str, Callable[[float, float, float], Schedule]] = {
    "linear": linear,
    "constant": lambda start, end, until: constant(start),
    "heaviside": heaviside,
    "cosine": cosine,
    "wsd": wsd,
}


def until_passed(schedule: Schedule, student: str = "student", teacher: str = "teacher") -> Schedule:
    """`schedule` until the journal says that the student has passed the teacher, then zero to the end of the stage.

    It reads the two named values, losses on the same held-out rows; the teacher's is measured once.
    """

    def passed(clock: Clock) -> bool:
        own = [entry.values for entry in clock.journal if entry.stage == clock.stage]
        bars = [values[teacher] for values in own if teacher in values]
        return bool(bars) and any(values.get(student, bars[0]) < bars[0] for values in own)

    return Schedule(
        lambda clock: 0.0 if passed(clock) else schedule(clock),
        lambda clock: passed(clock) or schedule.ended(clock),
    )
