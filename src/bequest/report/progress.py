"""Progress of tokenising and training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..teach.harvest import Harvested
from ..train.run import StageEnded, State, Stepped

LINES = 20
"""Plain lines per run."""


def console() -> Console:
    """Where progress goes: standard error, so that standard output holds results alone."""
    return Console(stderr=True, highlight=False)


class Training:
    """Tokens per second, loss, rate and time left. An observer and a context manager."""

    def __init__(self, tokens: int, name: str) -> None:
        self.tokens = tokens
        self.console = console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=tokens, now="")
        self.name = name
        self._next_line = 0
        self._from: tuple[int, float] | None = None

    def __enter__(self) -> Training:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, state: State, event: Stepped | StageEnded) -> None:
        """Show the step."""
        if isinstance(event, StageEnded):
            return
        if self._from is None:
            self._from = (event.tokens, time.monotonic())
        elif self.console.is_terminal:
            self.bar.update(self.task, completed=event.tokens, now=self._now(event))
        elif event.tokens >= self._next_line or event.last:
            self._next_line = event.tokens + self.tokens // LINES
            self.console.print(
                f"{self.name} {100 * event.tokens // self.tokens:3d} % {self._now(event)}", soft_wrap=True
            )

    def _now(self, event: Stepped) -> str:
        assert self._from is not None
        speed = (event.tokens - self._from[0]) / max(1e-9, time.monotonic() - self._from[1])
        left = (self.tokens - event.tokens) / max(1e-9, speed)
        inheriting = f"  inheritance rate {event.rate:.2f}" if event.rate else ""
        step = f"step {event.run_step}  loss {event.loss.item():.3f}{inheriting}"
        return f"{step}  {speed:,.0f} tokens/s  {left:.0f} s left"


class Harvesting:
    """Sequences, speed, bytes and time left of a harvest; a context manager."""

    def __init__(self, name: str, sequences: int) -> None:
        self.name = name
        self.sequences = sequences
        self.console = console()
        self.done = self.made = self.bytes = self.rows = 0
        self._next_line = 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=sequences, now="")
        self.began = time.monotonic()

    def __enter__(self) -> Harvesting:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, shard: Harvested, length: int) -> None:
        """A shard of sequences of so many tokens is there."""
        self.done += shard.sequences
        self.made += shard.sequences * shard.made
        self.bytes += shard.bytes
        self.rows += shard.rows
        speed = self.made * length / max(1e-9, time.monotonic() - self.began)
        left = (self.sequences - self.done) * length / speed if speed else 0.0
        size = f"{self.bytes / 1e6:,.1f} MB, {self.bytes / max(1, self.rows):.1f} bytes per row"
        now = f"{size}, {speed:,.0f} tokens/s"
        self.bar.update(self.task, completed=self.done, now=now)
        if not self.console.is_terminal and (self.done >= self._next_line or self.done == self.sequences):
            self._next_line = self.done + self.sequences // LINES
            share = 100 * self.done // self.sequences
            self.console.print(f"{self.name} {share:3d} % {now}, {left:.0f} s left", soft_wrap=True)


class Reading:
    """Text tokenised so far."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.console = console()
        self.bytes = 0
        self.shown = self.began = time.monotonic()

    def __call__(self, more: int) -> None:
        """`more` bytes of text are done."""
        self.bytes += more
        now = time.monotonic()
        if now - self.shown >= 5.0:
            self.shown = now
            speed = self.bytes / 1e6 / (now - self.began)
            self.console.print(f"{self.what}: {self.bytes / 1e6:,.0f} MB of text, {speed:.1f} MB/s", soft_wrap=True)


class Scoring:
    """Sequences that a predecessor has judged, speed and time left; silent where it is quick."""

    def __init__(self, what: str, sequences: int, before: int) -> None:
        self.what, self.sequences, self.done = what, sequences, before
        self.console = console()
        self.shown = self.began = time.monotonic()
        self.before = before

    def __call__(self, more: int) -> None:
        """So many more are judged."""
        self.done += more
        now = time.monotonic()
        if now - self.shown >= 5.0:
            self.shown = now
            speed = (self.done - self.before) / (now - self.began)
            left = (self.sequences - self.done) / speed
            self.console.print(
                f"{self.what}: {100 * self.done // self.sequences:3d} %, {speed:,.0f} sequences/s, {left:.0f} s left",
                soft_wrap=True,
            )
