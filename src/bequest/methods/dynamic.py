"""Dynamic distillation (Li et al. 2021, arXiv 2109.11295): the student's uncertainty steers what is asked of whom, and how it weighs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import annotated_types as at

from ..config import Count, NotNegative, Temperature
from ..loss.hidden import Layers
from ..loss.unsure import Steering, Unsure
from ..train.plan import Inputs, Method, Stage
from ..types import RecipeError


class Dynamic(Method):
    """Next token + weight x KL(teacher || student), and three things that the student's uncertainty may decide, each by itself.

    Which sequences are sent to the teacher (`share`, section 4), which of two teachers answers (`adopt`, section 3), and
    how predictions and hidden states weigh (`adjust`, section 5). Uncertainty is a number without gradient; of a sequence it
    is the mean over its rows.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    weight: NotNegative = 1.0
    """Of predictions (lambda, lambda_kl)."""
    temperature: Temperature = 1.0
    """Of teacher and student; the factor is its square."""
    criterion: Literal["entropy", "margin", "confidence", "random"] = "entropy"
    """How unsure a student is; by chance is the control of `share`."""
    share: Annotated[float, at.Gt(0.0), at.Le(1.0)] = 1.0
    """The share of each batch's sequences, the least sure ones, that is sent to a teacher; at least one (r)."""
    reverse: bool = False
    """Send the surest ones instead."""
    adopt: Literal["one", "hard", "soft"] = "one"
    """With teachers.larger: hard gives the less sure half to `teacher`, the rest to `larger`; soft asks both, by row u and 1 - u."""
    adjust: Literal["none", "unsure", "swapped"] = "none"
    """unsure: predictions weigh 1 - u and hidden states u in each row; swapped: the other way round (uncertainty-r)."""
    hidden: NotNegative = 0.0
    """Weight of hidden states (lambda_rep); 0 does without."""
    layers: tuple[tuple[Count, Count], ...] = ()
    """Pairs of a student's and a teacher's layer (0 is before the first block); without any, each of the student's with one."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage.

        Raises RecipeError when settings do not go together.
        """
        if self.adopt != "one" and "larger" not in inputs.teachers:
            raise RecipeError(f"method.adopt {self.adopt} chooses between two teachers; give teachers.larger, too")
        if self.criterion == "random" and (self.adopt != "one" or self.adjust != "none"):
            raise RecipeError(
                "method.criterion random says nothing about uncertainty; leave adopt and adjust at their defaults"
            )
        if self.hidden and self.adopt != "one":
            raise RecipeError("method.hidden compares with the layers of one teacher; leave adopt at one")
        names = ("teacher",) if self.adopt == "one" else ("teacher", "larger")
        layers = Layers(inputs.model("teacher"), self.layers) if self.hidden else None
        steering = Steering(
            self.weight,
            self.temperature,
            self.criterion,
            self.share,
            self.reverse,
            self.adopt,
            self.adjust,
            self.hidden,
            inputs.seed,
        )
        loss = Unsure(steering, [inputs.teachers[name] for name in names], layers)
        yield Stage("dynamic", inputs.batches, loss, inputs.steps)
