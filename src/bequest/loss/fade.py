"""A loss under which the student's new channels fade in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..model.grow.fade import fade
from ..types import Batch, Clock, Loss, LossFn
from .combine import Around


@dataclass(frozen=True)
class FadingIn(Around):
    """A loss that first tells the student's norms how much new channels count: from nothing to all over a share of the stage."""

    inner: LossFn
    until: float

    def __call__(self, model: Any, batch: Batch, clock: Clock) -> Loss:
        """The inner loss."""
        steps = self.until * clock.steps
        fade(model, min(1.0, clock.step / steps) if steps else 1.0)
        return self.inner(model, batch, clock)
