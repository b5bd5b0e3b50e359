"""What a predecessor says about some rows <-> bytes. Vectorised over rows and entries; nothing here knows a model.

A block holds R rows, of which row r keeps k_r ids, E in all:

    E                4 bytes; how many entries
    scalars          [R, S] fixed point of 2 bytes (1/1024 nat, -32 to 32, -32768 is minus infinity), or fp32
    high             per row and per bucket of the layout a one for each kept id in it, then a zero
    low              of every id its place in its bucket
    values           topk: 6 bits each, steps of 1/4 nat down from 0 (error 1/8 nat, 15.75 at most), or fp32;
                     sampled: n bits per row, in which k_r ones end the runs of draws of each id

Ids are sets, and come back in the layout's order: any other order would cost log2 k! bits more. The high part tells the k_r
for nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import lgamma, log
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..types import DataError
from .layout import Ints, Layout

Floats = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]

MOST_IDS = 1 << 20
STEP, BITS = 0.25, 6
"""Of quantised log-probabilities: a step of s nats costs about s^2 / 24 nats of KL."""
FIXED = 1024
_HEAD = struct.Struct("<I")


@dataclass(frozen=True)
class Entries:
    """What is kept of R rows: E entries, row after row; within a row every id once, in any order."""

    sizes_R: Ints
    """k_r, kept ids of each row."""
    ids_E: Ints
    values_E: Floats
    """topk: log-probabilities at temperature 1; sampled: how often each id was drawn."""
    scalars_RS: Floats
    """Whatever else is kept of a row, in nats."""


@dataclass(frozen=True)
class Codec:
    """How entries become bytes. `draws` 0 is topk."""

    vocabulary: int
    draws: int
    scalars: int
    layout: Layout
    values: Literal["6bit", "fp32"] = "6bit"

    def encode(self, entries: Entries) -> bytes:
        """One block."""
        assert self.vocabulary <= MOST_IDS
        rows, count, buckets = len(entries.sizes_R), len(entries.ids_E), len(self.layout.widths)
        row_E, ranks_E = np.repeat(np.arange(rows), entries.sizes_R), self.layout.ranks(entries.ids_E)
        order = np.argsort(row_E * self.vocabulary + ranks_E, kind="stable")
        ranks_E, values_E = ranks_E[order], entries.values_E[order]
        bucket_E = np.searchsorted(self.layout.edges, ranks_E, side="right") - 1
        high = np.zeros(count + rows * buckets, np.uint8)
        high[np.arange(count) + row_E * buckets + bucket_E] = 1
        low = _pack(ranks_E - self.layout.edges[bucket_E], self.layout.widths[bucket_E])
        parts = [_bits(high), low, self._encode_values(values_E, rows)]
        return b"".join([_HEAD.pack(count), self._encode_scalars(entries.scalars_RS), *(p.tobytes() for p in parts)])

    def decode(self, block: Octets, rows: int) -> Entries:
        """The entries of a block of so many rows; ids and counts as they were, values within their step.

        Raises DataError when the bytes cannot be a block of so many rows.
        """
        count, *_ = _HEAD.unpack(block[: _HEAD.size].tobytes()) if len(block) >= _HEAD.size else (0,)
        buckets, at = len(self.layout.widths), _HEAD.size

        def take(octets: int) -> Octets:
            nonlocal at
            at += octets
            if at > len(block):
                raise DataError("the block is too short")
            return block[at - octets : at]

        scalars, high = take(self._scalar_bytes(rows)), take(-(-(count + rows * buckets) // 8))
        ones_E = np.flatnonzero(np.unpackbits(high, count=count + rows * buckets, bitorder="little"))
        if len(ones_E) != count:
            raise DataError("the block's ids are damaged")
        row_E, bucket_E = np.divmod(ones_E - np.arange(count), buckets)
        widths_E = self.layout.widths[bucket_E]
        ranks_E = self.layout.edges[bucket_E] + _unpack(take(-(-int(widths_E.sum()) // 8)), widths_E)
        place_E = row_E * self.vocabulary + ranks_E
        if (ranks_E >= self.vocabulary).any() or (np.diff(place_E, append=rows * self.vocabulary) <= 0).any():
            raise DataError("the block's ids are damaged")
        sizes_R = np.bincount(row_E, minlength=rows)
        values_E = self._decode_values(take(-(-self._value_bits(rows, count) // 8)), sizes_R, count)
        if at != len(block):
            raise DataError("the block is too long")
        return Entries(sizes_R, self.layout.ids(ranks_E), values_E, self._decode_scalars(scalars, rows))

    def bound(self, entries: Entries) -> float:
        """Bytes that these entries need at least: log2 C(V, k) bits per row, the values' bits, and the scalars."""
        sizes, counts = np.unique(entries.sizes_R, return_counts=True)
        sets = sum(n * _log2_choose(self.vocabulary, int(k)) for k, n in zip(sizes, counts, strict=True))
        rows, count = len(entries.sizes_R), len(entries.ids_E)
        return float(sets + self._value_bits(rows, count)) / 8 + self._scalar_bytes(rows)

    def row_bytes(self, kept: float) -> float:
        """About what a row takes at most that keeps so many ids."""
        bits = _log2_choose(self.vocabulary, kept) + 0.56 * kept + self._value_bits(1, round(kept))
        return bits / 8 + self._scalar_bytes(1)

    def _value_bits(self, rows: int, count: int) -> int:
        if self.draws:
            return rows * self.draws
        return count * (BITS if self.values == "6bit" else 32)

    def _scalar_bytes(self, rows: int) -> int:
        return rows * self.scalars * (2 if self.values == "6bit" else 4)

    def _encode_scalars(self, scalars_RS: Floats) -> bytes:
        if self.values == "fp32":
            return scalars_RS.astype("<f4").tobytes()
        fixed = np.clip(np.rint(scalars_RS * FIXED), -32767, 32767)
        return np.where(np.isneginf(scalars_RS), -32768, fixed).astype("<i2").tobytes()

    def _decode_scalars(self, part: Octets, rows: int) -> Floats:
        if self.values == "fp32":
            return part.view("<f4").astype(np.float32).reshape(rows, self.scalars)
        fixed = part.view("<i2").astype(np.float32).reshape(rows, self.scalars)
        return np.where(fixed == -32768, -np.inf, fixed / np.float32(FIXED))

    def _encode_values(self, values_E: Floats, rows: int) -> Octets:
        if self.draws:
            runs = np.zeros(rows * self.draws, np.uint8)
            runs[np.cumsum(values_E.astype(np.int64)) - 1] = 1  # every row's counts add up to `draws`
            return _bits(runs)
        if self.values == "fp32":
            return values_E.astype("<f4").view(np.uint8)
        steps_E = np.clip(np.rint(values_E / -STEP), 0, (1 << BITS) - 1).astype(np.int64)
        return _pack(steps_E, np.full(len(steps_E), BITS))

    def _decode_values(self, part: Octets, sizes_R: Ints, count: int) -> Floats:
        if self.draws:
            ends = np.flatnonzero(np.unpackbits(part, count=len(sizes_R) * self.draws, bitorder="little"))
            whole_R = np.arange(1, len(sizes_R) + 1) * self.draws - 1  # where each row's draws must end
            if len(ends) != count or not sizes_R.all() or (ends[np.cumsum(sizes_R) - 1] != whole_R).any():
                raise DataError("the block's counts are damaged")
            return np.diff(ends, prepend=-1).astype(np.float32)
        if self.values == "fp32":
            return part.view("<f4").astype(np.float32)
        return _unpack(part, np.full(count, BITS)).astype(np.float32) * np.float32(-STEP)


def _bits(ones: Octets) -> Octets:
    return np.packbits(ones, bitorder="little")


def _pack(numbers_E: Ints, widths_E: Ints) -> Octets:
    """Each number in as many bits as its width says, end to end."""
    ends_E = np.cumsum(widths_E)
    first_E = ends_E - widths_E
    octets = np.zeros(int(ends_E[-1] + 7) // 8 + 4 if len(ends_E) else 0)
    shifted_E = numbers_E << (first_E & 7)
    for octet in range((int(widths_E.max(initial=-7)) + 14) // 8):  # those that a number touches; no bit is set twice
        octets += np.bincount((first_E >> 3) + octet, shifted_E >> 8 * octet & 255, len(octets))
    return octets[: int(widths_E.sum() + 7) // 8].astype(np.uint8)


def _unpack(octets: Octets, widths_E: Ints) -> Ints:
    """The numbers again, each from the four bytes in which it begins."""
    padded = np.concatenate([octets, np.zeros(4, np.uint8)])
    words: Any = np.ndarray(len(octets) + 1, "<u4", padded.data, strides=(1,))
    first_E = np.cumsum(widths_E) - widths_E
    return np.asarray((words[first_E >> 3] >> (first_E & 7).astype(np.uint32)) & ((1 << widths_E) - 1), np.int64)


def _log2_choose(whole: float, part: float) -> float:
    return (lgamma(whole + 1) - lgamma(part + 1) - lgamma(whole - part + 1)) / log(2)
