"""What a sweep says, and everything about it that makes no sense, one sentence each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types as at

from .. import config
from ..config import AboveZero, Config, Count
from ..types import SweepError


class Arm(Config):
    """One side of a comparison: the sweep's recipe with some keys set otherwise."""

    like: str = ""
    """Another arm: its settings come before this arm's own, and its best learning rate is this arm's, too."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe and their values in this arm, such as {method: {name: ki}, teachers.teacher.load: arm:small}.

    A value `arm:NAME` is the model of another arm or predecessor, of the same seed where that has it.
    """
    stored: bool = False
    """Ask its teachers once, ahead of training, and learn from the store of what they said."""
    rates: tuple[AboveZero, ...] = ()
    """Learning rates to try at the first seed; without them those of the sweep, or the best one of `like`."""
    budgets: tuple[AboveZero, ...] = (1.0,)
    """Multiples of the recipe's train.tokens: a run each, decayed to its end. The first is the arm's result."""
    cost_of: str = ""
    """Instead of budgets: as many tokens as cost this arm as much as that arm's result costs."""
    cost_in: Literal["flops", "seconds"] = "flops"
    """With `cost_of`: all FLOPs, or seconds of training on this machine, timed before the run begins."""
    counted: bool = False
    """With `cost_of`: what that arm's predecessors cost to train is part of it."""
    seeds: tuple[Count, ...] = ()
    """Instead of the sweep's."""


class Price(Config):
    """What a device costs."""

    per_hour: AboveZero
    """Money per hour of one job."""
    currency: str = "$"
    """Its sign."""


class Sweep(Config):
    """What is compared with what, and how. `extends: FILE` takes over what another sweep says (see comparing.md)."""

    name: str
    """Results go to runs/compare/<name> unless --out names another folder than runs/compare."""
    question: str = ""
    """What it asks, in a sentence or two: stands above the results."""
    recipe: str
    """The recipe that all arms share; seeds and learning rates are the sweep's."""
    arms: dict[str, Arm]
    """What is compared, by name. With `extends`, a name alone takes over that sweep's arm."""
    predecessors: dict[str, Arm] = field(default_factory=dict)
    """What is trained because arms learn from it, and not compared."""
    baseline: str
    """The arm against which the others are held."""
    rates: tuple[AboveZero, ...]
    """Learning rates that each arm tries at the first seed, best spaced by 2; the grid grows when the best one is on its edge."""
    seeds: tuple[Count, ...] = (0, 1, 2)
    """Of the best learning rate's runs."""
    measure: Literal["loss", "bits_per_byte"] = "loss"
    """On held-out text; bits per byte compare arms of different vocabularies."""
    source: str = ""
    """Of the held-out text; needed only where the recipe has several, `all` is the mean over them."""
    confidence: Annotated[float, at.Gt(0.0), at.Lt(1.0)] | None = 0.95
    """Of the intervals; null for none, as with a single seed."""
    price: Price | None = None
    """Turns seconds into money."""

    @property
    def pool(self) -> dict[str, Arm]:
        """Every arm that can be named."""
        return {**self.predecessors, **self.arms}

    def likes(self, name: str) -> Iterator[str]:
        """An arm, the one that it is like, and so on."""
        yield name
        if self.pool[name].like:
            yield from self.likes(self.pool[name].like)

    def settings(self, name: str) -> dict[str, Any]:
        """What an arm sets, with the settings of those that it is like."""
        found: dict[str, Any] = {}
        for member in reversed(list(self.likes(name))):
            for key, value in self.pool[member].set.items():
                found = {k: v for k, v in found.items() if not f"{k}.".startswith(f"{key}.")} | {key: value}
        return found

    def stored(self, name: str) -> bool:
        """Whether an arm learns from stores."""
        return any(self.pool[member].stored for member in self.likes(name))

    def needed(self, names: Iterable[str]) -> dict[str, Arm]:
        """Arms and all that they need to know of, directly or not, those first."""
        found: dict[str, Arm] = {}
        for name in names:
            found |= self.needed(other for other in self.names_of(name) if other not in found) | {name: self.pool[name]}
        return found

    def names_of(self, name: str) -> list[str]:
        """The other arms that an arm names itself."""
        arm = self.pool[name]
        return [other for other in (arm.like, arm.cost_of) if other] + references(arm.set)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds of an arm."""
        return self.pool[name].seeds or self.seeds


REFERENCE = "arm:"


def references(value: Any) -> list[str]:
    """The arms that values name."""
    if isinstance(value, str):
        return [value.removeprefix(REFERENCE)] if value.startswith(REFERENCE) else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for one in inner for name in references(one)]


def replaced(value: Any, model: Callable[[str], str]) -> Any:
    """Values with `arm:NAME` replaced by `model(NAME)`."""
    if isinstance(value, str):
        return model(value.removeprefix(REFERENCE)) if value.startswith(REFERENCE) else value
    if isinstance(value, dict):
        return {key: replaced(inner, model) for key, inner in value.items()}
    return [replaced(inner, model) for inner in value] if isinstance(value, list) else value


OWN = {
    "name": "runs are named after what they are",
    "seed": "give seeds instead",
    "train.optimiser.lr": "give rates instead",
}
"""Keys of a recipe that the sweep itself sets."""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested settings."""
    for key, value in settings.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def load(path: Path) -> Sweep:
    """The sweep in a file.

    Raises RecipeError, one sentence per mistake that names the file.
    """
    raw = _extended(config.read(path, "sweep"), path, ())
    sweep = config.decode(Sweep, raw, str(path))
    if found := [f"{path}: {sentence}" for sentence in problems(sweep)]:
        raise SweepError(*found)
    return sweep


def _extended(raw: dict[str, Any], path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """A sweep's mapping with what it takes over from the one that it extends."""
    where = raw.pop("extends", None)
    for room in ("arms", "predecessors"):
        if not isinstance(raw.setdefault(room, {}), dict):
            raise SweepError(f"{path}: {room} must be a mapping of names to arms")
    for name in set(raw["arms"]) & set(raw["predecessors"]):
        raise SweepError(f"{path}: {name!r} is both an arm and a predecessor; keep one, or give one another name")
    pool: dict[str, Any] = {}
    if where is not None:
        above = _above(Path(str(where)), path, below)
        pool = above["predecessors"] | above["arms"]
        raw = {key: above[key] for key in above if key not in ("name", "question")} | raw
    for name, arm in raw["arms"].items():
        if arm is None and name not in pool:
            raise SweepError(f"{path}: the arm {name!r} is not there; {_nearest(name, pool)}")
        raw["arms"][name] = pool[name] if arm is None else arm
    raw["predecessors"] = {n: arm for n, arm in (pool | raw["predecessors"]).items() if n not in raw["arms"]}
    return raw


def _above(where: Path, path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping of the sweep that `path` extends."""
    if where.resolve() in (p.resolve() for p in (path, *below)):
        raise SweepError(f"{path}: extends leads back to {where}; leave one of them out")
    if not where.is_file():
        raise SweepError(f"{path}: there is no sweep {where} to extend; give the path of its file")
    return _extended(config.read(where, "sweep"), where, (*below, path))


def _nearest(name: str, there: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(there), 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(there) or 'none'}"


def problems(sweep: Sweep) -> list[str]:
    """Every impossible combination, one sentence each."""
    circles = [name for name in sweep.pool if name in _reachable(name, sweep)]
    if circles:
        return [f"the arms {', '.join(circles)} need each other in a circle, by like, teachers or cost_of; break it"]
    found = [s for name in sweep.pool for s in _arm_problems(name, sweep)]
    if not re.fullmatch(r"\w[\w.+-]{0,99}", sweep.name):
        found.append(f"name {sweep.name!r} cannot be a folder's name; use letters, digits and dashes")
    if sweep.baseline not in sweep.arms:
        found.append(f"the baseline {sweep.baseline!r} is no arm; {_nearest(sweep.baseline, sweep.arms)}")
    if len(sweep.arms) < 2:
        found.append("there is nothing to compare; give at least two arms")
    if not sweep.rates or len(set(sweep.rates)) < len(sweep.rates):
        found.append("rates must be different learning rates, such as [5e-3, 1e-2, 2e-2]")
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        found.append("seeds must be different numbers, such as [0, 1, 2]")
    elif sweep.confidence and len(sweep.seeds) < 2:
        return ["one seed gives no intervals; give seeds: [0, 1, 2], or confidence: null for a look without them"]
    return found


def _arm_problems(name: str, sweep: Sweep) -> Iterator[str]:
    arm = sweep.pool[name]
    key = f"{'arms' if name in sweep.arms else 'predecessors'}.{name}"
    if not re.fullmatch(r"\w[\w.+-]*", name):
        yield f"{key} cannot be a name; use letters, digits and dashes"
    missing = [other for other in sweep.names_of(name) if other not in sweep.pool]
    for other in missing:
        yield f"{key} names the arm {other!r}, which is not there; {_nearest(other, sweep.pool)}"
    for own in {*OWN} & {*_flat(arm.set)}:
        yield f"{key}.set has {own}, which is the sweep's own: {OWN[own]}"
    if arm.cost_of and arm.budgets != (1.0,):
        yield f"{key} has both budgets and cost_of; keep one"
    if arm.cost_of and not arm.like:
        yield f"{key}.cost_of needs like: the arm whose cost per token is this one's"
    if arm.counted and not arm.cost_of:
        yield f"{key}.counted has no meaning without cost_of; leave it out"
    if arm.cost_in != "flops" and (arm.counted or not arm.cost_of):
        yield f"{key}.cost_in {arm.cost_in} needs cost_of, without counted; predecessors' seconds are not known"
    for numbers in ("rates", "budgets", "seeds"):
        given = getattr(arm, numbers)
        if len(set(given)) < len(given) or (numbers == "budgets" and not given):
            yield f"{key}.{numbers} must be one number or several different ones"
    base = sweep.seeds_of(sweep.baseline) if sweep.baseline in sweep.arms else sweep.seeds
    if name in sweep.arms and len({*sweep.seeds_of(name)} & {*base}) < (2 if sweep.confidence else 1):
        yield f"{key}: one seed gives no intervals; give at least two, better three, that {sweep.baseline} has too"


def _reachable(name: str, sweep: Sweep) -> set[str]:
    """Every arm that an arm needs, directly or not."""
    found: set[str] = set()
    front = {name}
    while front:
        front = {other for n in front for other in sweep.names_of(n) if other in sweep.pool} - found
        found |= front
    return found
