"""Gradient alignment (Wang et al. 2022, arXiv 2211.01071): the student's output is to answer to its input as the teacher's does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from ..config import NotNegative, Positive, Share, Temperature
from ..loss.align import Aligned
from ..loss.combine import distil, next_token, weighted
from ..train.plan import Inputs, Method, Stage


class Gradient(Method):
    """(1 - alpha) next token + alpha temperature² KL(teacher || student), and every few steps beta times the distance of gradients.

    A step with gradients costs the student twice its pass, and the teacher one forward and one backward pass more: over the
    run 1 + 1/every times. Not with train.compile or train.activation_checkpointing.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    alpha: Share = 0.5
    """The teacher's weight; 1/2 in the released code."""
    temperature: Temperature = 1.0
    """Of both models; 5 in the released code, for classifiers."""
    beta: NotNegative = 1.0
    """Weight of gradients; the paper does not state it."""
    every: Positive = 8
    """Gradients are compared in the first of so many steps."""
    signal: Literal["confidence", "gold"] = "confidence"
    """Whose gradient: the sum of the likeliest tokens' probabilities, or of the realised tokens' log-probabilities."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage."""
        loss = weighted((self.alpha, distil(inputs.teacher, self.temperature)), (1 - self.alpha, next_token))
        aligned = Aligned(loss, self.beta, self.every, self.signal, inputs.model("teacher")) if self.beta else loss
        yield Stage("gradient", inputs.batches, aligned, inputs.steps)
