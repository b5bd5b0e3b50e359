"""A loss under which the student's new channels fade in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..model.grow.fade import fade
from ..types import Batch, Clock, Loss, Teacher
from .combine import Weighted


@dataclass(frozen=True)
class FadingIn:
    """A loss that first tells the student's norms how much new channels count: from nothing to all over a share of the stage."""

    inner: Weighted
    until: float

    def __call__(self, model: Any, batch: Batch, clock: Clock) -> Loss:
        """The inner loss."""
        steps = self.until * clock.steps
        fade(model, min(1.0, clock.step / steps) if steps else 1.0)
        return self.inner(model, batch, clock)

    def prepare(self, batch: Batch, clock: Clock) -> None:
        """As the inner loss's."""
        self.inner.prepare(batch, clock)

    def asked(self, clock: Clock) -> Mapping[tuple[int, float], Teacher]:
        """As the inner loss's."""
        return self.inner.asked(clock)

    def rates(self, clock: Clock) -> tuple[float, ...]:
        """As the inner loss's."""
        return self.inner.rates(clock)

    def release(self) -> None:
        """As the inner loss's."""
        self.inner.release()
