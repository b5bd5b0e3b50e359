"""Rho-1 (Lin et al. 2024, arXiv 2404.07965): learn from the tokens that the student predicts worse than a reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import annotated_types as at

from ..loss.excess import ByChance, Excess
from ..train.plan import Inputs, Method, Stage


class Selective(Method):
    """The next token's loss on the share `keep` of each sequence's tokens, those with the highest loss in excess of the reference's.

    The paper ranks over a batch; within sequences the choice does not depend on how a batch is split. The sum is divided by
    `keep` times the batch's tokens (section 2.2).
    """

    needs: ClassVar[tuple[str, ...]] = ("reference",)

    keep: Annotated[float, at.Gt(0.0), at.Le(1.0)] = 0.6
    """The share of the tokens that is learned from; 0.6 and 0.7 in the paper (section 3.1)."""
    choose: Literal["excess", "random"] = "excess"
    """By the excess, or as many of each sequence by chance: the control, which asks no reference."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage."""
        chosen = (
            ByChance(self.keep, inputs.seed)
            if self.choose == "random"
            else Excess(self.keep, inputs.teachers["reference"])
        )
        yield Stage("selective", inputs.batches, chosen, inputs.steps)
