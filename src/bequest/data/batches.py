"""`batches[step]`: the global batch of any step, as a pure function of (data, seed, step).

The sequences of all sources form one list. An epoch visits it in a pseudo-random order that is computed, not stored
(a Feistel permutation), so that resuming is an index and a billion sequences cost no memory.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch

from ..types import Batch, Clock, Rows
from .objective import Objective
from .pack import Ints, Pack

ROUNDS = 6


def permuted(index: Ints, count: int, key: int) -> Ints:
    """Where a keyed permutation of 0..count-1 sends each index.

    A balanced Feistel network on the smallest even number of bits that holds `count`; results outside are sent through
    again until they fall inside (cycle walking), which keeps it a permutation.
    """
    half = max(1, (max(1, count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    result = index.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (_scramble(right, key * ROUNDS + turn) & mask)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= count
    return result.astype(np.int64)


def _scramble(values: np.ndarray, key: int) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014) over value and key."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64((key * 0x9E3779B97F4A7C15 + 0x1234567) & (2**64 - 1))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Choice:
    """Some of a list of sequences. How many is known at once; which ones only when the first batch is wanted."""

    count: int
    find: Callable[[], Ints]
    """Their numbers, ascending."""
    flops: Callable[[], float]
    """Floating-point operations that finding them takes, or has taken."""

    @cached_property
    def numbers(self) -> Ints:
        """Found once."""
        return self.find()


@dataclass(frozen=True)
class Batches:
    """Batches of `size` sequences, endless: after the last sequence a new epoch begins in a new order."""

    packs: tuple[Pack, ...]
    objective: Objective
    size: int
    seed: int
    start: int = 0
    """Steps that are skipped."""
    held: tuple[int, int] | None = None
    """A range of sequences, in an order of its own; None is all."""
    ordered: bool = False
    """Whether sequences come in their packed order, with the same masks for ever (validation)."""
    choice: Choice | None = None
    """Which sequences there are at all; None is every one."""

    def __getitem__(self, step: int) -> Batch:
        return self.of(self.places(step))

    def __len__(self) -> int:
        """Steps per epoch, the last one possibly short (only `once` gives it short)."""
        return -(-self.count // self.size)

    @property
    def new(self) -> Batches:
        """These: nothing in them is replayed."""
        return self

    def places(self, step: int) -> Ints:
        """Where a step's sequences stand in the endless list."""
        first = (self.start + step) * self.size
        return np.arange(first, first + self.size)

    def examples(self, places: Ints) -> Ints:
        """A number for each place, equal where the examples are equal because an epoch repeats them."""
        return self._sequences(places)[1] if self.objective.static else places

    def at(self, clock: Clock) -> Batch:
        """The batch of a clock's step."""
        return self[clock.step]

    def skip(self, steps: int) -> Batches:
        """The same batches from a later step on."""
        return replace(self, start=self.start + steps)

    def only(self, *sources: str) -> Batches:
        """The sequences of some sources alone."""
        assert (self.held, self.choice) == (None, None), "choose sources first, then sequences"
        return replace(self, packs=tuple(p for p in self.packs if p.store.source in sources))

    def choose(self, choice: Choice) -> Batches:
        """Chosen sequences alone, as if there were no others; numbered as `packs` has them, one source after the other."""
        assert (self.held, self.choice) == (None, None), "choose first, then reserve"
        return replace(self, choice=choice)

    def settle(self) -> float:
        """Make the choice if there is one to make, and say how many floating-point operations it takes."""
        if self.choice is None:
            return 0.0
        assert len(self.choice.numbers) == self.choice.count
        return self.choice.flops()

    def reserve(self, sequences: int) -> tuple[Batches, list[Batch]]:
        """Batches without some sequences, and those sequences as fixed batches, for rewards and comparisons in training.

        Which sequences are reserved depends on the data alone, not on the seed. At most a tenth of the data.
        """
        low, high = self._range
        cut = high - max(1, min(sequences, (high - low) // 10))
        return replace(self, held=(low, cut)), list(replace(self, held=(cut, high), ordered=True).once())

    def part(self, share: float) -> Batches:
        """A fixed part of the sequences, at least one; which ones depends on the data alone."""
        low, high = self._range
        return replace(self, held=(low, low + max(1, round(share * (high - low)))))

    def once(self) -> Iterator[Batch]:
        """Every sequence once, the last batch short."""
        for first in range(0, self.count, self.size):
            yield self.of(np.arange(first, min(first + self.size, self.count)))

    @property
    def sources(self) -> tuple[str, ...]:
        """The domains, in the recipe's order."""
        return tuple(dict.fromkeys(p.store.source for p in self.packs))

    @property
    def count(self) -> int:
        """Sequences per epoch."""
        low, high = self._range
        return high - low

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(p) for p in self.packs))

    @property
    def whole(self) -> int:
        """Sequences that there are, reserved ones among them."""
        return self.choice.count if self.choice else self._ends[-1]

    @property
    def _range(self) -> tuple[int, int]:
        return self.held or (0, self.whole)

    def _sequences(self, places: Ints) -> tuple[Ints, Ints]:
        """Epoch and number of the sequence at each place of the endless list."""
        low, high = self._range
        epochs, inside = np.divmod(places, high - low)
        if not self.ordered:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                inside[here] = permuted(inside[here], high - low, seed_of(self.seed, int(epoch)))
        inside = low + inside
        if self.held:  # reserved sequences are spread over the data, not its last ones
            inside = permuted(inside, self.whole, seed_of(len(self.packs), self.whole))
        return epochs, self.choice.numbers[inside] if self.choice else inside

    def of(self, places: Ints) -> Batch:
        """The sequences at some places of the endless list."""
        examples, sources, keys = [], [], []
        for epoch, number in zip(*self._sequences(places), strict=True):
            which = bisect_right(self._ends, number)
            pack = self.packs[which]
            inside = int(number) - (self._ends[which] - len(pack))
            example = self.objective(*pack.window(inside), None if self.ordered else int(epoch))
            examples.append(example)
            sources.append(pack.store.source)
            content = b"".join(array.tobytes() for array in example)
            keys.append(hashlib.blake2b(content + pack.policy, digest_size=16).digest())
        return _collate(examples, tuple(sources), tuple(keys))


def _collate(examples: list[tuple[Ints, Ints, Ints, Ints]], sources: tuple[str, ...], keys: tuple[bytes, ...]) -> Batch:
    tokens, segments, positions, targets = zip(*examples, strict=True)
    length = len(tokens[0])
    index_N = np.concatenate([p + number * length for number, p in enumerate(positions)])
    rows = Rows(torch.from_numpy(index_N), torch.from_numpy(np.concatenate(targets)))
    return Batch(
        torch.from_numpy(np.stack(tokens)),
        torch.from_numpy(np.stack(segments)),
        rows,
        max(1, len(index_N)),
        not any(s.any() for s in segments),
        sources,
        keys,
    )
