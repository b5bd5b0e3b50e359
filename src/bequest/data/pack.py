"""Tokens -> sequences. Packing depends on the tokens, the length and the overlap, and on nothing else.

A causal window holds T+1 tokens and shares the last one with the next window, so that every token is a target once; a
masked window holds T tokens and shares none. The last window of a source is filled up with padding (segment -1).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .tokens import TokenStore

Ints = npt.NDArray[np.int64]


def _chance(number: int) -> float:
    """A number in 0 to 1 that depends on `number` alone."""
    return int.from_bytes(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=7).digest(), "little") / 2**56


@dataclass(frozen=True)
class Pack:
    """The sequences of one source."""

    store: TokenStore
    length: int
    """T, positions per sequence."""
    overlap: int
    """1 for causal windows, 0 for masked ones."""
    prompt: int | None = None
    """The id of the source's prompt, if it has one: it stands in place of the first token of every document in a window."""
    prompt_drop: float = 0.0
    """The share of windows that go without, so that a model learns to do without."""

    def __len__(self) -> int:
        return max(1, -(-(len(self.store.tokens) - self.overlap) // self.length))

    def window(self, number: int) -> tuple[Ints, Ints]:
        """Tokens and segments (the document's number within the window) of one sequence, T + overlap each."""
        start = number * self.length
        stop = min(start + self.length + self.overlap, len(self.store.tokens))
        tokens = np.zeros(self.length + self.overlap, np.int64)
        segments = np.full(self.length + self.overlap, -1, np.int64)
        tokens[: stop - start] = self.store.tokens[start:stop]
        ends: Any = self.store.ends
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        segments[: stop - start] = np.searchsorted(ends[first : last + 1], np.arange(start, stop), side="right")
        if self.prompt is not None and not (self.prompt_drop and _chance(start) < self.prompt_drop):
            begins = np.diff(segments, prepend=-1) > 0
            # What is overwritten is the document's BOS, or in its middle a token that the window before has as a target.
            tokens[begins] = self.prompt
        return tokens, segments

    @property
    def policy(self) -> bytes:
        """What a sequence's key depends on beside its tokens."""
        return f"{self.length}:{self.overlap}".encode()
