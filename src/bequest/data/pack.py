"""Tokens -> sequences. Packing depends on the tokens, the length and the overlap, and on nothing else.

A causal window holds T+1 tokens and shares the last one with the next window, so that every token is a target once; a
masked window holds T tokens and shares none. The last window of a source is filled up with padding (segment -1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .tokens import TokenStore

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pack:
    """The sequences of one source."""

    store: TokenStore
    length: int
    """T, positions per sequence."""
    overlap: int
    """1 for causal windows, 0 for masked ones."""

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
        return tokens, segments

    @property
    def policy(self) -> bytes:
        """What a sequence's key depends on beside its tokens."""
        return f"{self.length}:{self.overlap}".encode()
