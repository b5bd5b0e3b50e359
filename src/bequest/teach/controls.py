"""Placebos: wrappers that take a teacher's place and show what part of a gain is not knowledge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..types import Answer, Batch, Signal, Teacher
from .live import without_rest

LEAST = 1e-30
"""Share of smoothing that is next to none: its logarithm is finite in fp32."""


@dataclass(frozen=True)
class _Changed:
    answer: Answer
    change: Callable[[Signal], Signal]

    def __getitem__(self, rows: Any) -> Signal:
        return self.change(self.answer[rows])


@dataclass(frozen=True)
class _Moved:
    answer: Answer
    source_N: Tensor

    def __getitem__(self, rows: Any) -> Signal:
        return self.answer[self.source_N[rows]]


@dataclass(frozen=True)
class _Flat:
    vocabulary: int
    batch: Batch

    def __getitem__(self, rows: Any) -> Signal:
        target_C = self.batch.rows.target_N[rows]
        logp = torch.full((1, 1), -math.log(self.vocabulary), device=target_C.device)
        return Signal(None, logp.expand(len(target_C), self.vocabulary), None)


@dataclass(frozen=True)
class _Smooth:
    answer: Answer
    vocabulary: int
    batch: Batch

    def __getitem__(self, rows: Any) -> Signal:
        target_C = self.batch.rows.target_N[rows]
        share_C = smoothing(self.answer[rows].entropy(), self.vocabulary)
        told_C = torch.log1p(-share_C * (1.0 - 1.0 / self.vocabulary))
        other_C1 = (share_C / self.vocabulary).log().float()[:, None]
        logp_CV = other_C1.expand(-1, self.vocabulary).scatter(1, target_C[:, None], told_C.float()[:, None])
        return Signal(None, logp_CV, None)


def smoothing(entropy_C: Tensor, vocabulary: int) -> Tensor:
    """The share e for which (1 - e) on one id and e / V on every id have these entropies, in fp64.

    Newton's steps from the left: the entropy is concave and rises in e, so no step goes too far. Twenty leave a relative
    error of the entropy below 1e-6; at e = 1, where the slope is zero, each divides it by four.
    """
    wanted_C = entropy_C.double().clamp(0.0, math.log(vocabulary))
    share_C, away = torch.full_like(wanted_C, LEAST), 1.0 - 1.0 / vocabulary
    for _ in range(20):
        off_C, told_C, other_C = share_C * away, (-share_C * away).log1p(), (share_C / vocabulary).log()
        reached_C = -(1.0 - off_C) * told_C - off_C * other_C
        slope_C = away * (told_C - other_C)
        share_C = (share_C + (wanted_C - reached_C).clamp_min(0.0) / slope_C.clamp_min(LEAST)).clamp_max(1.0)
    return share_C


@dataclass(frozen=True)
class _InPlace(ABC):
    """Stands in a teacher's place, costs what it costs, and says something else."""

    teacher: Teacher

    @abstractmethod
    def __call__(self, batch: Batch, temperature: float) -> Answer: ...

    def prepare(self, batch: Batch, temperature: float) -> None:
        self.teacher.prepare(batch, temperature)

    def flops(self, batch: Batch) -> float:
        return self.teacher.flops(batch)

    def release(self) -> None:
        self.teacher.release()


@dataclass(frozen=True)
class Renormalised(_InPlace):
    """Drops the rest and scales the kept entries up to one: what most programs do, and biased."""

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        return _Changed(self.teacher(batch, temperature), without_rest)


@dataclass(frozen=True)
class Shuffled(_InPlace):
    """Gives every row the signal of another row of its sequence: soft targets of the same shape that know nothing of it."""

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        index_N = batch.rows.index_N
        of_row = (index_N // batch.tokens_BT.shape[1]).tolist()
        source_N = np.arange(len(index_N))
        for number, key in enumerate(batch.keys):  # by the sequence's key: no micro-batch changes it
            own = np.flatnonzero(np.asarray(of_row) == number)
            order = np.random.Generator(np.random.Philox(int.from_bytes(key, "little"))).permutation(own)
            source_N[order] = np.roll(order, 1)  # one cycle: no row keeps its own, unless it is alone
        return _Moved(self.teacher(batch, temperature), torch.from_numpy(source_N).to(index_N.device))


@dataclass(frozen=True)
class Smoothed(_InPlace):
    """Label smoothing, in every row as unsure as the teacher: what it knows of how hard a row is, and nothing else."""

    vocabulary: int

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        return _Smooth(self.teacher(batch, temperature), self.vocabulary, batch)


@dataclass(frozen=True)
class Uniform:
    """Every id equally likely: distilling from it is label smoothing with the teacher's weight. Costs no model."""

    vocabulary: int

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        return _Flat(self.vocabulary, batch)

    def prepare(self, batch: Batch, temperature: float) -> None:
        pass

    def flops(self, batch: Batch) -> float:
        return 0.0

    def release(self) -> None:
        pass


CONTROLS: dict[str, Callable[[Teacher, int], Teacher]] = {
    "none": lambda teacher, vocabulary: teacher,
    "renormalise": lambda teacher, vocabulary: Renormalised(teacher),
    "shuffle": lambda teacher, vocabulary: Shuffled(teacher),
    "smooth": Smoothed,
    "uniform": lambda teacher, vocabulary: Uniform(vocabulary),
    "untrained": lambda teacher, vocabulary: teacher,  # its model is another one, and it is loaded as such
}
