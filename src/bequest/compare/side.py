"""An arm's finished runs, and how it stands against the baseline: cost ratios at equal loss, and why there is none.

At equal loss means: where the baseline has several budgets, its cost at the loss that the arm ends with, both after decay;
where it has one, the arm's cost when it passes the baseline's final loss, in the middle of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .course import Course, Tuned
from .outcome import Point, Result
from .statistics import Curve, Interval, cost_at, interval, loss_at, power
from .sweep import references

SAVING = 0.15
"""Where nothing can be told, the chance is given with which this much would have been told."""
Axis = Callable[[Point], float | None]
AXES: dict[str, tuple[Axis, str]] = {
    "tokens": (lambda p: p.tokens, "tokens"),
    "student_flops": (lambda p: p.student_flops, "student FLOPs"),
    "all_flops": (lambda p: p.all_flops, "all FLOPs, predecessors' training sunk"),
    "counted_flops": (lambda p: p.counted_flops, "all FLOPs, predecessors' training counted"),
}
CLOCK: dict[str, tuple[Axis, str]] = {"seconds": (lambda p: p.seconds, "seconds")}
"""What the clock says is kept apart: a sweep that was killed and begun again has other seconds and the same everything else."""


@dataclass(frozen=True)
class Side:
    """An arm."""

    name: str
    tuned: Tuned
    runs: Mapping[int, Mapping[float, Result]]
    """By seed and budget, the arm's own order."""
    is_baseline: bool = False
    """Whether only budgets tell it from the baseline."""

    def final(self, seed: int) -> Result:
        """The arm's result at a seed."""
        return next(iter(self.runs[seed].values()))

    @property
    def finals(self) -> list[Result]:
        """The arm's results."""
        return [self.final(seed) for seed in self.runs]

    @property
    def diverged(self) -> bool:
        """Whether a run at the best rate did not survive."""
        return any(not result.curve for budgets in self.runs.values() for result in budgets.values())

    @property
    def has_ladder(self) -> bool:
        """Whether it was trained with several budgets."""
        return all(len(budgets) > 1 for budgets in self.runs.values())

    @property
    def predecessor_unknown(self) -> bool:
        """Whether it learns from models of which nobody knows how good they are on the held-out text."""
        recipes = [result.run.recipe for result in self.finals if not result.teachers]
        asked = [spec for recipe in recipes for spec in recipe.teachers.values() if spec.control != "uniform"]
        return bool(asked) or any(recipe.student.load for recipe in recipes)

    def teacher(self) -> float | None:
        """The best of its predecessors on the held-out text, the mean over seeds; None where none is known."""
        losses = [min(result.teachers.values()) for result in self.finals if result.teachers]
        return math.fsum(losses) / len(losses) if losses else None

    def loss(self) -> float:
        """The mean final loss."""
        return math.fsum(result.loss for result in self.finals) / len(self.runs)

    def ladder(self, seed: int, axis: Axis) -> Curve | None:
        """Cost and loss at the end of every budget; None where a cost is unknown."""
        return _curve([result.end for result in self.runs[seed].values()], axis)

    def within(self, seed: int, axis: Axis) -> Curve | None:
        """Cost and loss in the course of the arm's result."""
        return _curve(self.final(seed).curve, axis)


def _curve(points: list[Point] | tuple[Point, ...], axis: Axis) -> Curve | None:
    found = sorted((cost, p.loss) for p in points if (cost := axis(p)) is not None)
    return found if len(found) == len(points) else None


def side(course: Course, name: str) -> Side:
    """An arm whose runs have all finished."""
    sweep = course.sweep
    budgets, settings = sweep.pool[name].budgets, sweep.settings(name)
    begins = [other for key, value in settings.items() if key.startswith("student") for other in references(value)]

    def result(seed: int, budget: float) -> Result:
        found = course.result(course.chosen(name, seed, budget))
        first = {other: course.result(course.chosen(other, seed)).loss for other in begins}
        return replace(found, teachers={**found.teachers, **first})

    runs = {seed: {budget: result(seed, budget) for budget in budgets} for seed in sweep.seeds_of(name)}
    return Side(name, course.tuned(name), runs, settings == sweep.settings(sweep.baseline))


@dataclass(frozen=True)
class Verdict:
    """How many times the arm's cost the baseline needs for the same loss, or a sentence on why that cannot be said."""

    ratio: Interval | None
    refusal: str = ""
    gap: Interval | None = None
    """The arm's final loss less the baseline's at equal cost; None where the baseline was not measured there."""

    @property
    def clear(self) -> bool:
        """Whether there is a ratio and it is not 1 as far as can be told."""
        return self.ratio is not None and not self.refusal


def against(arm: Side, base: Side, axis: Axis, confidence: float | None) -> Verdict:
    """Hold an arm against the baseline on one axis of cost."""
    seeds = [seed for seed in arm.runs if seed in base.runs]
    if arm.diverged or base.diverged:
        which = arm.name if arm.diverged else base.name
        return Verdict(None, f"{which} diverged at the best of its learning rates")
    if len(seeds) < (2 if confidence else 1):
        return Verdict(None, f"{arm.name} and {base.name} share {len(seeds)} seed, too few for an interval")
    gap = _gap(arm, base, axis, seeds, confidence)
    if arm.is_baseline:
        return Verdict(None, f"it is {base.name} with another budget and lies on that curve", gap)
    target = arm.loss() if base.has_ladder else base.loss()
    teacher = arm.teacher()
    if teacher is not None and teacher <= target:
        return Verdict(
            None,
            f"the predecessor's own loss, {teacher:.4f}, is already as good as the {target:.4f} to be reached",
            gap,
        )
    found = [_ratio(arm, base, seed, axis) for seed in seeds]
    if refusal := next((f for f in found if isinstance(f, str)), None):
        return Verdict(None, refusal, gap)
    ratio = interval([math.log(f) for f in found if not isinstance(f, str)], confidence)
    if confidence and ratio.holds(0.0):
        chance = power(-math.log(1 - SAVING), [math.log(f) for f in found if not isinstance(f, str)], confidence)
        return Verdict(
            ratio.exp(),
            f"the difference is inside the noise (a saving of {SAVING:.0%} would have been outside it with a chance of {chance:.0%})",
            gap,
        )
    return Verdict(ratio.exp(), "", gap)


def _ratio(arm: Side, base: Side, seed: int, axis: Axis) -> float | str:
    """The baseline's cost over the arm's at equal loss, or the sentence that refuses it."""
    at, own, others = arm.final(seed), arm.within(seed, axis), base.ladder(seed, axis)
    if own is None or others is None:
        return "what a predecessor cost to train is not known"
    if not base.has_ladder:
        target = base.final(seed).loss
        if len(own) < 2:
            return f"{arm.name} was measured at its end alone; give eval.every_tokens, or {base.name} several budgets"
        above = [number for number, (_, loss) in enumerate(own) if loss >= target]
        if not above:
            return f"{arm.name} is below {base.name}'s final loss at its first validation already (seed {seed})"
        reached = cost_at(own[above[-1] :], target)  # where it comes down for good
        return others[0][0] / reached if reached else f"{arm.name} never reached {base.name}'s final loss (seed {seed})"
    needed = cost_at(others, at.loss)
    if needed is None:
        budgets = sorted(base.runs[seed])
        if at.loss > others[0][1]:
            return f"{base.name} is better than {arm.name} with {budgets[0]:g} times the tokens already (seed {seed})"
        return f"{base.name} never reached {arm.name}'s final loss, even with {budgets[-1]:g} times the tokens (seed {seed})"
    return needed / own[-1][0]


def _gap(arm: Side, base: Side, axis: Axis, seeds: list[int], confidence: float | None) -> Interval | None:
    """The difference of final losses at equal cost, both after decay."""
    found = []
    for seed in seeds:
        cost, ladder = axis(arm.final(seed).end), base.ladder(seed, axis)
        other = None if cost is None or ladder is None else loss_at(ladder, cost)
        if other is None:
            return None
        found.append(arm.final(seed).loss - other)
    return interval(found, confidence)


def ceiling(arm: Side, base: Side, axis: Axis) -> float | None:
    """What a perfect warm start would give: a successor that begins as good as its predecessor, at the baseline's pace.

    The baseline's cost over what is left of it from the predecessor's loss on, with the predecessor's training on an axis
    that counts it (the mean over seeds); None where the baseline's curve does not reach that far.
    """
    teacher = arm.teacher()
    found = []
    for seed in base.runs if teacher is not None else ():
        ladder = base.ladder(seed, axis)
        if ladder is None or seed not in arm.runs:
            continue
        training = axis(Point(0, 0.0, 0.0, arm.final(seed).training_flops, 0.0, 0.0))
        whole, begun = cost_at(ladder, arm.final(seed).loss), cost_at(ladder, teacher or 0.0)
        if whole is None or begun is None or training is None or begun >= whole:
            return None
        found.append(math.log(whole / (whole - begun + training)))
    return math.exp(math.fsum(found) / len(found)) if found else None
