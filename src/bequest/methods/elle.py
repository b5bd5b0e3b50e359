"""ELLE (Qin et al. 2022, arXiv 2203.06311): a model that grows at every new domain, recovers on its memory, then learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ..config import Share
from ..data.mix import Mixed
from ..loss.combine import next_token, weighted
from ..model.grow.growth import Growth, grown
from ..model.language import LanguageModel
from ..train.plan import Inputs, Method, Moments, Stage, Stretch, unchanged
from ..types import RecipeError


class ELLE(Method):
    """For every part of the run's life: expand, recover the function on what is remembered, train on new text with replay.

    Replay, the choice of memories and domain prompts are the run's (`life.replay` 0.1, `life.sampling`, `data.prompts`). The
    default growth keeps the function; the paper's own is `width: copies, depth: copies, noise: 0.01`.
    """

    sizes: tuple[Growth, ...] = ()
    """What is to be larger in the run's second stage, the third, and so on; in stages beyond these nothing grows."""
    recover: Share = 0.05
    """The share of a later part's steps that are on memory: of 25,000 steps the paper's BASE models take 5,000, LARGE 1,000."""
    earlier: Share = 0.1
    """The share of that which comes from sources before the last part's."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One part: expansion and recovery where there is something to recover, then training.

        Raises RecipeError when there are more sizes than later parts.
        """
        if len(self.sizes) >= inputs.parts and self.sizes:
            raise RecipeError(
                f"method.sizes has {len(self.sizes)} entries for {inputs.parts - 1} later stages of data.train; "
                "give one for each at most"
            )
        loss, steps = weighted((1.0, next_token)), 0
        growth = self.sizes[inputs.part - 1] if 0 < inputs.part <= len(self.sizes) else None
        enter = (
            partial(_expand, replace(growth, seed=growth.seed or inputs.seed + inputs.part)) if growth else unchanged
        )
        if inputs.memories and (steps := round(self.recover * inputs.steps)):
            *earlier, last = inputs.memories
            memory = Mixed(last, tuple(earlier), self.earlier) if earlier else last
            # Its learning rate is that of the whole part, cut off: in a long warm-up it stays below the peak.
            yield Stage("recover", memory, loss, steps, enter, "fresh", Stretch(0, inputs.steps))
            enter = unchanged
        if steps < inputs.steps:
            yield Stage("train", inputs.batches, loss, inputs.steps - steps, enter, "fresh", "stage")


def _expand(growth: Growth, model: LanguageModel, moments: Moments) -> tuple[LanguageModel, Moments]:
    return grown(model, growth)[0], {}
