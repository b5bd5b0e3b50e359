"""How long a run will take: the run's own steps on the real models for some seconds, then thrown away."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..device import settle
from ..eval.held_out import HeldOut, total_loss
from ..model.language import LanguageModel
from ..optim import Policy
from ..recipe import Recipe
from ..train.plan import Stage, unchanged
from ..train.run import Settings, StageEnded, State, Stepped, run
from ..types import Clock
from .models import opener
from .prepare import find_method, inputs, new_student, prepare
from .stages import stages_of
from .train import settings_of


@dataclass(frozen=True)
class Seconds:
    """Of training steps and of validation; saving is not in it."""

    training: float
    validation: float


class _Enough(Exception):
    """Enough steps were seen."""


def calibrate(recipe: Recipe, out: Path, budget: float = 20.0) -> Seconds:
    """Seconds that the recipe will take on this machine, from about `budget` seconds of it (and the models' loading)."""
    prepared, method = prepare(recipe), find_method(recipe)
    where = settle(recipe.train)
    policy = Policy(recipe.train.schedule, recipe.train.batch_tokens, recipe.train.tokens)
    settings = settings_of(recipe, where, policy)
    real, left = (
        opener(recipe, where.device),
        dict[str, LanguageModel](),
    )  # by earlier stages, of which a later one may learn
    load = lambda spec: copy.deepcopy(left[spec.load]) if spec.load in left else real(spec)
    stages = list(stages_of(recipe, method, inputs(recipe, prepared, where, out, load)))
    phases = [_phases(stage) for stage in stages]
    state, training = State(new_student(recipe, prepared.vocabulary), planned=recipe.train.tokens), 0.0
    share = 0.8 * budget / sum(map(len, phases))
    for stage, found in zip(stages, phases, strict=True):
        state.model, _ = stage.enter(state.model, {})
        for first, steps in found:
            training += steps * _seconds_per_step(replace(stage, enter=unchanged), first, state, settings, share)
        left[str(out / "stages" / stage.name)] = state.model
    times = 1 + recipe.train.tokens // recipe.eval.every_tokens if recipe.eval.every_tokens else 1
    share = 0.2 * budget / len(prepared.held_out)
    return Seconds(
        training, times * sum(_validation(state, held, share, settings) for held in prepared.held_out.values())
    )


def _phases(stage: Stage) -> list[tuple[int, int]]:
    """A stage's steps with and without a teacher: the first such step and how many there are."""
    asks: Callable[[Clock], Any] = getattr(stage.loss, "asked", lambda clock: {})
    taught = [bool(asks(Clock(step, stage.steps))) for step in range(stage.steps)]
    return [(taught.index(kind), taught.count(kind)) for kind in (True, False) if kind in taught]


def _seconds_per_step(stage: Stage, first: int, state: State, settings: Settings, budget: float) -> float:
    """The mean over the steps that fit into the budget, two at least; the first, which warms up, does not count."""
    times: list[float] = []

    def watch(state: State, event: Stepped | StageEnded) -> None:
        times.append(time.monotonic())
        if len(times) > 2 and times[-1] - times[0] > budget:
            raise _Enough

    begun = time.monotonic()
    with suppress(_Enough):
        run((replace(stage, measure=None),), replace(state, step=first, run_step=first), settings, (watch,))
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else times[0] - begun


def _validation(state: State, held: HeldOut, budget: float, settings: Settings) -> float:
    """Seconds of one whole validation of a source."""
    begun = time.monotonic()
    done = 0
    for batch in held.batches.once():
        total_loss(state.model, [batch], settings.place)
        done += 1
        if time.monotonic() - begun > budget:
            break
    return (time.monotonic() - begun) / done * len(held.batches)
