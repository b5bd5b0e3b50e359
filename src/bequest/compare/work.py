"""Do a sweep's runs, several at a time: each is an ordinary `bequest train` in a process of its own.

Any number of these may work on one sweep, on one machine or on several that share a file system: who begins a run holds its
claim until the run's own process has ended, even if whoever began it was killed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from ..job.folder import DIVERGED
from ..report import metrics
from ..types import BequestError, FolderError, Stopped
from .course import Course
from .runs import Run

TICK, LOOK = 0.5, 2.0
"""Seconds between looks at own processes, and at runs that other processes work on."""


@dataclass
class Job:
    """A run at work."""

    run: Run
    process: subprocess.Popen[bytes]
    slot: int
    log: Path

    def progress(self) -> Mapping[str, Any]:
        """The newest line of training, empty before the first."""
        return metrics.latest(self.run.folder / "metrics.jsonl")


@dataclass
class Workshop:
    """Some jobs side by side."""

    course: Course
    jobs: int
    watch: Callable[[Sequence[Job]], None]
    finished: Callable[[Run], None]
    at_work: list[Job] = field(default_factory=list)

    def work(self, arms: Sequence[str]) -> None:
        """Until all runs of these arms are there, whoever makes them.

        Raises BequestError with the sentence of a run that failed, Stopped when asked to stop.
        """
        with _asked_to_stop() as asked:
            try:
                while due := self.course.due(arms):
                    self._begin(due)
                    self._wait(asked)
            finally:
                self._end()

    def _begin(self, due: Sequence[Run]) -> None:
        own = {job.run.folder for job in self.at_work}
        for run in due:
            if len(self.at_work) == self.jobs:
                return
            if run.folder in own:
                continue
            slot = min(set(range(self.jobs)) - {job.slot for job in self.at_work})
            if job := start(run, self.course.root, slot):
                self.at_work.append(job)

    def _wait(self, asked: Sequence[int]) -> None:
        """Until a run of ours ends, or somebody else's may have."""
        until = time.monotonic() + LOOK
        while not any(job.process.poll() is not None for job in self.at_work):
            if asked:
                raise Stopped(asked[0], "stopped; run the same command again to go on")
            if len(self.at_work) < self.jobs and time.monotonic() > until:
                return
            self.watch(self.at_work)
            time.sleep(TICK)
        for job in [job for job in self.at_work if job.process.poll() is not None]:
            self.at_work.remove(job)
            _require_good(job)
            self.finished(job.run)

    def _end(self) -> None:
        """Runs that are left save themselves."""
        for job in self.at_work:
            job.process.send_signal(signal.SIGTERM)
        for job in self.at_work:
            job.process.wait()


def start(run: Run, root: Path, slot: int) -> Job | None:
    """Begin or go on with a run; None when another process works on it."""
    claims = root / "claims"
    try:
        for folder in (claims, run.folder):
            folder.mkdir(parents=True, exist_ok=True)
        claim = (claims / run.folder.name).open("a")
    except OSError as error:
        raise FolderError(f"cannot use {root} ({error.strerror}); choose another folder with --out") from None
    with claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if any((run.folder / name).exists() for name in ("summary.json", DIVERGED)):
            return None  # somebody finished it since we looked
        log = run.folder / "log.txt"
        with log.open("wb") as output:
            return Job(run, _process(run, claim, output, slot), slot, log)


def _process(run: Run, claim: TextIO, output: Any, slot: int) -> subprocess.Popen[bytes]:
    threads = str(run.recipe.train.threads or 1)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if gpus := _gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # a run is one process, whoever began us
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "bequest", *run.command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        pass_fds=(claim.fileno(),),  # the claim is held as long as either of us lives
        start_new_session=True,  # Ctrl-C is ours to pass on
    )


def _gpus() -> list[str]:
    """The GPUs that may be used, by the names CUDA knows them by."""
    if (own := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in own.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def default_jobs() -> int:
    """One per GPU, or else one per core."""
    return len(_gpus()) or len(os.sched_getaffinity(0))


def _require_good(job: Job) -> None:
    """Raises what a run's failure means. A run that diverged has ended well: it says that its rate is too high."""
    code = job.process.returncode
    if code == 0 or (job.run.folder / DIVERGED).exists():
        return
    last = (job.log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    if code == 2:
        raise BequestError(f"{job.run}: {last.removeprefix('bequest: ')}")
    if code in (130, 143):
        raise BequestError(f"{job.run}: its process was asked to stop; run the same command again to go on")
    if code < 0:
        why = (
            "most likely there was too little memory; give fewer --jobs" if code == -signal.SIGKILL else "run it again"
        )
        raise BequestError(f"{job.run}: its process was ended by signal {-code}; {why} ({job.log})")
    raise RuntimeError(
        f"{job.run} ended with {code}; the end of {job.log}:\n{job.log.read_text(errors='replace')[-3000:]}"
    )


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Within the block Ctrl-C and SIGTERM are noted in the list that it gives."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
