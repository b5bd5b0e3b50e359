"""Four kinds of knowledge in one pass of student and teacher: the text's tokens, predictions, hidden states, relations of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..model.flops import forward_flops
from ..model.language import LanguageModel
from ..types import Batch, Clock, Loss, Teacher
from .hidden import Layers
from .project import Addend, project
from .terms import Divergence, next_token

NAMES = ("next_token", "distil", "hidden", "relation")
MICRO = 8
"""Sequences that are looked at together."""


class Knowledge(nn.Module):
    """Their weighted sum; what weighs nothing is not computed. Without `layers` the last two must weigh nothing."""

    def __init__(
        self,
        teacher: Teacher,
        temperature: float,
        layers: Layers | None,
        weights: Callable[[Clock], tuple[float, ...]],
    ) -> None:
        super().__init__()
        self.teacher, self.temperature, self.layers, self.weights = teacher, temperature, layers, weights

    def meet(self, model: LanguageModel) -> None:
        """Learn the student's sizes."""
        if self.layers:
            self.layers.meet(model)

    def forward(self, model: LanguageModel, batch: Batch, clock: Clock) -> Loss:
        """The mean over `batch.rows_total`; parts are unweighted."""
        return self._sum(model, batch, clock, self.weights(clock))

    def _sum(self, model: LanguageModel, batch: Batch, clock: Clock, weights: tuple[float, ...]) -> Loss:
        inside = self.layers if any(weights[2:]) else None
        with inside.of_student(model) if inside else nullcontext({}) as own:
            features_ND = model.features(batch)
        answer, other, flops = None, {}, 0.0
        if any(weights[1:]):
            with inside.of_teacher() if inside else nullcontext({}) as other:
                answer = self.teacher(batch, self.temperature)
            flops = self.teacher.flops(batch)
        both = (
            Addend(next_token, weights[0] / batch.rows_total),
            Addend(Divergence(self.temperature, self.temperature**2), weights[1] / batch.rows_total, answer),
        )
        addends = {name: addend for name, addend in zip(NAMES, both, strict=False) if addend.weight}
        total, sums = features_ND.new_zeros(()), dict[str, Tensor]()
        if addends:
            total, sums_S = project(features_ND, model.head, batch.rows.target_N, [*addends.values()], clock)
            sums |= zip(addends, sums_S, strict=True)
        for n, compare in ((2, Layers.match), (3, Layers.relation)):
            if inside and weights[n]:
                found = compare(inside, own, other, batch).sum()
                total = total + weights[n] / batch.rows_total * found
                sums[NAMES[n]] = found.detach()
        parts = {name: value / batch.rows_total for name, value in sums.items()}
        return Loss(total, parts, sum(weights[1:]), flops)

    def prepare(self, batch: Batch, clock: Clock) -> None:
        """Tell the teacher that it will be asked."""
        for teacher in self.asked(clock).values():
            teacher.prepare(batch, self.temperature)

    def asked(self, clock: Clock) -> Mapping[tuple[int, float], Teacher]:
        """The teacher, in steps where something of its weighs."""
        return {(id(self.teacher), self.temperature): self.teacher} if any(self.weights(clock)[1:]) else {}

    def outline(self) -> Knowledge:
        """The same without relations, which want to know the batch's numbers and hold next to nothing."""
        return Knowledge(self.teacher, self.temperature, self.layers, lambda clock: (*self.weights(clock)[:3], 0.0))

    def release(self) -> None:
        """The stage has ended."""
        self.teacher.release()

    @torch.no_grad()
    def look(self, model: LanguageModel, batches: Sequence[Batch]) -> dict[str, float]:
        """All four on other text, unweighted; the model's mode is restored."""
        training, device = model.training, next(model.parameters()).device
        model.eval()
        micros = [micro.to(device) for batch in batches for micro in batch.micro(MICRO)]
        found = [self._sum(model, micro, Clock(0, 1), (1.0,) * len(NAMES)).parts for micro in micros]
        model.train(training)
        rows = sum(batch.rows_total for batch in batches)
        return {
            name: sum(parts[name].item() * micro.rows_total for parts, micro in zip(found, micros, strict=True)) / rows
            for name in NAMES
        }

    def flops(self, model: LanguageModel, batches: Sequence[Batch]) -> tuple[float, float]:
        """Of a look, student's and teacher's."""
        return sum(forward_flops(model, b) for b in batches), sum(self.teacher.flops(b) for b in batches)
