"""What a finished sweep says: results.json, a function of the sweep alone, and clock.json, which is what the clock said."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import config
from ..types import FolderError
from .course import Course
from .lives import life
from .outcome import Point, Result
from .side import AXES, CLOCK, Axis, Side, Verdict, against, ceiling, side
from .statistics import Interval, interval
from .sweep import Sweep, references

Sides = Mapping[str, Side]


def sides(course: Course) -> Sides:
    """The arms of a sweep whose runs have all finished."""
    return {name: side(course, name) for name in course.sweep.arms}


def results(course: Course, sides: Sides, path: Path) -> dict[str, Any]:
    """Everything but time: arms, runs, final losses, verdicts, sentences. `path` is the sweep's file."""
    sweep = course.sweep
    _require_one_measure(sweep, sides)
    base = sides[sweep.baseline]
    return {
        "name": sweep.name,
        "question": sweep.question,
        "command": shlex.join(["bequest", "compare", str(path)]),
        "measure": sweep.measure,
        "source": course.source,
        "confidence": sweep.confidence,
        "baseline": sweep.baseline,
        "axes": {name: words for name, (_, words) in AXES.items()},
        "arms": {name: _arm(one, base, sweep, AXES) for name, one in sides.items()},
        "predecessors": {name: _predecessor(course, name) for name in _taught_by(sweep)},
        "sentences": [
            s for one in sides.values() for s in (*remarks(one, sides, sweep), *sentences(one, base, sweep, AXES))
        ],
    }


def clock(course: Course, sides: Sides) -> dict[str, Any]:
    """Seconds, and money if the sweep has a price: verdicts, curves and sums."""
    sweep, base = course.sweep, sides[course.sweep.baseline]
    return {
        "axes": {name: words for name, (_, words) in CLOCK.items()},
        "price": asdict(sweep.price) if sweep.price else None,
        "seconds": round(_seconds(course.known), 1),
        "arms": {
            name: {
                "runs": [{"curve": [round(p.seconds, 3) for p in r.curve]} for r in _in_order(one)],
                "verdicts": _verdicts(one, base, sweep, CLOCK),
            }
            for name, one in sides.items()
        },
        "sentences": [s for one in sides.values() for s in sentences(one, base, sweep, CLOCK)],
    }


def _seconds(known: Iterable[Result]) -> float:
    """Of all training that came to its end, and of every harvest once."""
    good = [result for result in known if result.curve]
    harvests = {store: seconds for result in good for store, seconds in result.harvests.items()}
    return sum(r.end.seconds - sum(r.harvests.values()) for r in good) + sum(harvests.values())


def _require_one_measure(sweep: Sweep, sides: Sides) -> None:
    """Losses per token mean the same only under one tokenizer and objective: the runs themselves say which."""
    found = {name: {r.measured_in for r in one.finals if r.curve} for name, one in sides.items()}
    base = found[sweep.baseline]
    for name, own in found.items():
        if sweep.measure == "loss" and base and own and own != base:
            raise FolderError(
                f"the runs of {name} and {sweep.baseline} were measured under different tokenizers; "
                "compare them by measure: bits_per_byte, or give both the same tokenizer"
            )


def _in_order(one: Side) -> list[Result]:
    return [result for budgets in one.runs.values() for result in budgets.values()]


def _arm(one: Side, base: Side, sweep: Sweep, axes: Mapping[str, tuple[Axis, str]]) -> dict[str, Any]:
    first = one.finals[0]
    return {
        "settings": config.encode(sweep.pool[one.name]) | {"set": sweep.settings(one.name)},
        "parameters": first.parameters,
        "rate": one.tuned.rate,
        "tried": [[rate, _number(loss)] for rate, loss in sorted(one.tuned.tried.items())],
        "tuned_by": one.tuned.of,
        "rate_on_edge": one.tuned.on_edge,
        "diverged": one.diverged,
        "teacher": one.teacher(),
        "final": None if one.diverged else _interval(interval([r.loss for r in one.finals], sweep.confidence)),
        "runs": [_run(result) for result in _in_order(one)],
        "verdicts": _verdicts(one, base, sweep, axes),
        **({"life": found} if (found := _life(one, base, sweep)) else {}),
    }


def _life(one: Side, base: Side, sweep: Sweep) -> dict[str, Any] | None:
    if one.diverged or base.diverged:
        return None
    own, other = ({seed: side.final(seed) for seed in side.runs} for side in (one, base))
    return life(own, {} if one.name == base.name else other, sweep.confidence)


def _verdicts(one: Side, base: Side, sweep: Sweep, axes: Mapping[str, tuple[Axis, str]]) -> dict[str, Any]:
    if one.name == base.name:
        return {}
    found = {}
    for name, (axis, _) in axes.items():
        verdict = against(one, base, axis, sweep.confidence)
        most = ceiling(one, base, axis) if verdict.clear else None
        found[name] = {
            "ratio": _interval(verdict.ratio) if verdict.ratio else None,
            "refusal": verdict.refusal,
            "gap": _interval(verdict.gap) if verdict.gap else None,
            "ceiling": most,
        }
    return found


def _run(result: Result) -> dict[str, Any]:
    run = result.run
    return {
        "seed": run.seed,
        "budget": run.budget,
        "rate": run.rate,
        "name": run.recipe.name,
        "command": shlex.join(["bequest", *run.command]),
        "harvest_flops": result.harvest_flops,
        "training_flops": result.training_flops,
        "teachers": dict(result.teachers),
        "curve": [_point(point) for point in result.curve],
    }


def _point(point: Point) -> dict[str, Any]:
    return {k: v for k, v in asdict(point).items() if k != "seconds"}


def _interval(found: Interval) -> list[float | None]:
    return [found.mean, found.low, found.high]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _taught_by(sweep: Sweep) -> list[str]:
    """Arms and predecessors whose models teach others, the first ones first."""
    taught = {other for arm in sweep.needed(tuple(sweep.arms)).values() for other in references(arm.set)}
    return [name for name in sweep.needed(tuple(sweep.arms)) if name in taught]


def _predecessor(course: Course, name: str) -> dict[str, Any]:
    result = course.result(course.chosen(name, course.sweep.seeds_of(name)[0]))
    end = result.end
    return {
        "parameters": result.parameters,
        "tokens": end.tokens,
        "loss": end.loss,
        "all_flops": end.all_flops,
        "counted_flops": end.counted_flops,
        "rate": result.run.rate,
        "tried": [[rate, _number(loss)] for rate, loss in sorted(course.tuned(name).tried.items())],
        "command": shlex.join(["bequest", *result.run.command]),
    }


def remarks(one: Side, sides: Sides, sweep: Sweep) -> Iterator[dict[str, str]]:
    """What a reader should know of an arm besides its verdicts: {arm, kind, text}, kind being warning or note."""
    if one.tuned.on_edge and one.tuned.of == one.name:
        text = (
            f"{one.name}: its best learning rate {one.tuned.rate:g} is on the edge of those tried, so that a better one may "
            "exist; do not read its results as the arm's best."
        )
        yield {"arm": one.name, "kind": "warning", "text": text}
    if one.predecessor_unknown:
        text = f"{one.name}: how good its predecessor is on this text is not known; it may have been as good already."
        yield {"arm": one.name, "kind": "warning", "text": text}
    other = sides.get(sweep.pool[one.name].cost_of)
    shared = [seed for seed in one.runs if other and seed in other.runs]
    if other and len(shared) > 1 and not one.diverged and not other.diverged:
        gap = interval([one.final(seed).loss - other.final(seed).loss for seed in shared], sweep.confidence)
        told = (
            "as far as can be told, no better and no worse" if sweep.confidence and gap.holds(0.0) else _apart(gap.mean)
        )
        ends = "" if gap.low is None else f" ({gap.low:+.4f} to {gap.high:+.4f})"
        text = f"{one.name}: at the cost of {other.name} it ends {gap.mean:+.4f}{ends} from it: {told}."
        yield {"arm": one.name, "kind": "note", "text": text}


def _apart(gap: float) -> str:
    return "better" if gap < 0 else "worse"


def sentences(one: Side, base: Side, sweep: Sweep, axes: Mapping[str, tuple[Axis, str]]) -> Iterator[dict[str, str]]:
    """What may be said of an arm against the baseline, and what may not; kind is saves, costs or refusal."""
    if one.name == base.name:
        return
    said: dict[tuple[str, str], list[str]] = {}
    for axis, words in axes.values():
        said.setdefault(_said(against(one, base, axis, sweep.confidence), base.name), []).append(words)
    for (kind, text), of in said.items():
        start = f"{one.name} ({'; '.join(of)})" if len(said) > 1 or len(axes) == 1 else one.name
        yield {"arm": one.name, "kind": kind, "text": f"{start}: {text}."}


def _said(verdict: Verdict, base: str) -> tuple[str, str]:
    """A verdict's kind and words."""
    if not verdict.clear or verdict.ratio is None:
        return "refusal", f"no ratio: {verdict.refusal}"
    mean, low, high = (r and abs(1 / r - 1) for r in (verdict.ratio.mean, verdict.ratio.low, verdict.ratio.high))
    within = f" ({min(low, high):.1%} to {max(low, high):.1%})" if low and high else ""
    if verdict.ratio.mean > 1:
        return "saves", f"saves {mean:.1%}{within} of what {base} pays for the same loss"
    return "costs", f"costs {mean:.1%}{within} more than {base} for the same loss"
