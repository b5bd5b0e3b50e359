"""MiniPLM (Gu et al. 2025, arXiv 2410.17215): learn from the text that a large predecessor knows better than a small one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import annotated_types as at

from ..config import Share
from ..loss.combine import next_token, weighted
from ..teach.score import MeanLoss, Scores, State, proxy, randomly
from ..train.plan import Inputs, Method, Stage
from ..types import RecipeError


class MiniPLM(Method):
    """Difference sampling: of all sequences those with the largest loss of the reference less that of the teacher, then plain training.

    The reference should have learned from other text of the same kind (`data.train` has `part`): what it has seen it knows too well.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher", "reference")
    smaller: ClassVar[tuple[tuple[str, str], ...]] = (("reference", "teacher"),)

    keep: Annotated[float, at.Gt(0.0), at.Le(1.0)] = 0.5
    """The share of the sequences that is learned from (alpha); with fewer of them they come in more epochs."""
    choose: Literal["difference", "random"] = "difference"
    """By the difference, or as many by chance: the control."""
    per: Literal["token", "byte"] = "token"
    """byte: teacher and reference may have tokenizers of their own."""
    proxy: Share = 0.0
    """Score this share alone, and the rest by a linear map of the reference's hidden states that is fitted on it; 0 scores all."""

    @property
    def strangers(self) -> tuple[str, ...]:
        """Both, where losses are per byte."""
        return self.needs if self.per == "byte" else ()

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage on the chosen text.

        Raises RecipeError when that is less than one batch, or a proxy would have to read another tokenizer's text.
        """
        if self.proxy and self.per == "byte":
            raise RecipeError(
                "method.proxy is fitted on hidden states over this run's tokens; leave it out, or judge per token"
            )
        pool = inputs.batches.new
        count = int(self.keep * pool.whole)
        if count < pool.size:
            raise RecipeError(
                f"method.keep {self.keep:g} leaves {count} of {pool.whole} sequences, less than a batch of {pool.size}; raise it"
            )
        by_chance = self.choose == "random"
        chosen = randomly(pool.whole, count, inputs.seed) if by_chance else self._scores(inputs).highest(count)
        yield Stage("selected", inputs.batches.choose(chosen), weighted((1.0, next_token)), inputs.steps)

    def _scores(self, inputs: Inputs) -> Scores:
        pool, sample = inputs.batches.new, None
        if self.proxy:
            sample = randomly(pool.whole, max(1, round(self.proxy * pool.whole)), 0)
            pool = pool.choose(sample)
        reference, teacher = (inputs.judge(name, pool, MeanLoss(per=self.per)) for name in ("reference", "teacher"))
        difference = reference - teacher
        if sample is None:
            return difference
        return proxy(inputs.judge("reference", inputs.batches, State()), sample, difference)
