"""What is learned from a sequence: the next token, or the masked ones. Both end in the same `Rows`.

From here on nothing asks which objective it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from .pack import Ints
from .tokenizer import Vocabulary

Example = tuple[Ints, Ints, Ints, Ints]
"""Input tokens and segments [T], selected positions and their targets [n]."""


class Objective(Protocol):
    """Turns a window into an example; `draw` seeds whatever is random in it."""

    @property
    def overlap(self) -> int:
        """Tokens that a window shares with the next one."""
        ...

    def __call__(self, tokens: Ints, segments: Ints, draw: tuple[int, ...]) -> Example: ...


@dataclass(frozen=True)
class Causal:
    """Every next token inside a document; nothing is random."""

    overlap: ClassVar[int] = 1

    def __call__(self, tokens: Ints, segments: Ints, draw: tuple[int, ...]) -> Example:
        inside = (segments[:-1] == segments[1:]) & (segments[1:] >= 0)
        positions = np.flatnonzero(inside)
        return tokens[:-1], segments[:-1], positions, tokens[1:][positions]


@dataclass(frozen=True)
class Masked:
    """BERT's masked tokens (Devlin et al. 2019, section 3.1): of the selected positions 80 % become the mask token,
    10 % a random token, 10 % stay. Special tokens and padding are never selected."""

    overlap: ClassVar[int] = 0
    vocabulary: Vocabulary
    share: float

    def __call__(self, tokens: Ints, segments: Ints, draw: tuple[int, ...]) -> Example:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(draw)))
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
