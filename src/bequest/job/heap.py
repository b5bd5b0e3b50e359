"""What the C library's heap makes of a step's tensors: its high-water mark is what a process on a CPU really holds.

glibc serves PyTorch's aligned requests by cutting a larger block, and hands out the cut-off gaps of 32 to 96 bytes to
whatever small object asks next. A gap that is taken keeps the hole beside it from ever fitting the same request again,
so the heap grows by a quarter to the double before it is steady. Nothing is given back (device.keep_freed_memory).
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterable

ALIGNMENT, HEADER, SMALLEST = 64, 16, 32
TAKEN = 0.08
"""Share of the gaps that small objects take; fitted to nine runs (LOG.md, "Memory estimates")."""

Event = tuple[int, int]
"""A block's number and its bytes when it is asked for, -1 when it is freed."""


class _Heap:
    def __init__(self) -> None:
        self.top = 0
        self.blocks: dict[int, tuple[int, int]] = {}
        self._holes: list[tuple[int, int]] = []  # (size, start), sorted: the smallest that fits is the first
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}
        self._chance = random.Random(0)

    def ask(self, number: int, size: int) -> None:
        """Best fit, or from the top."""
        block = max(SMALLEST, -(-(size + 8) // 16) * 16)
        wanted = block + ALIGNMENT + SMALLEST
        start, found = self._hole(wanted)
        aligned = -(-(start + HEADER) // ALIGNMENT) * ALIGNMENT - HEADER
        aligned += ALIGNMENT if 0 < aligned - start < SMALLEST else 0
        rest = start + found - aligned - block
        self._leave(start, aligned - start)
        self._leave(aligned + block, rest)
        self.blocks[number] = (aligned, block)

    def free(self, number: int) -> None:
        """Join the block with the holes on both sides."""
        start, size = self.blocks.pop(number)
        if start in self._by_end:
            start, size = self._by_end[start], size + self._take(self._by_end[start])
        if start + size in self._by_start:
            size += self._take(start + size)
        self._put(start, size)

    def _hole(self, wanted: int) -> tuple[int, int]:
        place = bisect_left(self._holes, (wanted, -1))
        if place < len(self._holes):
            size, start = self._holes[place]
            self._take(start)
            return start, size
        start = self.top
        if start in self._by_end:
            start = self._by_end[start]
            self._take(start)
        self.top = start + wanted
        return start, wanted

    def _leave(self, start: int, size: int) -> None:
        gap = size <= ALIGNMENT + SMALLEST
        if size >= SMALLEST and not (gap and self._chance.random() < TAKEN):
            self._put(start, size)

    def _put(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._by_start[start], self._by_end[start + size] = size, start

    def _take(self, start: int) -> int:
        size = self._by_start.pop(start)
        del self._by_end[start + size]
        del self._holes[bisect_left(self._holes, (size, start))]
        return size


def high_water(events: Iterable[Event]) -> int:
    """Bytes that the heap takes while these blocks come and go."""
    heap = _Heap()
    for number, size in events:
        if size >= 0:
            heap.ask(number, size)
        else:
            heap.free(number)
    return heap.top
