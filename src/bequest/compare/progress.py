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
from .course import Course
from .outcome import Result
from .runs import Run
from .work import Job


class Progress:
    """Arm, learning rate, seed, speed and loss of every run at work, and the time left for all; a context manager."""

    def __init__(self, course: Course, jobs: int) -> None:
        self.course, self.jobs = course, jobs
        self.expected = course.expected()
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
        result = self.course.result(run)
        found = f"loss {result.loss:.4f}, {result.end.seconds:,.0f} s" if result.curve else "diverged"
        self.console.print(f"{run}: {found}; {self._sum(())}", soft_wrap=True)

    def _table(self, at_work: Sequence[Job]) -> Table:
        table = Table("arm", "rate", "seed", "tokens", "tokens/s", "loss")
        for column in table.columns[1:]:
            column.justify = "right"
        for job in at_work:
            now, run = job.progress(), job.run
            budget = "" if run.budget == 1 else f" x {run.budget:g}"
            table.add_row(run.arm + budget, f"{run.rate:g}", str(run.seed), *_numbers(run, now))
        return table

    def _sum(self, at_work: Sequence[Job]) -> str:
        """Runs done, and the seconds left if the runs to come are as fast as those of their arm were, or as all were."""
        known = self.course.known
        count = max(len(known), sum(map(len, self.expected.values())))
        seen: dict[str, tuple[int, float]] = {}
        for arm, tokens, seconds in (*map(_done, known), *map(_doing, at_work)):
            before = seen.get(arm, (0, 0.0))
            seen[arm] = (before[0] + tokens, before[1] + seconds)
        if not any(seconds for _, seconds in seen.values()):
            return f"{len(known)} of about {count} runs"
        overall = sum(s for _, s in seen.values()) / sum(t for t, _ in seen.values())
        left = 0.0
        for arm, wanted in self.expected.items():
            tokens, seconds = seen.get(arm, (0, 0.0))
            left += max(0, sum(wanted) - tokens) * (seconds / tokens if tokens else overall)
        return f"{len(known)} of about {count} runs, about {left / self.jobs / 60:,.0f} minutes left"


def _numbers(run: Run, now: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tokens, speed and loss."""
    if not now:
        return f"of {run.tokens:,}", "begins", ""
    speed = now["tokens"] / max(1e-9, now["seconds"])
    return f"{now['tokens']:,} of {run.tokens:,}", f"{speed:,.0f}", f"{now['loss']:.4f}"


def _done(result: Result) -> tuple[str, int, float]:
    return result.run.arm, result.run.tokens, result.end.seconds if result.curve else 0.0


def _doing(job: Job) -> tuple[str, int, float]:
    now = job.progress()
    return job.run.arm, now.get("tokens", 0), now.get("seconds", 0.0)
