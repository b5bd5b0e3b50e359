"""Which runs a sweep makes, and in what order: first learning rates at one seed, then the best of them at every seed.

Everything is worked out anew from the runs that have finished: there is no state to lose. What cannot be known before a
run has finished raises Waiting with that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

from ..recipe import Recipe
from ..types import RecipeError
from . import fair, runs, seconds
from .outcome import Result, finished
from .runs import Run
from .sweep import Sweep, replaced

EXTENSIONS = 2
"""So often a grid of learning rates grows when its best one is on an edge."""


class Waiting(Exception):
    """A run must finish first."""

    def __init__(self, run: Run) -> None:
        super().__init__(str(run))
        self.run = run


@dataclass(frozen=True)
class Tuned:
    """An arm's learning rate and how it was found."""

    rate: float
    tried: dict[float, float] = field(default_factory=dict)
    """Rate and what it gave at the first seed; infinite where the run diverged."""
    of: str = ""
    """The arm that tried them."""

    @property
    def on_edge(self) -> bool:
        """Whether the best rate is the lowest or highest one tried, so that a better one may lie beyond."""
        return len(self.tried) > 1 and self.rate in (min(self.tried), max(self.tried))


@dataclass
class Course:
    """A sweep whose runs lie under a root folder."""

    sweep: Sweep
    root: Path
    source: str
    """Of the held-out text that is compared."""
    _results: dict[Path, Result] = field(default_factory=dict)
    _runs: dict[tuple[str, float, int, float], Run] = field(default_factory=dict)

    def result(self, run: Run) -> Result:
        """What a run says.

        Raises Waiting while it is not finished.
        """
        if run.folder not in self._results:
            found = finished(run, self.sweep.measure, self.source)
            if found is None:
                raise Waiting(run)
            self._results[run.folder] = found
        return self._results[run.folder]

    def tuned(self, arm: str) -> Tuned:
        """An arm's learning rate."""
        spec = self.sweep.pool[arm]
        if spec.like and not spec.rates:
            return self.tuned(spec.like)
        grid = sorted(spec.rates or self.sweep.rates)
        if len(grid) == 1:
            return Tuned(grid[0], {}, arm)
        for extension in range(EXTENSIONS + 1):
            tried = {rate: self.result(self.trial(arm, rate)).loss for rate in grid}
            best = min(tried, key=lambda rate: (tried[rate], rate))
            if extension == EXTENSIONS or best not in (grid[0], grid[-1]):
                break
            grid = sorted([*grid, grid[0] ** 2 / grid[1] if best == grid[0] else grid[-1] ** 2 / grid[-2]])
        return Tuned(best, tried, arm)

    def trial(self, arm: str, rate: float) -> Run:
        """The run that tries a learning rate."""
        return self.run(arm, rate, self.sweep.seeds_of(arm)[0], self.sweep.pool[arm].budgets[0])

    def chosen(self, arm: str, seed: int, budget: float | None = None) -> Run:
        """An arm's run at its best rate, of the arm's own first seed where it lacks this one."""
        seeds = self.sweep.seeds_of(arm)
        return self.run(
            arm, self.tuned(arm).rate, seed if seed in seeds else seeds[0], budget or self.sweep.pool[arm].budgets[0]
        )

    def run(self, arm: str, rate: float, seed: int, budget: float) -> Run:
        """One run of an arm, once the runs whose models it takes are there."""
        key = (arm, rate, seed, budget)
        if key not in self._runs:
            try:
                self._runs[key] = self._made(*key)
            except RecipeError as error:
                raise RecipeError(*(f"arm {arm}: {problem}" for problem in error.problems)) from None
        return self._runs[key]

    def _made(self, arm: str, rate: float, seed: int, budget: float) -> Run:
        base = Path(self.sweep.recipe)
        model = lambda other: str(self._good(other, seed).run.folder / "checkpoint")
        keys = replaced(self.sweep.settings(arm), model)
        recipe = runs.load(base, keys)
        keys |= {"seed": seed, "train.tokens": self._tokens(arm, seed, recipe, budget)}
        stored = [name for name, spec in recipe.teachers.items() if spec.live] if self.sweep.stored(arm) else []
        if stored:  # learning rates share what the teachers said; another seed asks about other text
            place = runs.identity(runs.load(base, keys | {f"teachers.{name}.store": name for name in stored}))
            keys |= {f"teachers.{name}.store": str(self.root / "stores" / place / name) for name in stored}
        keys |= {"train.optimiser.lr": rate}
        keys |= {"name": f"{recipe.method['name']}-{runs.identity(runs.load(base, keys))}"}
        recipe = runs.load(base, keys)
        overrides = runs.assignments(keys)
        return Run(arm, rate, seed, budget, recipe, base, overrides, bool(stored), self.root / "runs" / recipe.name)

    def _good(self, arm: str, seed: int) -> Result:
        """An arm's result that another arm needs: it must have one."""
        result = self.result(self.chosen(arm, seed))
        if not result.curve:
            raise RecipeError(f"it needs {arm}, which diverged; give that one lower learning rates")
        return result

    def _tokens(self, arm: str, seed: int, recipe: Recipe, budget: float) -> int:
        """How many tokens a run sees: whole batches."""
        batch = recipe.train.batch_tokens
        wanted = self._affordable(arm, seed) if self.sweep.pool[arm].cost_of else budget * recipe.train.tokens
        return max(1, round(wanted / batch)) * batch

    def _affordable(self, arm: str, seed: int) -> float:
        """As many tokens as cost what another arm's result costs."""
        spec = self.sweep.pool[arm]
        if spec.cost_in == "seconds":  # the first seed's hold for all
            own, other = (self._good(name, self.sweep.seeds_of(name)[0]) for name in (spec.like, spec.cost_of))
            return seconds.share(own.run, other.run, self.root) * own.end.tokens
        own, other = (self._good(name, seed) for name in (spec.like, spec.cost_of))
        flops = other.end.counted_flops if spec.counted else other.end.all_flops
        if flops is None:
            raise RecipeError(f"what the predecessors of {spec.cost_of} cost to train is not known; leave out counted")
        return flops / (own.end.all_flops / own.end.tokens)

    def due(self, arms: Sequence[str]) -> list[Run]:
        """The runs that can begin now, for these arms and all that they need: first those that others wait for."""
        found: dict[Path, Run] = {}
        for want in self._wants(arms):
            try:
                self.result(want())
            except Waiting as waiting:
                found.setdefault(waiting.run.folder, waiting.run)
        return sorted(found.values(), key=lambda run: run.arm in arms)

    def _wants(self, arms: Sequence[str]) -> Iterator[Callable[[], Run]]:
        """Every run that is needed, as calls that make it or raise Waiting for what must finish before."""
        for name in arms:  # every arm's trials before any arm's seeds: most waits for them
            tuner = next(n for n in self.sweep.likes(name) if self.sweep.pool[n].rates or not self.sweep.pool[n].like)
            for rate in self.sweep.pool[tuner].rates or self.sweep.rates:
                yield partial(self.trial, tuner, rate)
        # Seed by seed, so that what else the machine does meets all arms alike and clocks can be compared.
        seeds = dict.fromkeys(seed for name in arms for seed in self.sweep.seeds_of(name))
        for seed, name in product(seeds, arms):
            for budget in self.sweep.pool[name].budgets if seed in self.sweep.seeds_of(name) else ():
                yield partial(self.chosen, name, seed, budget)

    @property
    def known(self) -> list[Result]:
        """What has finished, as far as it was looked at: runs of arms, trials of learning rates, predecessors."""
        return list(self._results.values())

    def expected(self) -> dict[str, list[int]]:
        """By arm the tokens of every run that the sweep will make, as far as can be said before learning rates are known."""
        found: dict[str, list[int]] = {}
        for name in self.sweep.needed(tuple(self.sweep.arms)):
            spec = self.sweep.pool[name]
            trials = 0 if spec.like and not spec.rates else len(spec.rates or self.sweep.rates) - 1
            budgets = [spec.budgets[0]] * trials + [b for _ in self.sweep.seeds_of(name) for b in spec.budgets]
            tokens = fair.draft(self.sweep, name).train.tokens
            found[name] = [round(tokens * budget) for budget in budgets]
        return found
