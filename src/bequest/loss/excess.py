"""The next token's loss on some rows of each sequence: those that are predicted worse than by a reference, or any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.language import LanguageModel
from ..types import Batch, Clock, Loss, LossFn, Teacher
from . import terms
from .combine import next_token, weighted
from .project import Addend, project
from .rows import chance, head_flops, losses, sequence_of, told


@dataclass(frozen=True)
class ByChance:
    """The next token's loss on some rows of each sequence, drawn by chance."""

    keep: float
    seed: int

    def __call__(self, model: Any, batch: Batch, clock: Clock) -> Loss:
        """The sum over chosen rows, divided by their share of `rows_total`."""
        draws = [torch.Generator().manual_seed(int(c * 2**53)) for c in chance(batch.keys, self.seed, clock.run_step)]
        sizes = torch.bincount(sequence_of(batch).cpu(), minlength=len(draws)).tolist()
        drawn_N = torch.cat([torch.rand(size, generator=draw) for size, draw in zip(sizes, draws, strict=True)])
        features_ND = model.features(batch)
        return _learned(
            model, features_ND, batch, highest(drawn_N.to(features_ND.device), batch, self.keep), self.keep, clock
        )

    def rates(self, clock: Clock) -> tuple[float, ...]:
        """The share does not move."""
        return (self.keep,)

    def outline(self) -> LossFn:
        """A loss that holds as much and need not know the batch's numbers."""
        return weighted((1.0, next_token))


@dataclass(frozen=True)
class Excess:
    """The next token's loss on the rows with the highest excess over a reference."""

    keep: float
    reference: Teacher

    def __call__(self, model: Any, batch: Batch, clock: Clock) -> Loss:
        """One pass of the student, and one more through its head without gradient."""
        features_ND, head = model.features(batch), model.head
        if self.keep == 1.0:
            return _learned(
                model, features_ND, batch, torch.arange(len(features_ND), device=features_ND.device), 1.0, clock
            )
        answer = self.reference(batch, 1.0)
        own_N = losses(features_ND, head, batch.rows.target_N)
        excess_N = own_N + told(answer, batch.rows.target_N, len(head.weight_VD))
        loss = _learned(model, features_ND, batch, highest(excess_N, batch, self.keep), self.keep, clock)
        flops = loss.student_flops + head_flops(head, len(own_N))
        return Loss(loss.total, loss.parts, 0.0, self.reference.flops(batch), flops)

    def asked(self, clock: Clock) -> Mapping[tuple[int, float], Teacher]:
        """The reference, in every step in which there is something to choose."""
        return {(id(self.reference), 1.0): self.reference} if self.keep < 1.0 else {}

    def prepare(self, batch: Batch, clock: Clock) -> None:
        """Tell the reference that it will be asked."""
        for reference in self.asked(clock).values():
            reference.prepare(batch, 1.0)

    def rates(self, clock: Clock) -> tuple[float, ...]:
        """The share does not move."""
        return (self.keep,)

    def outline(self) -> LossFn:
        """A loss that holds as much and need not know the batch's numbers."""
        return weighted((1.0, next_token))

    def expected(self, model: LanguageModel, batch: Batch, clock: Clock) -> tuple[float, float]:
        """Operations of a step beyond the student's own pass: the student's, the reference's."""
        if self.keep == 1.0:
            return 0.0, 0.0
        rows = len(batch.rows.target_N)
        return head_flops(model.head, rows) - 3 * head_flops(
            model.head, int(rows * (1 - self.keep))
        ), self.reference.flops(batch)

    def release(self) -> None:
        """The stage has ended."""
        self.reference.release()


def highest(value_N: Tensor, batch: Batch, share: float) -> Tensor:
    """The rows with the highest values of each sequence, ascending: `share` of them, rounded up; of equals the first."""
    sequence_N = sequence_of(batch)
    order = value_N.argsort(descending=True, stable=True)
    order = order[sequence_N[order].argsort(stable=True)]  # sequence by sequence, each in descending order
    sizes_B = torch.bincount(sequence_N, minlength=len(batch.keys))
    first_B = sizes_B.cumsum(0) - sizes_B
    place_N = torch.arange(len(order), device=order.device) - first_B[sequence_N[order]]
    wanted_B = (sizes_B * share - 1e-9).ceil()
    found: Tensor = order[place_N < wanted_B[sequence_N[order]]].sort().values
    return found


def _learned(model: Any, features_ND: Tensor, batch: Batch, rows: Tensor, share: float, clock: Clock) -> Loss:
    head, target_N = model.head, batch.rows.target_N
    addend = Addend(terms.next_token, 1.0 / (share * batch.rows_total))
    total, sums_S = project(features_ND[rows], head, target_N[rows], [addend], clock)
    saved = 3 * head_flops(head, len(target_N) - len(rows))
    return Loss(total, {"next_token": sums_S[0] / (share * batch.rows_total)}, student_flops=-saved)
