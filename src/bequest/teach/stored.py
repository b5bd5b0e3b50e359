"""A teacher that was asked before: its answers come from a store, and no model is in memory."""

from __future__ import annotations

from collections.abc import Callable

from ..types import Answer, Batch, DataError
from .codec import Entries
from .signals import joined, signal
from .store import Store


class Stored:
    """Answers from a store; a method cannot tell it from a live teacher. What `prepare` was told of is read ahead."""

    def __init__(self, load: Callable[[], Store]) -> None:
        self._load = load
        self._store: Store | None = None
        self._ready: dict[bytes, Entries] = {}

    @property
    def store(self) -> Store:
        """The store, opened if it is not."""
        if self._store is None:
            self._store = self._load()
        return self._store

    def prepare(self, batch: Batch, temperature: float) -> None:
        """Read and decode the batch's sequences."""
        for key, source in zip(batch.keys, batch.sources, strict=True):
            self._ready[key] = self._entries(key, source)

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        """What the teacher said about the batch's rows, at a temperature that the store holds."""
        pairs = zip(batch.keys, batch.sources, strict=True)
        ready = [(self._ready.pop(key) if key in self._ready else self._entries(key, source)) for key, source in pairs]
        found = joined(ready)
        return signal(found, self.store.manifest.form, temperature, batch.tokens_BT.device)

    def _entries(self, key: bytes, source: str) -> Entries:
        try:
            return self.store.entries(key)
        except KeyError:
            raise DataError(
                f"the store {self.store.folder} lacks a sequence of the source {source!r}; "
                "bequest teach RECIPE adds what a recipe asks for"
            ) from None

    def flops(self, batch: Batch) -> float:
        """Reading costs none."""
        return 0.0

    def release(self) -> None:
        """Close the store."""
        self._store = None
        self._ready.clear()
