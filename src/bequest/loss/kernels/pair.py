"""The common pair of terms: the realised token and what a predecessor said about the same rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...types import Signal


@dataclass(frozen=True)
class Pair:
    """What is wanted of C rows: `gold_C` x cross-entropy with the target + `told_C` x KL(signal || student at `temperature`).

    A weight of None leaves its half out; weights are fp32, one for each row.
    """

    target_C: Tensor
    gold_C: Tensor | None
    told_C: Tensor | None = None
    signal_C: Signal | None = None
    temperature: float = 1.0

    def __getitem__(self, rows: slice) -> Pair:
        return Pair(
            self.target_C[rows],
            None if self.gold_C is None else self.gold_C[rows],
            None if self.told_C is None else self.told_C[rows],
            None if self.signal_C is None else self.signal_C[rows],
            self.temperature,
        )
