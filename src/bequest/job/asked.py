"""What a recipe's teachers will be asked: the plan is walked and every question noted, none answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pack import Ints
from ..device import Place
from ..recipe import Recipe
from ..teach.harvest import Asked
from ..teach.store import Store, open_store
from ..train.plan import Method, Stage
from ..types import Answer, Batch, Clock, DataError
from .models import opener
from .prepare import Prepared, inputs
from .stages import stages_of


@dataclass(frozen=True)
class Asking:
    """What a teacher will be asked."""

    temperatures: tuple[float, ...]
    asked: list[Asked]
    """Stage by stage, every sequence once."""

    @property
    def sequences(self) -> int:
        """How many different ones."""
        return sum(len(one.keys) for one in self.asked)


@dataclass
class Questions:
    """Takes a teacher's place in a plan and notes what it is told to prepare."""

    temperatures: dict[float, None] = field(default_factory=dict)
    keys: dict[bytes, None] = field(default_factory=dict)
    """All that came, in order."""
    fresh: list[bytes] = field(default_factory=list)
    """Those that came for the first time since they were last taken away."""

    def prepare(self, batch: Batch, temperature: float) -> None:
        """Note the question."""
        self.temperatures[temperature] = None
        self.fresh += [key for key in dict.fromkeys(batch.keys) if key not in self.keys]
        self.keys |= dict.fromkeys(batch.keys)

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        """Never: nothing is answered."""
        raise AssertionError("only questions are noted")

    def flops(self, batch: Batch) -> float:
        """None."""
        return 0.0

    def release(self) -> None:
        """Nothing to let go."""


def questions(recipe: Recipe, prepared: Prepared, method: Method, whole_epochs: bool = False) -> dict[str, Asking]:
    """What each of a recipe's models and stores will be asked."""
    noted = {name: Questions() for name, spec in recipe.teachers.items() if spec.load or spec.store}
    given = inputs(recipe, prepared, Place(), Path(), opener(recipe, "cpu"), lambda name, spec: noted[name])
    found = _walk(stages_of(recipe, method, given), noted, whole_epochs)
    return {name: Asking(tuple(sorted(noted[name].temperatures)), found[name]) for name in noted}


def require_answers(recipe: Recipe, prepared: Prepared, method: Method) -> dict[str, Store]:
    """The stores that a run will ask, by teacher.

    Raises BequestError when one lacks what it will be asked: better now than in the middle.
    """
    found: dict[str, Store] = {}
    if not any(spec.store for spec in recipe.teachers.values()):
        return found
    for name, asking in questions(recipe, prepared, method).items():
        if not (recipe.teachers[name].store and asking.asked):
            continue
        found[name] = store = open_store(Path(recipe.teachers[name].store))
        for temperature in asking.temperatures:
            store.manifest.form.require(temperature)
        keys = [key for one in asking.asked for key in one.keys]
        if missing := store.missing(keys):
            raise DataError(
                f"the store {store.folder} lacks {len(missing):,} of the {len(keys):,} sequences about which the teacher "
                f"{name} will be asked; bequest teach RECIPE adds them (teach.sequences: all keeps whole epochs)"
            )
    return found


def _walk(stages: Iterable[Stage], questions: Mapping[str, Questions], whole_epochs: bool) -> dict[str, list[Asked]]:
    """What each teacher will be asked, stage by stage, every sequence once."""
    found: dict[str, list[Asked]] = {name: [] for name in questions}
    for stage in stages:
        noted: dict[str, tuple[list[int], list[bytes]]] = {name: ([], []) for name in questions}
        for places, clock in _visits(stage, whole_epochs):
            batch = stage.batches.of(places)
            getattr(stage.loss, "prepare", lambda batch, clock: None)(batch, clock)
            place_of = dict(zip(reversed(batch.keys), reversed(places.tolist()), strict=True))
            for name, one in questions.items():
                noted[name][0].extend(place_of[key] for key in one.fresh)
                noted[name][1].extend(one.fresh)
                one.fresh.clear()
        for name, (where, keys) in noted.items():
            if keys:
                found[name].append(Asked(stage.batches, np.array(where), tuple(keys)))
    return found


def _visits(stage: Stage, whole_epochs: bool) -> Iterator[tuple[Ints, Clock]]:
    """The places of each step in which a teacher is asked, without those that an earlier one has visited."""
    asks: Callable[[Clock], Any] = getattr(stage.loss, "asked", lambda clock: {})
    asking = [step for step in range(stage.steps) if asks(Clock(step, stage.steps))]
    clocks = {step: Clock(step, stage.steps) for step in asking}
    if whole_epochs and asking:
        batches = stage.batches
        epochs = -(-int(batches.places(asking[-1])[-1] + 1) // batches.count)
        clocks = {
            step: Clock(asking[0], stage.steps) for step in range(-(-epochs * batches.count // batches.size))
        } | clocks
    seen: set[int] = set()
    for step, clock in sorted(clocks.items()):
        places = stage.batches.places(step)
        examples = stage.batches.examples(places).tolist()
        new = [place for place, example in zip(places, examples, strict=True) if example not in seen]
        seen.update(examples)
        if new:
            yield np.array(new), clock
