"""Generations (Qin et al. 2022, section 4.4): each model teaches the next one, larger or not, from fresh weights or grown ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

from ..config import Share, Temperature
from ..loss.combine import distil, next_token, weighted
from ..loss.schedule import SHAPES
from ..model.grow.growth import Growth, fresh, grown
from ..model.language import LanguageModel
from ..train.plan import Inputs, Method, Moments, Stage


class Generations(Method):
    """The recipe's student learns alone; every further generation from the one before, by Knowledge Inheritance.

    All have the same number of steps, the same text in the same order, and the learning rate's whole course. Of equal sizes
    they are born-again networks (Furlanello et al. 2018, arXiv 1805.04770).
    """

    sizes: tuple[Growth, ...] = (Growth(),)
    """Of each further generation: what is to be larger than in the one before."""
    weights: Literal["fresh", "grown"] = "fresh"
    """Whether a generation begins from fresh weights, as in the paper, or with those of the one before, grown."""
    start: Share = 1.0
    """The inheritance rate at each generation's step 0."""
    until: Share = 0.32
    """The share of a generation's steps after which its rate is zero."""
    shape: Literal["linear", "constant", "heaviside", "cosine", "wsd"] = "linear"
    """The rate's course."""
    temperature: Temperature = 1.0
    """Of both models."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage per generation; what does not divide goes to the last one. In later parts of a life the last one goes on alone."""
        sizes = () if inputs.part else self.sizes
        steps, left = divmod(inputs.steps, 1 + len(sizes))
        alone = weighted((1.0, next_token))
        yield Stage("g1", inputs.batches, alone, steps + (0 if sizes else left), rate="stage")
        for number, growth in enumerate(sizes, 2):
            rate = SHAPES[self.shape](self.start, 0.0, self.until)
            teacher = inputs.after(f"g{number - 1}")
            loss = weighted((rate, distil(teacher, self.temperature)), (1 - rate, next_token))
            enter = partial(self._enter, replace(growth, seed=growth.seed or inputs.seed + number))
            last = number == 1 + len(sizes)
            yield Stage(f"g{number}", inputs.batches, loss, steps + left * last, enter, "fresh", "stage")

    def _enter(self, growth: Growth, model: LanguageModel, moments: Moments) -> tuple[LanguageModel, Moments]:
        return (fresh(model, growth) if self.weights == "fresh" else grown(model, growth)[0]), {}
