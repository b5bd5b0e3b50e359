"""`metrics.jsonl`: one JSON object per logged step or validation. A resumed run cuts off what it will write again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import replace_text
from ..train.run import StageEnded, State, Stepped
from ..types import FolderError

TAIL = 1 << 16
"""So many bytes at the end of a metrics file hold a line of training."""


class Metrics:
    """Appends to the metrics file and tells whoever listens. An observer."""

    def __init__(
        self, path: Path, every: int, run_step: int, listeners: Sequence[Callable[[Mapping[str, Any]], None]] = ()
    ) -> None:
        self.path, self.every, self.listeners = path, every, listeners
        kept = [line for line in read(path) if line["step"] <= run_step]
        replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def __call__(self, state: State, event: Stepped | StageEnded) -> None:
        """Log the step if it is time."""
        if isinstance(event, Stepped) and (event.run_step % self.every == 0 or event.run_step == 1 or event.last):
            self.add(event.line())

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one object."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for listen in self.listeners:
            listen(line)


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a last line that a kill cut short is left out.

    Raises FolderError when another line is not one of ours.
    """
    return objects(path, _measured, cut=True)


def latest(path: Path) -> dict[str, Any]:
    """The newest line of training in a metrics file that is being written; empty before the first."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        whole = file.read().split(b"\n")[:-1]  # what follows the last line break is still being written
    return next(
        (json.loads(line) for line in reversed(whole[1:] or whole) if b'"loss"' in line and b'"lr"' in line), {}
    )


def objects(path: Path, ours: Callable[[dict[str, Any]], bool], cut: bool = False) -> list[dict[str, Any]]:
    """The objects of a file that runs append to, one a line; the last line may be `cut` short by a kill.

    Raises FolderError when a line is not an object of `ours`.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    kept: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except ValueError:
            if cut and number == len(lines):
                return kept
            found = None
        if not (isinstance(found, dict) and ours(found)):
            raise FolderError(f"{path} line {number} is damaged; drop that line to go on")
        kept.append(found)
    return kept


def _measured(line: dict[str, Any]) -> bool:
    keys = ["step", "tokens", "student_flops", "teacher_flops", "seconds"]
    keys += ["loss", "lr", "rate"] if "loss" in line else []
    valid = line.get("valid", {})
    numbers = [line.get(key) for key in keys] + [
        number for source in (valid.values() if isinstance(valid, dict) else [None]) for number in _values(source)
    ]
    if "ended" in line:
        numbers += _values(line.get("losses"))
    return all(isinstance(number, int | float) for number in numbers)


def _values(measures: Any) -> list[Any]:
    return list(measures.values()) if isinstance(measures, dict) and measures else [None]
