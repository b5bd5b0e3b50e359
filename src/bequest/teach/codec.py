"""What a predecessor says about some rows <-> bytes. Vectorised over rows and entries; nothing here knows a model.

A block holds R rows, of which row r keeps k_r ids, E in all:

    E                4 bytes; how many entries
    l                1 byte; low bits per id, chosen so that the block is smallest
    scalars          [R, S] fixed point of 2 bytes (1/1024 nat, -32 to 32, -32768 is minus infinity), or fp32
    high             Elias-Fano: per row and per bucket of 2^l ids a one for each kept id in it, then a zero
    low              the l low bits of every id
    values           topk: 6 bits each, steps of 1/4 nat down from 0 (error 1/8 nat, 15.75 at most), or fp32;
                     sampled: n bits per row, in which k_r ones end the runs of draws of each id

Ids are sets, ascending within a row: their order would cost log2 k! bits more. Elias-Fano (Elias 1974, Fano 1971) stays
within 0.56 bits per id of the information bound log2 C(V, k), and its high part tells the k_r for nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import lgamma, log
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..types import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]

MOST_IDS = 1 << 20
STEP, BITS = 0.25, 6
"""Of quantised log-probabilities: a step of s nats costs about s^2 / 24 nats of KL."""
FIXED = 1024
_HEAD = struct.Struct("<IB")


@dataclass(frozen=True)
class Entries:
    """What is kept of R rows: E entries, row after row, ids ascending within a row."""

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
    values: Literal["6bit", "fp32"] = "6bit"

    def encode(self, entries: Entries) -> bytes:
        """One block."""
        assert self.vocabulary <= MOST_IDS
        rows, count = len(entries.sizes_R), len(entries.ids_E)
        low = self._low_bits(rows, count)
        head = _HEAD.pack(count, low)
        row_E = np.repeat(np.arange(rows), entries.sizes_R)
        high = np.zeros(count + rows * self._buckets(low), np.uint8)
        high[np.arange(count) + row_E * self._buckets(low) + (entries.ids_E >> low)] = 1
        parts = [_bits(high), _pack(entries.ids_E & ((1 << low) - 1), low), self._encode_values(entries, row_E)]
        return b"".join([head, self._encode_scalars(entries.scalars_RS), *(p.tobytes() for p in parts)])

    def decode(self, block: Octets, rows: int) -> Entries:
        """The entries of a block of so many rows; ids and counts as they were, values within their step.

        Raises DataError when the bytes cannot be a block of so many rows.
        """
        if len(block) < _HEAD.size:
            raise DataError("the block is too short")
        count, low = _HEAD.unpack(block[: _HEAD.size].tobytes())
        parts = self._lengths(rows, count, low)
        if low > MOST_IDS.bit_length() or sum(parts) + _HEAD.size != len(block):
            raise DataError("the block has another length than its rows need")
        scalars, high, lows, values = np.split(block[_HEAD.size :], np.cumsum(parts)[:-1])
        buckets = self._buckets(low)
        ones_E = np.flatnonzero(np.unpackbits(high, count=count + rows * buckets, bitorder="little"))
        if len(ones_E) != count:
            raise DataError("the block's ids are damaged")
        row_E, bucket_E = np.divmod(ones_E - np.arange(count), buckets)
        ids_E = (bucket_E << low) | _unpack(lows, count, low)
        place_E = row_E * self.vocabulary + ids_E
        if (ids_E >= self.vocabulary).any() or (np.diff(place_E, append=rows * self.vocabulary) <= 0).any():
            raise DataError("the block's ids are damaged")
        sizes_R = np.bincount(row_E, minlength=rows)
        return Entries(sizes_R, ids_E, self._decode_values(values, sizes_R, count), self._decode_scalars(scalars, rows))

    def bound(self, entries: Entries) -> float:
        """Bytes that these entries need at least: log2 C(V, k) bits per row, the values' bits, and the scalars."""
        sizes, counts = np.unique(entries.sizes_R, return_counts=True)
        sets = sum(n * _log2_choose(self.vocabulary, int(k)) for k, n in zip(sizes, counts, strict=True))
        rows, count = len(entries.sizes_R), len(entries.ids_E)
        return float(sets + self._value_bits(rows, count)) / 8 + self._scalar_bytes(rows)

    def row_bytes(self, kept: float) -> float:
        """About what a row takes that keeps so many ids."""
        count = round(1000 * kept)
        return (_HEAD.size + sum(self._lengths(1000, count, self._low_bits(1000, count)))) / 1000

    def _buckets(self, low: int) -> int:
        return ((self.vocabulary - 1) >> low) + 1

    def _low_bits(self, rows: int, count: int) -> int:
        widths = range(self.vocabulary.bit_length() + 1)
        return min(widths, key=lambda low: count * low + rows * self._buckets(low))

    def _value_bits(self, rows: int, count: int) -> int:
        if self.draws:
            return rows * self.draws
        return count * (BITS if self.values == "6bit" else 32)

    def _scalar_bytes(self, rows: int) -> int:
        return rows * self.scalars * (2 if self.values == "6bit" else 4)

    def _lengths(self, rows: int, count: int, low: int) -> list[int]:
        """Bytes of scalars, high, low and values."""
        bits = (count + rows * self._buckets(low), count * low, self._value_bits(rows, count))
        return [self._scalar_bytes(rows), *(-(-b // 8) for b in bits)]

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

    def _encode_values(self, entries: Entries, row_E: Ints) -> Octets:
        if self.draws:
            runs = np.zeros(len(entries.sizes_R) * self.draws, np.uint8)
            runs[np.cumsum(entries.values_E.astype(np.int64)) - 1] = 1  # every row's counts add up to `draws`
            return _bits(runs)
        if self.values == "fp32":
            return entries.values_E.astype("<f4").view(np.uint8)
        return _pack(np.clip(np.rint(entries.values_E / -STEP), 0, (1 << BITS) - 1).astype(np.int64), BITS)

    def _decode_values(self, part: Octets, sizes_R: Ints, count: int) -> Floats:
        if self.draws:
            ends = np.flatnonzero(np.unpackbits(part, count=len(sizes_R) * self.draws, bitorder="little"))
            whole_R = np.arange(1, len(sizes_R) + 1) * self.draws - 1  # where each row's draws must end
            if len(ends) != count or not sizes_R.all() or (ends[np.cumsum(sizes_R) - 1] != whole_R).any():
                raise DataError("the block's counts are damaged")
            return np.diff(ends, prepend=-1).astype(np.float32)
        if self.values == "fp32":
            return part.view("<f4").astype(np.float32)
        return _unpack(part, count, BITS).astype(np.float32) * np.float32(-STEP)


def _bits(ones: Octets) -> Octets:
    return np.packbits(ones, bitorder="little")


def _pack(numbers: Ints, width: int) -> Octets:
    """Each number's `width` low bits, end to end."""
    if not width:
        return np.zeros(0, np.uint8)
    octets = numbers.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : -(-width // 8)]
    return _bits(np.unpackbits(octets, axis=1, bitorder="little")[:, :width].ravel())


def _unpack(octets: Octets, count: int, width: int) -> Ints:
    """`count` numbers of `width` bits, each from the four bytes in which it begins."""
    if not width:
        return np.zeros(count, np.int64)
    padded = np.concatenate([octets, np.zeros(4, np.uint8)])
    words: Any = np.ndarray(len(octets) + 1, "<u4", padded.data, strides=(1,))
    first = np.arange(count) * width
    return np.asarray((words[first >> 3] >> (first & 7).astype(np.uint32)) & ((1 << width) - 1), np.int64)


def _log2_choose(whole: int, part: int) -> float:
    return (lgamma(whole + 1) - lgamma(part + 1) - lgamma(whole - part + 1)) / log(2)
