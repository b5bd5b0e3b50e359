"""Seconds turned into tokens: how fast two arms train here, measured in turns before the run that needs to know, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

from ..files import locked, replace_text
from ..job.calibrate import calibrate
from ..types import FolderError
from .runs import Run

TURNS, BUDGET = 3, 20.0
"""Each arm is timed so often, for about so many seconds."""


def share(own: Run, other: Run, root: Path) -> float:
    """How many of its tokens `own` sees in the seconds of training that the whole of `other` takes, as a share of them."""
    file = root / "seconds" / f"{own.recipe.name}.{other.recipe.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock"), wait=True):
        if not file.exists():
            turns = [(_seconds(other), _seconds(own)) for _ in range(TURNS)]
            replace_text(file, json.dumps({"of": [str(other), str(own)], "seconds": turns}, indent=1) + "\n")
        try:
            return float(median(a / b for a, b in json.loads(file.read_text())["seconds"]))
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            raise FolderError(f"{file} is damaged; delete it and compare again") from None


def _seconds(run: Run) -> float:
    """Of the whole run's training, on as many threads as it has there."""
    train = replace(run.recipe.train, threads=run.recipe.train.threads or 1)
    return calibrate(replace(run.recipe, train=train), run.folder, BUDGET).training
