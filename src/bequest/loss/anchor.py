"""A loss that holds the student's weights near where a stage began (elastic weight consolidation)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import Batches
from ..types import Batch, Clock, Loss, LossFn
from .combine import Around, next_token, weighted


class Anchored(Around, nn.Module):
    """inner + weight / 2 x sum of F (theta - theta*)² (Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3).

    theta* are the weights when the stage begins, F the mean over sequences of the squared gradient of a sequence's mean
    next-token loss, on the memories of all earlier sources, as many of each. Both are the loss's own state.
    """

    def __init__(self, inner: LossFn, weight: float, memories: Sequence[Batches], sequences: int) -> None:
        nn.Module.__init__(self)
        self.inner, self.weight = inner, weight
        self.memories, self.sequences = memories, sequences
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def forward(self, model: Any, batch: Batch, clock: Clock) -> Loss:
        """The inner loss and the penalty; micro-batches share it by their rows."""
        if not self.anchor:
            self._begin(model)
        loss = self.inner(model, batch, clock)
        parameters = dict(model.named_parameters())
        moved = (self.fisher[n] * (parameters[n] - anchor).square() for n, anchor in sorted(self.anchor.items()))
        penalty = torch.stack([one.sum() for one in moved]).sum() * (len(batch.rows.target_N) / batch.rows_total)
        parts = {**loss.parts, "anchor": penalty.detach()}
        return Loss(loss.total + 0.5 * self.weight * penalty, parts, loss.rate, loss.teacher_flops)

    def _begin(self, model: Any) -> None:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.anchor = {name: p.detach().clone() for name, p in parameters.items()}
        self.fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
        training, likelihood = model.training, weighted((1.0, next_token))
        model.eval()
        device = next(iter(parameters.values())).device
        for batch in self._sequences():
            loss = likelihood(model, batch.to(device), Clock(0, 1)).total
            found = torch.autograd.grad(loss, list(parameters.values()))
            for name, gradient in zip(parameters, found, strict=True):
                self.fisher[name] += gradient.square() / self.sequences
        model.train(training)

    def _sequences(self) -> Iterator[Batch]:
        """One at a time, from each memory in turn."""
        for number in range(self.sequences):
            turn, which = divmod(number, len(self.memories))
            yield self.memories[which].of(np.array([turn]))

    def outline(self) -> Anchored:
        """The same from a single sequence: it holds as much."""
        inner = getattr(self.inner, "outline", lambda: self.inner)()
        return Anchored(inner, self.weight, self.memories, 1)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Weights and their importance, by parameter."""
        found = {f"anchor/{name}": value for name, value in self.anchor.items()}
        return found | {f"fisher/{name}": value for name, value in self.fisher.items()}

    def load_state_dict(self, state: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """What `state_dict` gave."""
        for key, value in state.items():
            room, _, name = key.partition("/")
            getattr(self, room)[name] = value
