"""SALT (Rawat et al. 2024, arXiv 2410.18779): a smaller model teaches for the first steps, then the successor learns alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from ..config import Positive, Share, Temperature
from ..data.mix import Stream
from ..loss.combine import Part, next_token, weighted
from ..loss.schedule import SHAPES
from ..loss.terms import Divergence
from ..teach.score import MedianLoss, randomly
from ..train.plan import Inputs, Method, Stage
from ..types import RecipeError


class SALT(Method):
    """First (1 - omega) x next token + omega x KL(teacher at temperature rho || student), then the next token alone; section 3.

    36 thousand of about 208 thousand steps have the teacher; the second stage sees all text, what was chosen for the first
    among it. omega and rho are not stated in the paper.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    until: Share = 0.173
    """The share of the run with the teacher (n_KD): 20 to 60 of 208 thousand steps do as well."""
    omega: Share = 0.667
    """The teacher's weight."""
    rho: Temperature = 0.25
    """The teacher's own temperature: below 1 it is made surer. The student's is 1."""
    transition: Literal["step", "linear"] = "step"
    """Full weight up to the switch, or falling to zero there in a line, which halves the dose."""
    select: Literal["none", "median", "random"] = "none"
    """Text of the first stage: all; what is hardest by the median of losses (SALT_DS); as much by chance, its control."""
    judge: Literal["teacher", "judge"] = "teacher"
    """Who says what is hard; the paper's is an early checkpoint of the teacher, to be named teachers.judge."""
    top: Positive = 10
    """Only tokens among the judge's so many first guesses count (k)."""
    others: Literal["drop", "zero"] = "drop"
    """What becomes of the other tokens in the median."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """Two stages, or one where the other has no steps."""
        taught = round(self.until * inputs.steps)
        if taught:
            shape = {"step": "constant", "linear": "linear"}[self.transition]
            omega = SHAPES[shape](self.omega, 0.0, 1.0)
            distil = Part("distil", Divergence(), inputs.teacher, self.rho)
            pool = inputs.batches if self.select == "none" else self._pool(inputs, taught)
            yield Stage("taught", pool, weighted((omega, distil), (1 - omega, next_token)), taught)
        if taught < inputs.steps:
            rest = inputs.batches if self.select != "none" else inputs.batches.skip(taught)
            yield Stage("alone", rest, weighted((1.0, next_token)), inputs.steps - taught)

    def _pool(self, inputs: Inputs, steps: int) -> Stream:
        """As many sequences as the first stage takes, all of them if there are no more."""
        pool = inputs.batches.new
        count = min(steps * pool.size, pool.whole)
        if self.select == "random":
            return inputs.batches.choose(randomly(pool.whole, count, inputs.seed))
        if self.judge not in inputs.teachers:
            raise RecipeError("method.judge: judge needs teachers.judge; give it, or let the teacher judge")
        return inputs.batches.choose(
            inputs.judge(self.judge, pool, MedianLoss(top=self.top, others=self.others)).highest(count)
        )
