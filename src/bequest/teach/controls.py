"""Placebos: wrappers that take a teacher's place and show what part of a gain is not knowledge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..types import Answer, Batch, Signal, Teacher
from .live import without_rest


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
class Renormalised:
    """Drops the rest and scales the kept entries up to one: what most programs do, and biased."""

    teacher: Teacher

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        return _Changed(self.teacher(batch, temperature), without_rest)

    def prepare(self, batch: Batch, temperature: float) -> None:
        self.teacher.prepare(batch, temperature)

    def flops(self, batch: Batch) -> float:
        return self.teacher.flops(batch)

    def release(self) -> None:
        self.teacher.release()


@dataclass(frozen=True)
class Shuffled:
    """Gives every row the signal of another row of its sequence: soft targets of the same shape that know nothing of it."""

    teacher: Teacher

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        index_N = batch.rows.index_N
        of_row = (index_N // batch.tokens_BT.shape[1]).tolist()
        source_N = np.arange(len(index_N))
        for number, key in enumerate(batch.keys):  # by the sequence's key: no micro-batch changes it
            own = np.flatnonzero(np.asarray(of_row) == number)
            order = np.random.Generator(np.random.Philox(int.from_bytes(key, "little"))).permutation(own)
            source_N[order] = np.roll(order, 1)  # one cycle: no row keeps its own, unless it is alone
        return _Moved(self.teacher(batch, temperature), torch.from_numpy(source_N).to(index_N.device))

    def prepare(self, batch: Batch, temperature: float) -> None:
        self.teacher.prepare(batch, temperature)

    def flops(self, batch: Batch) -> float:
        return self.teacher.flops(batch)

    def release(self) -> None:
        self.teacher.release()


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
    "uniform": lambda teacher, vocabulary: Uniform(vocabulary),
}
