"""A finished sweep without a run: made-up curves behind the real answer, with two arms or with twelve."""

import math
from pathlib import Path
from types import SimpleNamespace

from bequest import config
from bequest.compare import answer
from bequest.compare.course import Tuned
from bequest.compare.outcome import Point, Result
from bequest.compare.runs import Run
from bequest.compare.sweep import Sweep

POINTS, TOKENS = 40, 4_000_000
HELP = {
    "ki": 0.05,
    "ki_late": 0.03,
    "wsl": 0.0004,
    "logits-64": 0.04,
    "bert2bert": 0.02,
    "placebo": 0.0,
    "unknown": 0.03,
    "worse": -0.06,
    "stored": 0.045,
    "grown-from-the-smallest-predecessor": 0.1,
    "broken": math.nan,
}
"""How much each arm's loss is lower than the baseline's."""


def sweep(arms: int = 2, **changes: object) -> Sweep:
    """The baseline and some others, one of them with a predecessor of unknown cost and one that diverges."""
    helped = {name: {"set": {"method": "ki", "teachers.teacher.load": "arm:small"}} for name in list(HELP)[: arms - 1]}
    helped |= {"ki_late": {"like": "ki"}} if "ki_late" in helped else {}
    raw = {
        "name": "made-up",
        "question": "Does <b>inheritance</b> pay | or not? </script>",
        "recipe": "recipes/first.yaml",
        "arms": {"plain": {"budgets": [1.0, 0.5, 2.0]}, **helped},
        "predecessors": {"small": {"seeds": [0]}},
        "baseline": "plain",
        "rates": [0.0025, 0.005, 0.01],
        "price": {"per_hour": 3.5},
    }
    return config.decode(Sweep, raw | changes, "made up")


class Made:
    """As much of a course as an answer needs."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.source = sweep, "wiki"

    @property
    def known(self) -> list[Result]:
        return [self.result(self.chosen(name, seed)) for name in self.sweep.arms for seed in self.sweep.seeds]

    def tuned(self, name: str) -> Tuned:
        if self.sweep.pool[name].like:
            return self.tuned(self.sweep.pool[name].like)
        if name == "worse":
            return Tuned(0.01, {0.0025: 3.3, 0.005: 3.25, 0.01: 3.1}, name)
        return Tuned(0.005, {0.0025: 3.21, 0.005: 3.2, 0.01: 3.22, 0.02: math.inf}, name)

    def chosen(self, name: str, seed: int, budget: float | None = None) -> Run:
        budget = budget or self.sweep.pool[name].budgets[0]
        folder = Path(f"runs/compare/runs/{name}-{seed}-{budget:g}")
        keys = ('method={"name": "ki"}', f"train.tokens={round(TOKENS * budget)}", f"seed={seed}")
        recipe = SimpleNamespace(name=folder.name, teachers={}, student=SimpleNamespace(load=""))
        return Run(name, 0.005, seed, budget, recipe, Path("recipes/first.yaml"), keys, name == "stored", folder)

    def result(self, run: Run) -> Result:
        help = 0.0 if run.arm in ("plain", "small") else HELP[run.arm]
        if math.isnan(help):
            return Result(run, (), 0, {}, "", 0.0, None, {})
        trained = None if run.arm == "unknown" else 0.0 if run.arm in ("plain", "small") else 2e14
        harvest = 3e13 if run.arm == "stored" else 0.0
        curve = tuple(_point(run, (i + 1) / POINTS, help, trained, harvest) for i in range(POINTS))
        teachers = {} if run.arm in ("plain", "small") else {"teacher": 3.9}
        return Result(run, curve, 1_234_567, teachers, "abc", harvest, trained, {})


def _point(run: Run, way: float, help: float, trained: float | None, harvest: float) -> Point:
    tokens = round(TOKENS * run.budget * way)
    noise = 0.004 * math.sin(7 * run.seed + 3 * len(run.arm) + run.budget) + 0.01 * math.sin(40 * way + run.seed) * (
        1 - way
    )
    loss = 3.2 + 60 / tokens**0.35 * (1 + 0.35 * (1 - way)) - help + noise
    student = 7.4e7 * tokens
    spent = student * (1 if trained == 0 else 1.2) + harvest
    return Point(
        tokens,
        student,
        spent,
        None if trained is None else spent + trained,
        tokens / 9000 * (1 + 0.03 * run.seed),
        loss,
    )


def swept(arms: int = 2, **changes: object) -> tuple[dict, dict]:
    """What answer.results and answer.clock say of it."""
    course = Made(sweep(arms, **changes))
    sides = answer.sides(course)
    return answer.results(course, sides, Path("sweeps/made up.yaml")), answer.clock(course, sides)
