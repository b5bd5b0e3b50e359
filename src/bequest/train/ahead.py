"""The next step's batch, and what its teachers can prepare, made in a thread while a step trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from ..types import Batch, Clock
from .plan import Stage


class Ahead:
    """Batches of a stage, one step ahead; a context manager. Never past the next measure, which may change what is asked."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._prepare: Callable[[Batch, Clock], None] = getattr(stage.loss, "prepare", lambda batch, clock: None)
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._next: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __call__(self, clock: Clock) -> Batch:
        """The batch of the clock's step; the one after it begins to be made."""
        made = self._next[1] if self._next and self._next[0] == clock.step else self._thread.submit(self._make, clock)
        batch = made.result()
        after, measure = clock.step + 1, self.stage.measure
        self._next = None
        if after < self.stage.steps and not (measure and after % measure.every == 0):
            size = batch.tokens_BT.numel()
            later = replace(clock, step=after, tokens=clock.tokens + size)
            later = replace(later, run_step=clock.run_step + 1, run_tokens=clock.run_tokens + size)
            self._next = after, self._thread.submit(self._make, later)
        return batch

    def _make(self, clock: Clock) -> Batch:
        batch = self.stage.batches.at(clock)
        self._prepare(batch, clock)
        return batch
