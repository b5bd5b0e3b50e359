"""A sweep while it runs: a live table on a terminal, a line per finished run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..report.progress import console
from .course import Course, Waiting
from .runs import Run
from .work import Job


class Progress:
    """Arm, learning rate, seed, speed and loss of every run at work, and the time left for all; a context manager."""

    def __init__(self, course: Course, jobs: int) -> None:
        self.course, self.jobs = course, jobs
        self.expected = course.expected()
        self.done: dict[str, list[tuple[int, float]]] = {}
        """By arm, tokens and seconds of the finished runs."""
        self.console = console()
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def __call__(self, at_work: Sequence[Job]) -> None:
        """Show what is at work."""
        if self.console.is_terminal:
            self.live.update(Group(self._table(at_work), Text(self._sum(at_work))))

    def finished(self, run: Run) -> None:
        """A run has ended."""
        try:
            result = self.course.result(run)
        except Waiting:
            return
        end = result.curve[-1] if result.curve else None
        self.done.setdefault(run.arm, []).append((run.tokens, end.seconds if end else 0.0))
        found = f"loss {result.loss:.4f}, {end.seconds:,.0f} s" if end else "diverged"
        self.console.print(f"{run}: {found}; {self._sum(())}", soft_wrap=True)

    def _table(self, at_work: Sequence[Job]) -> Table:
        table = Table("arm", "rate", "seed", "tokens", "tokens/s", "loss")
        for column in table.columns[1:]:
            column.justify = "right"
        for job in at_work:
            now, run = job.progress(), job.run
            budget = "" if run.budget == 1 else f" x {run.budget:g}"
            numbers = _numbers(now) if now else ("", "begins", "")
            table.add_row(run.arm + budget, f"{run.rate:g}", str(run.seed), *_of(run, numbers))
        return table

    def _sum(self, at_work: Sequence[Job]) -> str:
        """Runs done, and the seconds left if the runs to come are as fast as those of their arm were, or as all were."""
        done = sum(map(len, self.done.values()))
        count = max(done, sum(map(len, self.expected.values())))
        seen = {arm: (sum(t for t, _ in had), sum(s for _, s in had)) for arm, had in self.done.items()}
        for job in at_work:
            if now := job.progress():
                tokens, seconds = seen.get(job.run.arm, (0, 0.0))
                seen[job.run.arm] = (tokens + now["tokens"], seconds + now["seconds"])
        if not any(seconds for _, seconds in seen.values()):
            return f"{done} of about {count} runs"
        overall = sum(s for _, s in seen.values()) / sum(t for t, _ in seen.values())
        left = 0.0
        for arm, wanted in self.expected.items():
            tokens, seconds = seen.get(arm, (0, 0.0))
            left += max(0, sum(wanted) - tokens) * (seconds / tokens if tokens else overall)
        return f"{done} of about {count} runs, about {left / self.jobs / 60:,.0f} minutes left"


def _numbers(now: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{now['tokens']:,}", f"{now['tokens'] / max(1e-9, now['seconds']):,.0f}", f"{now['loss']:.4f}"


def _of(run: Run, numbers: tuple[str, str, str]) -> tuple[str, str, str]:
    tokens, speed, loss = numbers
    return f"{tokens} of {run.tokens:,}", speed, loss
