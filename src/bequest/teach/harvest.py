"""Ask a live teacher about sequences once and keep what it says in a store.

A shard is a fixed list of sequences and is computed in forward batches of a fixed composition, so that any number of
processes, interrupted as often as one likes, makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ..data.batches import Batches
from ..data.pack import Ints
from ..device import Place
from ..model.tiled import rows_at_once, rows_in_cache
from ..types import Batch
from .codec import Entries
from .live import Live
from .signals import Form, entries, joined, split
from .store import Store

FORWARD_TOKENS = 8192
"""Of a forward batch: part of what makes the bytes."""


@dataclass(frozen=True)
class Asked:
    """Sequences about which a teacher will be asked: each once, in the order in which they first come."""

    batches: Batches
    places: Ints
    """Where they stand in the endless list of `batches`."""
    keys: tuple[bytes, ...]

    def shards(self, sequences: int) -> Iterator[Asked]:
        """Pieces of so many sequences, the last one shorter."""
        for first in range(0, len(self.keys), sequences):
            some = slice(first, first + sequences)
            yield Asked(self.batches, self.places[some], self.keys[some])

    @property
    def name(self) -> str:
        """Of the shard that holds these sequences."""
        return blake2b(b"".join(self.keys), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Harvested:
    """A shard is there: made just now, or found."""

    sequences: int
    rows: int
    bytes: int
    made: bool


def harvest(
    store: Store, teacher: Live, shards: list[Asked], place: Place, rank: int, ranks: int
) -> Iterator[Harvested]:
    """Make the shards that are missing; yields one after another, and ends when all of them are there.

    Each of several processes begins at another place. What another process works on is left for the end and waited for.
    """
    start = rank * len(shards) // ranks
    left = shards[start:] + shards[:start]
    for wait in (False, True):
        postponed = []
        for shard in left:
            with store.claimed(shard.name, wait) as mine:
                if not mine:
                    postponed.append(shard)
                    continue
                store.refresh()
                made = bool(store.missing(shard.keys))
                if made:
                    _make(store, teacher, shard, place)
                entry = next((e for e in store.manifest.shards if e.name == shard.name), None)
                yield Harvested(len(shard.keys), entry.rows if entry else 0, entry.bytes if entry else 0, made)
        left = postponed


def _make(store: Store, teacher: Live, shard: Asked, place: Place) -> None:
    """Ask about a shard's sequences and commit it. Blocks are encoded in a thread while the teacher goes on."""
    form, size = store.manifest.form, max(1, FORWARD_TOKENS // store.manifest.packing.sequence)
    answers: list[Future[list[bytes]]] = []
    rows: list[int] = []
    counts = {"kept": 0.0, "rest": 0.0, "nats": 0.0, "flops": 0.0}
    with ThreadPoolExecutor(1) as encoder:
        for part in shard.shards(size):
            batch = part.batches.of(part.places)
            lengths = np.bincount(batch.rows.index_N // batch.tokens_BT.shape[1], minlength=len(part.keys)).tolist()
            found = ask(teacher, batch, store, place)
            answers.append(encoder.submit(_encode, found, lengths, form.codec.encode))
            rows += lengths
            counts["flops"] += teacher.flops(batch)
            for name, amount in _counts(found, form.draws).items():
                counts[name] += amount
        blocks = [block for answer in answers for block in answer.result()]
    kept = int(counts.pop("kept"))
    store.commit(shard.name, shard.keys, rows, blocks, kept=kept, **counts)


def _encode(found: Entries, rows: list[int], encode: Callable[[Entries], bytes]) -> list[bytes]:
    return [encode(block) for block in split(found, rows)]


def _counts(found: Entries, draws: int) -> dict[str, float]:
    """What a manifest says of a shard."""
    odds_R = found.scalars_RS[:, 1].astype(np.float64)
    rest = 0.0 if draws else float((1.0 / (1.0 + np.exp(-odds_R))).sum())
    return {"kept": len(found.ids_E), "rest": rest, "nats": -float(found.scalars_RS[:, 0].sum(dtype=np.float64))}


@torch.no_grad()
def ask(teacher: Live, batch: Batch, store: Store, place: Place) -> Entries:
    """What a live teacher says about all rows of a batch, in the store's form."""
    form = store.manifest.form
    uniform_Nn = _uniform(batch, form.draws, store.manifest.seed)
    batch = batch.to(place.device)
    with place.autocast():
        features_ND = teacher.model(batch)
        found: list[Entries] = []
        size, near = rows_at_once(form.vocabulary, place.device), rows_in_cache(form.vocabulary, place.device)
        for first in range(0, len(features_ND), size):
            rows = slice(first, first + size)
            drawn = None if uniform_Nn is None else uniform_Nn[rows].to(place.device)
            # A call's own: the next chunk gets the same pages.
            found += _entries(teacher.head.logits(features_ND[rows]), batch.rows.target_N[rows], form, drawn, near)
    return joined(found)


def _entries(logits_CV: Tensor, target_C: Tensor, form: Form, uniform_Cn: Tensor | None, near: int) -> list[Entries]:
    pieces = (slice(first, first + near) for first in range(0, len(logits_CV), near))
    return [entries(logits_CV[p], target_C[p], form, None if uniform_Cn is None else uniform_Cn[p]) for p in pieces]


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
