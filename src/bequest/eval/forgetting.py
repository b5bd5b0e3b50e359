"""What a life in stages has learned and forgotten: the matrix of losses and the numbers that the literature draws from it.

R[t, i] is minus the loss (nats) on domain i after part t; t = 0 is the model before training. PPL[t, i] is exp of the loss.
Papers differ in denominators and signs, so that every number here has its formula beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMULAS = {
    "AP": "exp(mean over domains i seen by t of log PPL[t, i])",
    "AP+": "mean over domains i learned before t of PPL[t, i] - PPL[home of i, i]",
    "forgetting": "mean over domains i learned before t of (max over home of i <= s < t of R[s, i]) - R[t, i]",
    "backward transfer": "mean over domains i learned before t of R[t, i] - R[home of i, i]",
    "forward transfer": "mean over domains i learned by t, but not in part 1, of R[home of i - 1, i] - R[0, i]",
}
"""At t; the home of a domain is the part in which it was learned, 1 for the first."""


@dataclass(frozen=True)
class Matrix:
    """Losses on every domain, before training and after each part."""

    parts: tuple[str, ...]
    home: Mapping[str, int]
    """The part that taught a domain, 1 for the first; a domain that none teaches is not in it."""
    loss: Sequence[Mapping[str, float]]
    """By domain; 1 + as many as parts have ended."""

    def average(self, t: int) -> float | None:
        """AP after part t (Qin et al. 2022, ELLE)."""
        mean = _mean([self.loss[t][i] for i in self._seen(t)])
        return None if mean is None else math.exp(min(mean, 700.0))

    def increase(self, t: int) -> float | None:
        """AP+ after part t (the same)."""
        return _mean([self._perplexity(t, i) - self._perplexity(self.home[i], i) for i in self._seen(t - 1)])

    def forgetting(self, t: int) -> float | None:
        """Against the best that there was (Chaudhry et al. 2018, arXiv 1801.10112)."""
        return _mean(
            [self.loss[t][i] - min(self.loss[s][i] for s in range(self.home[i], t)) for i in self._seen(t - 1)]
        )

    def backward(self, t: int) -> float | None:
        """Against what it was when it had been learned (Lopez-Paz and Ranzato 2017, arXiv 1706.08840)."""
        return _mean([self.loss[self.home[i]][i] - self.loss[t][i] for i in self._seen(t - 1)])

    def forward(self, t: int) -> float | None:
        """What earlier parts gave to a domain before it was learned (the same paper)."""
        return _mean([self.loss[0][i] - self.loss[self.home[i] - 1][i] for i in self._seen(t) if self.home[i] > 1])

    def numbers(self) -> dict[str, list[float | None]]:
        """Every number after every part that has ended."""
        each: dict[str, Callable[[int], float | None]] = {
            "AP": self.average,
            "AP+": self.increase,
            "forgetting": self.forgetting,
            "backward transfer": self.backward,
            "forward transfer": self.forward,
        }
        return {name: [number(t) for t in range(1, len(self.loss))] for name, number in each.items()}

    def plain(self) -> dict[str, Any]:
        """As a summary holds it."""
        loss = [dict(row) for row in self.loss]
        return {"parts": list(self.parts), "home": dict(self.home), "loss": loss, **self.numbers()}

    def _seen(self, t: int) -> list[str]:
        return [i for i, home in self.home.items() if home <= t]

    def _perplexity(self, t: int, i: str) -> float:
        return math.exp(min(self.loss[t][i], 700.0))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
