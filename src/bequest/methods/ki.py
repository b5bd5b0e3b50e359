"""Knowledge Inheritance (Qin et al. 2022, arXiv 2105.13880): a smaller teacher whose weight decays to zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from ..config import Share, Temperature
from ..loss.combine import distil, next_token, weighted
from ..loss.schedule import SHAPES, until_passed
from ..train.plan import Inputs, Method, Stage


class KI(Method):
    """(1 - rate) x next token + rate x temperature² x KL(teacher || student); section 3.1."""

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    start: Share = 1.0
    """The inheritance rate at step 0 (for wsd: after its warm-up)."""
    until: Share = 0.32
    """The share of the run after which the rate is exactly zero; 40k of 125k steps for BASE to LARGE (table 7)."""
    shape: Literal["linear", "constant", "heaviside", "cosine", "wsd"] = "linear"
    """The rate's course; the paper compares linear, Heaviside and constant (section 4.1)."""
    temperature: Temperature = 1.0
    """Of both models; the released code uses 2."""
    compare_every: Share | None = None
    """Compare student and teacher on reserved training text every such share of the run, and let the teacher go once it is passed."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage, with a teacher as long as its rate is above zero."""
        rate, batches, measure = SHAPES[self.shape](self.start, 0.0, self.until), inputs.batches, None
        if self.compare_every:
            rate = until_passed(rate)
            batches, measure = inputs.against_teacher(self.compare_every)
        loss = weighted((rate, distil(inputs.teacher, self.temperature)), (1 - rate, next_token))
        yield Stage("inherit", batches, loss, inputs.steps, measure=measure)
