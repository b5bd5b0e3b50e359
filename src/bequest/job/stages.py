"""A life in stages: any method, once for every part of a run's text, and what keeps the parts before from being forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise

from ..data.batches import Batches
from ..data.mix import Mixed
from ..loss.anchor import Anchored
from ..loss.combine import Around, Weighted, distil, plus
from ..model.language import LanguageModel
from ..recipe import Life, Recipe
from ..train.plan import Inputs, Measure, Method, Stage, Stretch, passes, unchanged
from ..types import Batch, Journal, RecipeError, Teacher

RESERVED = 32
"""Sequences of each source that are in no memory: on them losses are looked at, where sampling goes by them."""


def stages_of(recipe: Recipe, method: Method, inputs: Inputs) -> Iterator[Stage]:
    """The method's stages for every part, in order; with a single part they are the method's own.

    A method sees one part at a time: its text with replay, its steps, and what is kept of the sources before.
    """
    settings, parts = recipe.life, recipe.parts
    if len(parts) == 1:
        yield from method.plan(inputs)
        return
    assert isinstance(inputs.batches, Batches)
    ends = _ends(inputs.steps, settings.shares or (1.0,) * len(parts))
    if idle := [part for part, (first, last) in zip(parts, pairwise(ends), strict=True) if first == last]:
        raise RecipeError(
            f"the run's {inputs.steps} steps leave none for the stage {idle[0]!r}; raise train.tokens, or change life.shares"
        )
    memories: tuple[Batches, ...] = ()
    held: dict[str, list[Batch]] = {}
    before: Stage | None = None
    for number, ((part, sources), (first, last)) in enumerate(zip(parts.items(), pairwise(ends), strict=True)):
        here = inputs.batches.only(*sources)
        own = replace(
            inputs,
            batches=Mixed(here, memories, settings.replay, settings.sampling) if memories and settings.replay else here,
            steps=last - first,
            part=number,
            parts=len(parts),
            memories=memories,
            after=partial(_after, inputs, part),
        )
        behind = 0
        for stage in method.plan(own):
            stage = replace(stage, name=f"{part}.{stage.name}", part=part)
            if settings.rate == "stage" and stage.rate == "run":
                stage = replace(stage, rate=Stretch(behind, own.steps))
            if before:
                stage = _later(stage, inputs.after(before.name), own, settings, begins=not behind)
                stage = replace(stage, measure=stage.measure or _look(own, held, settings, stage.steps))
            behind += stage.steps
            yield stage
        before = stage
        for source in sources:
            memory, held[source] = inputs.batches.only(source).reserve(RESERVED)
            memories += (memory.part(settings.memory),)


def _after(inputs: Inputs, part: str, stage: str) -> Teacher:
    return inputs.after(f"{part}.{stage}")


def _ends(steps: int, shares: tuple[float, ...]) -> list[int]:
    """Where the parts begin and end; what does not divide evens out."""
    whole = math.fsum(shares)
    return [round(steps * behind / whole) for behind in accumulate(shares, initial=0.0)]


def _later(stage: Stage, previous: Teacher, inputs: Inputs, settings: Life, begins: bool) -> Stage:
    """A stage of a later part, held back by what came before.

    Raises RecipeError when models on the way from one part to the next are asked for and the student grows there.
    """
    if settings.merge and stage.enter is not unchanged:
        raise RecipeError(
            "life.merge: the student changes its shape between stages, so that nothing lies between; leave it out"
        )
    loss = stage.loss
    if settings.kl:
        loss = plus(loss, settings.kl, distil(previous, settings.temperature, name="previous"))
    if settings.ewc and not isinstance(loss, Weighted | Around):
        raise RecipeError(
            "life.ewc holds weights under a sum of terms, which this method's loss is not; use life.replay"
        )
    if settings.ewc:
        loss = Anchored(loss, settings.ewc, inputs.memories, settings.ewc_sequences)
    fresh = stage.optimiser == "fresh" or (begins and settings.optimiser == "fresh")
    return replace(stage, loss=loss, optimiser="fresh" if fresh else "carry")


def _look(inputs: Inputs, held: Mapping[str, list[Batch]], settings: Life, steps: int) -> Measure | None:
    """Losses on reserved text of every earlier source, for a sampling that goes by them."""
    if settings.sampling == "uniform":
        return None
    looked = dict(held)

    def ask(model: LanguageModel, journal: Journal) -> dict[str, float]:
        return {source: inputs.evaluate(model, batches) for source, batches in looked.items()}

    every = max(1, round(settings.look_every * steps))
    return Measure(every, ask, lambda model: (sum(passes(model, batches) for batches in looked.values()), 0.0))
