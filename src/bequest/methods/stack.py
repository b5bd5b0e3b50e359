"""Stacking (G_stack, Du et al. 2024, arXiv 2405.15319): begin as the predecessor, made deeper; it may go on teaching (LOIRE's idea)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from ..config import Share, Temperature
from ..loss.combine import distil, next_token, weighted
from ..loss.fade import FadingIn
from ..loss.schedule import SHAPES, constant
from ..model.grow.depth import Depth
from ..model.grow.width import Width
from ..train.plan import Inputs, Method, Stage


class Stack(Method):
    """The teacher's blocks on top of themselves up to the student's depth, then (1 - rate) x next token + rate x KL(teacher || student).

    The paper stacks 4 times, once, early in training (its section 4), and does not distil: `start: 0`.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    depth: Depth = "stack"
    """How blocks become more; identity keeps the function, stack trained fastest (figure 3)."""
    width: Width = "pad"
    """How the rest grows where the student is wider, too; fade is for bert and roberta."""
    fade: Share = 0.1
    """width fade: the share of the run over which new channels come in (MSG, arXiv 2305.02869)."""
    start: Share = 0.0
    """The inheritance rate at step 0, as in KI; 0 asks the teacher nothing."""
    until: Share = 0.32
    """The share of the run after which the rate is zero."""
    shape: Literal["linear", "constant", "heaviside", "cosine", "wsd"] = "linear"
    """The rate's course."""
    temperature: Temperature = 1.0
    """Of both models."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage, begun with the teacher's weights."""
        rate = SHAPES[self.shape](self.start, 0.0, self.until) if self.start else constant(0.0)
        loss = weighted((rate, distil(inputs.teacher, self.temperature)), (1 - rate, next_token))
        enter = inputs.handed_down("teacher", self.width, self.depth)
        yield Stage("grow", inputs.batches, FadingIn(loss, 0.0 if inputs.part else self.fade), inputs.steps, enter)
