"""Ask a teacher about sequences once and keep what it says in a store.

A shard is a fixed list of sequences and is computed in forward batches of a fixed composition, so that any number of
processes, interrupted as often as one likes, makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.mix import Stream
from ..data.pack import Ints
from ..device import Place
from ..model.tiled import rows_at_once, rows_in_cache
from ..types import Batch
from .codec import Entries
from .layout import Layout, fitted
from .live import Live
from .signals import Form, entries, joined, split
from .store import Store

FORWARD_TOKENS = 8192
"""Of a forward batch: part of what makes the bytes."""


@dataclass(frozen=True)
class Asked:
    """Sequences about which a teacher will be asked: each once, in the order in which they first come."""

    batches: Stream
    places: Ints
    """Where they stand in the endless list of `batches`."""
    keys: tuple[bytes, ...]

    def shards(self, sequences: int) -> Iterator[Asked]:
        """Pieces of so many sequences, the last one shorter."""
        for first in range(0, len(self.keys), sequences):
            some = slice(first, first + sequences)
            yield Asked(self.batches, self.places[some], self.keys[some])

    def without(self, store: Store) -> Asked:
        """Those that a store lacks."""
        missing = set(store.missing(self.keys))
        lacking = np.array([key in missing for key in self.keys], bool)
        return Asked(self.batches, self.places[lacking], tuple(key for key in self.keys if key in missing))

    @property
    def name(self) -> str:
        """Of the shard that holds these sequences."""
        return blake2b(b"".join(self.keys), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Harvested:
    """So many sequences are there: a shard made just now or by another process, or what was found."""

    sequences: int
    made: bool
    rows: int = 0
    bytes: int = 0


class Told(Protocol):
    """A teacher that can be harvested, wherever it runs."""

    def ask(self, batch: Batch, form: Form, seed: int) -> Entries:
        """What it says about all rows of a batch; `seed` is that of the draws."""
        ...

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of one answer."""
        ...

    def release(self) -> None:
        """Let go of what asking needed."""
        ...


def harvest(store: Store, teacher: Told, asked: Iterable[Asked], rank: int, ranks: int) -> Iterator[Harvested]:
    """Make shards of the sequences that are missing; yields one after another, and ends when all of them are there.

    What is missing is cut into whole shards, of which only the last is shorter: without some of these shards it is cut
    into the others. So every process, whenever it begins, finds the same ones. Each of several processes begins at
    another place. What another process works on is left for the end and waited for.
    """
    left: list[Asked] = []
    for one in asked:
        missing = one.without(store)
        if found := len(one.keys) - len(missing.keys):
            yield Harvested(found, made=False)
        left += missing.shards(store.manifest.shard_sequences)
    start = rank * len(left) // ranks
    left = left[start:] + left[:start]
    for wait in (False, True):
        postponed = []
        for shard in left:
            with store.claimed(shard.name, wait) as mine:
                if not mine:
                    postponed.append(shard)
                    continue
                store.refresh()  # another process may have made it by now
                made = all(entry.name != shard.name for entry in store.manifest.shards)
                if made:
                    _make(store, teacher, shard)
            entry = next(entry for entry in store.manifest.shards if entry.name == shard.name)
            yield Harvested(len(shard.keys), made, entry.rows, entry.bytes)
        left = postponed


def _make(store: Store, teacher: Told, shard: Asked) -> None:
    """Ask about a shard's sequences and commit it. Blocks are encoded in a thread while the teacher goes on."""
    form, layout, size = store.manifest.form, None, max(1, FORWARD_TOKENS // store.manifest.packing.sequence)
    answers: list[Future[list[bytes]]] = []
    rows: list[int] = []
    counts = {"kept": 0.0, "rest": 0.0, "nats": 0.0, "flops": 0.0}
    with ThreadPoolExecutor(1) as encoder:
        for part in shard.shards(size):
            batch = part.batches.of(part.places)
            lengths = np.bincount(batch.rows.index_N // batch.tokens_BT.shape[1], minlength=len(part.keys)).tolist()
            found = teacher.ask(batch, form, store.manifest.seed)
            layout = layout or _layout(found, form.vocabulary, len(shard.keys) / len(part.keys))
            answers.append(encoder.submit(_encode, found, lengths, form.codec(layout).encode))
            rows += lengths
            counts["flops"] += teacher.flops(batch)
            for name, amount in _counts(found, form.draws).items():
                counts[name] += amount
        blocks = [block for answer in answers for block in answer.result()]
    kept = int(counts.pop("kept"))
    assert layout is not None
    store.commit(shard.name, shard.keys, rows, layout, blocks, kept=kept, **counts)


def _layout(found: Entries, vocabulary: int, shares: float) -> Layout:
    """The layout that suits a shard's first answers, of which the whole shard has so many times the rows."""
    row_E = np.repeat(np.arange(len(found.sizes_R)), found.sizes_R)
    return fitted(vocabulary, row_E, found.ids_E, round(shares * len(found.sizes_R)))


def _encode(found: Entries, rows: list[int], encode: Callable[[Entries], bytes]) -> list[bytes]:
    return [encode(block) for block in split(found, rows)]


def _counts(found: Entries, draws: int) -> dict[str, float]:
    """What a manifest says of a shard."""
    odds_R = found.scalars_RS[:, 1].astype(np.float64)
    rest = 0.0 if draws else float((1.0 / (1.0 + np.exp(-odds_R))).sum())
    return {"kept": len(found.ids_E), "rest": rest, "nats": -float(found.scalars_RS[:, 0].sum(dtype=np.float64))}


@dataclass(frozen=True)
class Here:
    """A live teacher on this machine."""

    teacher: Live
    place: Place

    @torch.no_grad()
    def ask(self, batch: Batch, form: Form, seed: int) -> Entries:
        """One forward pass, its head a chunk of rows at a time."""
        uniform_Nn = _uniform(batch, form.draws, seed)
        batch = batch.to(self.place.device)
        with self.place.autocast():
            features_ND = self.teacher.model(batch)
            found: list[Entries] = []
            size, near = (f(form.vocabulary, self.place.device) for f in (rows_at_once, rows_in_cache))
            for first in range(0, max(1, len(features_ND)), size):  # a window may have no row
                rows = slice(first, first + size)
                drawn = None if uniform_Nn is None else uniform_Nn[rows].to(self.place.device)
                # A call's own: the next chunk gets the same pages.
                found += _entries(
                    self.teacher.head.logits(features_ND[rows]), batch.rows.target_N[rows], form, drawn, near
                )
        return joined(found)

    def flops(self, batch: Batch) -> float:
        """One forward pass."""
        return self.teacher.flops(batch)

    def release(self) -> None:
        """The model leaves memory."""
        self.teacher.release()


def _entries(logits_CV: Tensor, target_C: Tensor, form: Form, uniform_Cn: Tensor | None, near: int) -> list[Entries]:
    found = []
    for first in range(0, max(1, len(logits_CV)), near):
        some = slice(first, first + near)
        drawn = None if uniform_Cn is None else uniform_Cn[some]
        found.append(entries(logits_CV[some], target_C[some], form, drawn))
    return found


def _uniform(batch: Batch, draws: int, seed: int) -> Tensor | None:
    """The numbers to draw with, from the seed and each sequence's key: no batch and no process changes them."""
    if not draws:
        return None
    rows = np.bincount(batch.rows.index_N // batch.tokens_BT.shape[1], minlength=len(batch.keys))
    found = []
    for key, count in zip(batch.keys, rows, strict=True):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, int.from_bytes(key, "little")))))
        found.append(rng.random((count, draws)))
    return torch.from_numpy(np.concatenate(found))
