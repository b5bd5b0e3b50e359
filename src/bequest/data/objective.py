"""What is learned from a sequence: the next token, or the masked ones. Both end in the same `Rows`.

From here on nothing asks which objective it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from .pack import Ints
from .tokenizer import Vocabulary

Example = tuple[Ints, Ints, Ints, Ints]
"""Input tokens and segments [T], selected positions and their targets [n]."""


class Objective(Protocol):
    """Turns a window into an example. What is random in it depends on the window and the epoch alone (None: validation)."""

    @property
    def overlap(self) -> int:
        """Tokens that a window shares with the next one."""
        ...

    @property
    def policy(self) -> str:
        """What an example depends on beside the window."""
        ...

    @property
    def static(self) -> bool:
        """Whether a window makes the same example in every epoch."""
        ...

    def __call__(self, tokens: Ints, segments: Ints, epoch: int | None) -> Example: ...


@dataclass(frozen=True)
class Causal:
    """Every next token inside a document; nothing is random."""

    overlap: ClassVar[int] = 1
    policy: ClassVar[str] = "every next token inside a document"
    static: ClassVar[bool] = True

    def __call__(self, tokens: Ints, segments: Ints, epoch: int | None) -> Example:
        inside = (segments[:-1] == segments[1:]) & (segments[1:] >= 0)
        positions = np.flatnonzero(inside)
        return tokens[:-1], segments[:-1], positions, tokens[1:][positions]


@dataclass(frozen=True)
class Masked:
    """BERT's masked tokens (Devlin et al. 2019, section 3.1): of the selected positions 80 % become the mask token,
    10 % a random token, 10 % stay. Special tokens and padding are never selected.

    The masks of a window are the same whatever stands beside it and in which order it comes: a store of signals holds
    for every run that has the same mask seed.
    """

    overlap: ClassVar[int] = 0
    vocabulary: Vocabulary
    share: float
    seed: int = 0
    static: bool = False
    """Whether a window has the same masks in every epoch."""

    @property
    def policy(self) -> str:
        """The masks' share, seed and course."""
        return f"masks of {self.share}, seed {self.seed}, {'static' if self.static else 'new every epoch'}"

    def __call__(self, tokens: Ints, segments: Ints, epoch: int | None) -> Example:
        window = int.from_bytes(
            hashlib.blake2b(tokens.tobytes() + segments.tobytes(), digest_size=16).digest(), "little"
        )
        draw = (0, 0) if epoch is None else (1 + self.seed, 0 if self.static else epoch)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*draw, window))))
        chance, fate = rng.random(len(tokens)), rng.random(len(tokens))
        eligible = (segments >= 0) & ~np.isin(tokens, self.vocabulary.special)
        positions = np.flatnonzero(eligible & (chance < self.share))
        corrupted = tokens.copy()
        swapped = rng.choice(self._ordinary, len(positions))
        assert self.vocabulary.mask is not None
        kept = np.where(fate[positions] < 0.9, swapped, tokens[positions])
        corrupted[positions] = np.where(fate[positions] < 0.8, self.vocabulary.mask, kept)
        return corrupted, segments, positions, tokens[positions]

    @cached_property
    def _ordinary(self) -> Ints:
        return np.setdiff1d(np.arange(self.vocabulary.size), self.vocabulary.special)
