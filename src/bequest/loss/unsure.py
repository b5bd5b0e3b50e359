"""A loss that the student's uncertainty steers: which sequences are sent to a teacher, to which one, and how that weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..device import Place
from ..model.flops import forward_flops
from ..model.language import LanguageModel
from ..types import Batch, Clock, Loss, LossFn, Teacher
from .combine import next_token as gold
from .combine import weighted
from .hidden import Layers
from .knowledge import Knowledge
from .project import Addend, project
from .rows import CRITERIA, chance, head_flops, sequence_of
from .terms import Divergence, next_token


@dataclass(frozen=True)
class Steering:
    """What uncertainty decides; methods/dynamic.py says what the settings mean."""

    weight: float
    temperature: float
    criterion: str
    share: float
    reverse: bool
    adopt: Literal["one", "hard", "soft"]
    adjust: Literal["none", "unsure", "swapped"]
    hidden: float
    seed: int

    @property
    def taught(self) -> bool:
        """Whether anything is asked of a teacher."""
        return bool(self.weight or self.hidden)

    @property
    def ranked(self) -> bool:
        """Whether sequences are compared with each other."""
        return self.taught and (self.share < 1.0 or self.adopt == "hard")

    @property
    def felt(self) -> bool:
        """Whether the student's logits are looked at first."""
        steered = self.ranked or self.adopt == "soft" or self.adjust != "none"
        return self.taught and steered and self.criterion != "random"

    def teacher_of(self, keys: Sequence[bytes], unsure_B: Sequence[float]) -> dict[bytes, int]:
        """The number of the teacher to which each sequence is sent, for those that are sent; of equals the first ones."""
        order = sorted(range(len(keys)), key=lambda n: (unsure_B[n] if self.reverse else -unsure_B[n], n))
        sent = sorted(order[: max(1, int(len(keys) * self.share))], key=lambda n: (-unsure_B[n], n))
        half = -(-len(sent) // 2) if self.adopt == "hard" else len(sent)
        return {keys[n]: int(place >= half) for place, n in reversed([*enumerate(sent)])}

    def row_weights(self, unsure_N: Tensor | None, hidden: bool) -> float | Tensor:
        """Of predictions or hidden states in each row."""
        if self.adjust == "none" or unsure_N is None:
            return 1.0
        return unsure_N if hidden == (self.adjust == "unsure") else 1.0 - unsure_N


@dataclass
class _Sum:
    """A loss in the making."""

    rows_total: int
    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, total: Tensor, sums: Mapping[str, Tensor]) -> None:
        """Some rows more."""
        self.total = self.total + total
        for name, value in sums.items():
            self.parts[name] = self.parts.get(name, 0.0) + value / self.rows_total


class Unsure(nn.Module):
    """Next token on every row, and the teachers' predictions (and hidden states) on what is sent to them.

    Sequences are ranked over the whole batch: where it is split, in one more pass over it without gradient.
    """

    def __init__(self, steering: Steering, teachers: Sequence[Teacher], layers: Layers | None) -> None:
        super().__init__()
        self.steering, self.teachers, self.layers = steering, teachers, layers
        self.surveyed: dict[bytes, int] = {}

    def meet(self, model: LanguageModel) -> None:
        """Learn the student's sizes."""
        if self.layers:
            self.layers.meet(model)

    @torch.no_grad()
    def survey(self, model: LanguageModel, micros: Sequence[Batch], clock: Clock, place: Place) -> float:
        """Decide over a batch that comes in parts; what that takes."""
        keys: list[bytes] = []
        unsure_B: list[float] = []
        flops = 0.0
        for micro in micros if self.steering.ranked else ():
            keys += micro.keys
            here = micro.to(place.device)
            with place.autocast():
                unsure_N = self._felt(model, model.features(here)) if self.steering.felt else None
            flops += forward_flops(model, micro) if self.steering.felt else 0.0
            unsure_B += self._of_sequences(here, unsure_N, clock)
        self.surveyed = self.steering.teacher_of(keys, unsure_B) if keys else {}
        return flops

    def forward(self, model: LanguageModel, batch: Batch, clock: Clock) -> Loss:
        """The mean over `batch.rows_total`."""
        steering, sequence_N = self.steering, sequence_of(batch)
        with self.layers.of_student(model) if self.layers else nullcontext({}) as own:
            features_ND = model.features(batch)
        unsure_N = self._felt(model, features_ND.detach()) if steering.felt else None
        teacher_of = self._teacher_of(batch, unsure_N, clock)
        found, flops, rate = _Sum(batch.rows_total, features_ND.new_zeros(())), 0.0, 0.0
        for teacher in (None, 0, 1):
            numbers = [n for n, key in enumerate(batch.keys) if teacher_of.get(key) == teacher]
            rows = torch.isin(sequence_N, sequence_N.new_tensor(numbers)).nonzero()[:, 0]
            if not len(rows):
                continue
            part = batch.of(numbers)
            own_text = {"next_token": Addend(next_token, 1.0 / batch.rows_total)}
            if teacher is None:
                found.add(*_projected(model, features_ND[rows], part, own_text, clock))
                continue
            unsure_n = None if unsure_N is None else unsure_N[rows]
            states = {layer: state_BTD[numbers] for layer, state_BTD in own.items()}
            flops += self._taught(found, model, features_ND[rows], part, own_text, teacher, unsure_n, states, clock)
            rate = steering.weight
        felt = head_flops(model.head, len(sequence_N)) if steering.felt else 0.0
        return Loss(found.total, found.parts, rate, flops, felt)

    def _taught(
        self,
        found: _Sum,
        model: LanguageModel,
        features_ND: Tensor,
        batch: Batch,
        own_text: dict[str, Addend],
        teacher: int,
        unsure_N: Tensor | None,
        own: Mapping[int, Tensor],
        clock: Clock,
    ) -> float:
        """Add what is learned from a teacher about some sequences; its operations."""
        steering, each = self.steering, self.steering.weight / found.rows_total
        asked = self.teachers if steering.adopt == "soft" else [self.teachers[teacher]]
        with self.layers.of_teacher() if self.layers else nullcontext({}) as other:
            answers = [one(batch, steering.temperature) for one in asked]
        weights = [each * steering.row_weights(unsure_N, hidden=False)]
        if steering.adopt == "soft":
            assert unsure_N is not None
            weights = [weights[0] * unsure_N, weights[0] * (1.0 - unsure_N)]
        term = Divergence(steering.temperature, steering.temperature**2)
        told = zip(("distil", "larger"), weights, answers, strict=False)
        addends = own_text | {name: Addend(term, weight, answer) for name, weight, answer in told if steering.weight}
        found.add(*_projected(model, features_ND, batch, addends, clock))
        if self.layers:
            match_N = self.layers.match(own, other, batch)
            weight = steering.hidden / found.rows_total * steering.row_weights(unsure_N, hidden=True)
            found.add((weight * match_N).sum(), {"hidden": match_N.detach().sum()})
        return sum(one.flops(batch) for one in asked)

    def _felt(self, model: LanguageModel, features_ND: Tensor) -> Tensor:
        return model.head.over(features_ND, lambda logits_CV, _: CRITERIA[self.steering.criterion](logits_CV))

    def _of_sequences(self, batch: Batch, unsure_N: Tensor | None, clock: Clock) -> list[float]:
        """The mean over each sequence's rows, or a number by chance."""
        if unsure_N is None:
            return chance(batch.keys, self.steering.seed, clock.run_step)
        sum_B = unsure_N.new_zeros(len(batch.keys)).index_add_(0, sequence_of(batch), unsure_N)
        means: list[float] = (sum_B / torch.bincount(sequence_of(batch), minlength=len(sum_B)).clamp_min(1)).tolist()
        return means

    def _teacher_of(self, batch: Batch, unsure_N: Tensor | None, clock: Clock) -> dict[bytes, int]:
        if not self.steering.taught:
            return {}
        if not self.steering.ranked:
            return dict.fromkeys(batch.keys, 0)
        if len(batch.rows.target_N) != batch.rows_total:  # a part of the batch
            return self.surveyed
        return self.steering.teacher_of(batch.keys, self._of_sequences(batch, unsure_N, clock))

    def prepare(self, batch: Batch, clock: Clock) -> None:
        """Tell the teachers that they may be asked."""
        for teacher in self.asked(clock).values():
            teacher.prepare(batch, self.steering.temperature)

    def asked(self, clock: Clock) -> Mapping[tuple[int, float], Teacher]:
        """All teachers."""
        taught = self.teachers if self.steering.taught else ()
        return {(id(teacher), self.steering.temperature): teacher for teacher in taught}

    def rates(self, clock: Clock) -> tuple[float, ...]:
        """They do not move."""
        return (self.steering.weight, self.steering.hidden)

    def expected(self, model: LanguageModel, batch: Batch, clock: Clock) -> tuple[float, float]:
        """Operations of a step beyond the student's own pass: the student's, the teachers'."""
        share = max(1, int(len(batch.keys) * self.steering.share)) / len(batch.keys)
        among = 2 if self.steering.adopt == "hard" else 1
        teachers = sum(teacher.flops(batch) for teacher in self.asked(clock).values())
        felt = head_flops(model.head, len(batch.rows.target_N)) if self.steering.felt else 0.0
        return felt, share * teachers / among

    def outline(self) -> LossFn:
        """A loss that holds as much and need not know the batch's numbers: everything is sent to one teacher."""
        if not self.steering.taught:
            return weighted((1.0, gold))
        weights = (1.0, self.steering.weight, self.steering.hidden, 0.0)
        return Knowledge(self.teachers[0], self.steering.temperature, self.layers, lambda clock: weights)

    def release(self) -> None:
        """The stage has ended."""
        for teacher in self.teachers:
            teacher.release()


def _projected(
    model: LanguageModel, features_ND: Tensor, batch: Batch, addends: Mapping[str, Addend], clock: Clock
) -> tuple[Tensor, dict[str, Tensor]]:
    total, sums_S = project(features_ND, model.head, batch.rows.target_N, [*addends.values()], clock)
    return total, dict(zip(addends, sums_S, strict=True))
