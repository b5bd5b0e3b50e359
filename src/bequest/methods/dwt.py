"""Distillation from weak teachers (Lee et al. 2023, arXiv 2305.18239): a sum of both losses, the teacher's weight up to 4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from ..config import NotNegative, Share, Temperature
from ..loss.combine import distil, next_token, weighted
from ..loss.schedule import SHAPES
from ..train.plan import Inputs, Method, Stage, unchanged


class DWT(Method):
    """hard x next token + soft x KL(teacher || student), not a convex mix and without a temperature² factor.

    The paper's arms are soft 1 and soft 4, both constant (section 3.2: `soft: 1, end: 1`); 4 to 1 is what it recommends and did not run.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    hard: NotNegative = 1.0
    """Weight of the text's own tokens."""
    soft: NotNegative = 4.0
    """Weight of the teacher at step 0."""
    end: NotNegative = 1.0
    """Weight of the teacher from `until` on."""
    until: Share = 1.0
    """The share of the run over which the weight moves."""
    shape: Literal["linear", "cosine", "heaviside"] = "linear"
    """The weight's course."""
    temperature: Temperature = 1.0
    """Of both models; there is no temperature² factor."""
    remap: Literal["none", "repeat", "stack", "interpolate", "identity"] = "none"
    """Begin with the teacher's weights, its blocks for instance `repeat`: 0, 1, 2, 3, 3, 3 as in the paper (section 3.3)."""
    width: Literal["pad", "tile", "copies", "random"] = "pad"
    """How its weights grow where the student is wider, too; the paper's teachers are as wide."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage."""
        soft = SHAPES[self.shape](self.soft, self.end, self.until)
        loss = weighted((self.hard, next_token), (soft, distil(inputs.teacher, self.temperature, factor=1.0)))
        enter = unchanged if self.remap == "none" else inputs.handed_down("teacher", self.width, self.remap)
        yield Stage("distil", inputs.batches, loss, inputs.steps, enter)
