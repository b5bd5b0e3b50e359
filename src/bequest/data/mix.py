"""New text with a share of old text in every batch: replay, exact in sequences and so in tokens.

What is old is a memory, a fixed part of each earlier source. Which sequences a step sees is a function of (data, seed, step,
journal): nothing is counted, so that resuming is an index here, too.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Literal

import numpy as np
import torch

from ..types import Batch, Clock, Journal, Rows
from .batches import Batches, Choice, seed_of
from .pack import Ints

Rule = Literal["uniform", "progress", "forgetting"]
FLOOR = 1e-9
"""The weight of a source on which nothing is gained any more (ELLE's released code)."""


@dataclass(frozen=True)
class Mixed:
    """Batches of `new`, in each of which `share` of the sequences come from memories instead.

    After any number of steps the number of old sequences is the whole number below its share of all: floor(share x size x steps).
    """

    new: Batches
    memories: tuple[Batches, ...]
    """One per earlier source."""
    share: float
    rule: Rule = "uniform"
    """How often each memory is drawn from: in turn, by how much is gained per token there, or by how much has been forgotten."""
    start: int = 0
    """Steps that are skipped."""

    @property
    def size(self) -> int:
        """Sequences per step."""
        return self.new.size

    @property
    def count(self) -> int:
        """New sequences per epoch."""
        return self.new.count

    def settle(self) -> float:
        """Make the choice of new sequences."""
        return self.new.settle()

    def choose(self, choice: Choice) -> Mixed:
        """Chosen sequences of the new text alone."""
        return replace(self, new=self.new.choose(choice))

    @property
    def sources(self) -> tuple[str, ...]:
        """The new domains."""
        return self.new.sources

    def __getitem__(self, step: int) -> Batch:
        return self.of(self.places(step))

    def at(self, clock: Clock) -> Batch:
        """The batch of a clock's step, with the journal up to then."""
        return self.of(self.places(clock.step), clock)

    def places(self, step: int) -> Ints:
        """Where a step's sequences stand in the endless list."""
        first = (self.start + step) * self.size
        return np.arange(first, first + self.size)

    def examples(self, places: Ints) -> Ints:
        """A number for each place; repetitions are not looked for."""
        return places

    def skip(self, steps: int) -> Mixed:
        """The same batches from a later step on."""
        return replace(self, start=self.start + steps)

    def reserve(self, sequences: int) -> tuple[Mixed, list[Batch]]:
        """The same without some of the new sequences, and those."""
        new, held = self.new.reserve(sequences)
        return replace(self, new=new), held

    def of(self, places: Ints, clock: Clock | None = None) -> Batch:
        """The sequences at some places; without a clock memories are drawn from as before the first look at them."""
        weights = self.weights(clock.journal, clock.done) if clock else None
        found = [self._from(int(place), weights) for place in places]
        # One batch for each stretch of places from one list.
        parts = [(key, [place for _, place in group]) for key, group in groupby(found, key=lambda one: one[0])]
        return joined([self._lists[key].of(np.array(inside)) for key, inside in parts])

    def replayed(self, steps: int) -> int:
        """Old sequences in so many first steps."""
        return int(self._share * self.size * steps)

    @cached_property
    def _share(self) -> Fraction:
        return Fraction(self.share).limit_denominator(1_000_000_000)  # a third is meant as a third

    @property
    def _lists(self) -> tuple[Batches, ...]:
        return (self.new, *self.memories)

    def _from(self, place: int, weights: Sequence[float] | None) -> tuple[int, int]:
        """Which list a place takes its sequence from (0 is the new text), and from where in it."""
        step, slot = divmod(place, self.size)
        before, after = self.replayed(step), self.replayed(step + 1)
        fresh = self.size - (after - before)
        if slot < fresh:
            return 0, place - before
        number = before + slot - fresh
        if weights is None:
            turn, which = divmod(number, len(self.memories))
            return 1 + which, turn
        chance = seed_of(self.new.seed, number) / 2**63 * math.fsum(weights)
        which = bisect_right(list(accumulate(weights)), chance)
        return 1 + min(which, len(self.memories) - 1), number

    def weights(self, journal: Journal, done: float) -> list[float] | None:
        """How often each memory is drawn from, in proportion; None for in turn.

        `progress` is ELLE's (its released code): what the loss has fallen per replayed token between the last two looks; where
        it has not fallen, as much as the best of all in the first half of a stage, and next to nothing in the second.
        `forgetting` is the perplexity now less the lowest one seen.
        """
        names = [memory.sources[0] for memory in self.memories]
        looks = [entry.values for entry in journal if all(name in entry.values for name in names)]
        if self.rule == "uniform" or len(looks) < (2 if self.rule == "progress" else 1):
            return None
        if self.rule == "forgetting":
            low = {name: min(look[name] for look in looks) for name in names}
            return [max(FLOOR, math.exp(looks[-1][name]) - math.exp(low[name])) for name in names]
        return _progress(names, looks, done)


def _progress(names: Sequence[str], looks: Sequence[Mapping[str, float]], done: float) -> list[float]:
    shares = [1.0 / len(names)] * len(names)
    for before, now in pairwise(looks):
        gains = [(before[name] - now[name]) / share for name, share in zip(names, shares, strict=True)]
        best = max(*gains, FLOOR)
        found = [max(gain, FLOOR) if gain > 0 else best if done < 0.5 else FLOOR for gain in gains]
        shares = [one / math.fsum(found) for one in found]
    return shares


def joined(parts: Sequence[Batch]) -> Batch:
    """The sequences of several batches of one length as one batch, in order."""
    if len(parts) == 1:
        return parts[0]
    length = parts[0].tokens_BT.shape[1]
    firsts = accumulate((len(part.keys) for part in parts), initial=0)
    index_N = torch.cat([part.rows.index_N + first * length for part, first in zip(parts, firsts, strict=False)])
    return Batch(
        torch.cat([part.tokens_BT for part in parts]),
        torch.cat([part.segments_BT for part in parts]),
        Rows(index_N, torch.cat([part.rows.target_N for part in parts])),
        max(1, len(index_N)),
        all(part.whole for part in parts),
        tuple(source for part in parts for source in part.sources),
        tuple(key for part in parts for key in part.keys),
    )


Stream = Batches | Mixed
"""What a stage learns from."""
