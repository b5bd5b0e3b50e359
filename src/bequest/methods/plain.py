"""Plain pre-training: no predecessor. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Iterator

from ..loss.combine import next_token, weighted
from ..train.plan import Inputs, Method, Stage


class Plain(Method):
    """Cross-entropy on the text, nothing else."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """Only the text."""
        yield Stage("train", inputs.batches, weighted((1.0, next_token)), inputs.steps)
