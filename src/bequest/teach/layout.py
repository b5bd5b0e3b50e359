"""Which ids are likely: an order of the ids, and buckets that fit it, so that sets of likely ids take few bits.

A language model's likely ids are the frequent ones. Ids are counted in order of frequency (their rank), and the ranks cut
into buckets whose width doubles along the way: a set is then, bucket by bucket, a one for each member and a zero, and of
each member its place in the bucket. With buckets of one width this is Elias-Fano's code (Elias 1974, Fano 1971), within
0.56 bits per id of the bound log2 C(V, k) for sets that could be any; the frequencies save more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

RUNS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
MOST_ORDERED = 4096
ORDER_BITS = 32
"""What an id of the order takes."""


@dataclass(frozen=True)
class Layout:
    """An order of ids and the buckets of their ranks."""

    vocabulary: int
    low: int
    """The first buckets hold 2^low ranks."""
    run: int = 0
    """After so many buckets of a width the width doubles; 0 is never."""
    frequent: tuple[int, ...] = ()
    """The first ids in the order; the others follow as they are numbered."""

    @cached_property
    def widths(self) -> Ints:
        """log2 of the ranks in each bucket."""
        if not self.run:
            return np.full(((self.vocabulary - 1) >> self.low) + 1, self.low)
        found, covered, width = [], 0, self.low
        while covered < self.vocabulary:
            needed = -(-(self.vocabulary - covered) >> width)
            found.append(np.full(min(self.run, needed), width))
            covered += min(self.run, needed) << width
            width += 1
        return np.concatenate(found)

    @cached_property
    def edges(self) -> Ints:
        """The first rank of each bucket, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(1 << self.widths)])

    @cached_property
    def _order(self) -> tuple[Ints, Ints]:
        """The frequent ids, and of each of them in ascending order how many of the others stand before it."""
        frequent = np.array(self.frequent, np.int64)
        return frequent, np.sort(frequent) - np.arange(len(frequent))

    @cached_property
    def _ranks(self) -> npt.NDArray[np.int32]:
        """Of all ids: only who encodes needs them, one layout at a time."""
        found = np.empty(self.vocabulary, np.int32)
        found[self.ids(np.arange(self.vocabulary))] = np.arange(self.vocabulary)
        return found

    def ranks(self, ids: Ints) -> Ints:
        """Where ids stand in the order."""
        return self._ranks[ids].astype(np.int64)

    def ids(self, ranks: Ints) -> Ints:
        """Which ids stand there."""
        if not self.frequent:
            return ranks
        frequent, skips = self._order
        beyond = ranks - len(frequent)
        others = beyond + np.searchsorted(skips, beyond, side="right")
        return np.where(beyond < 0, frequent[np.minimum(ranks, len(frequent) - 1)], others)

    def bits(self, rows: int, counts_V: Ints) -> float:
        """What the ids of so many rows take whose ranks occur so often; without the order itself."""
        before = np.concatenate([[0], np.cumsum(counts_V)])
        inside = np.diff(before[np.minimum(self.edges, self.vocabulary)])
        return float(rows * len(self.widths) + inside.sum() + (inside * self.widths).sum())


def fitted(vocabulary: int, row_E: Ints, ids_E: Ints, rows: int) -> Layout:
    """The best layout for `rows` rows like the sample, of which each entry has the row and the id.

    Every other row of the sample says which ids are frequent, the rows between them which layout is best.
    """
    learned = row_E % 2 == 0
    counts_V = np.bincount(ids_E[learned], minlength=vocabulary)
    by_count = np.argsort(-counts_V, kind="stable")[: int((counts_V > 1).sum())]
    seen, judged = ids_E[~learned], max(1, len(np.unique(row_E[~learned])))
    best = (np.inf, Layout(vocabulary, max(0, vocabulary.bit_length() - 1)))
    for most in sorted({0, *(min(len(by_count), size) for size in (256, 1024, MOST_ORDERED))}):
        order = Layout(vocabulary, 0, 0, tuple(by_count[:most].tolist()))
        ranks_V = np.bincount(order.ranks(seen), minlength=vocabulary)
        for layout in _buckets(order, 64 * max(1.0, len(seen) / judged)):
            bits = layout.bits(judged, ranks_V) / judged * rows + ORDER_BITS * most
            best = min(best, (bits, layout), key=lambda found: found[0])
    return best[1]


def _buckets(order: Layout, most: float) -> Iterator[Layout]:
    """Buckets that are not far more than what a row keeps."""
    for low in range(order.vocabulary.bit_length()):
        for run in RUNS:
            if run or order.vocabulary >> low <= most:
                yield replace(order, low=low, run=run)
