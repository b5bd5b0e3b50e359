"""A run folder as the reports read it: the recipe, what was measured, what it cost, where and from whom it came."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__, config
from ..types import FolderError
from . import metrics

LINEAGE, HISTORY, STORES = "lineage.json", "history.jsonl", "stores.json"


@dataclass(frozen=True)
class Record:
    """One run."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    """Of the metrics file."""
    summary: Mapping[str, Any] | None
    """None while the run is not finished."""
    lineage: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    """What started or resumed the run, and where."""
    stores: Mapping[str, Any]
    """By teacher: what the stores held that the run learns from."""

    @property
    def validations(self) -> list[Mapping[str, Any]]:
        """The lines that hold a validation."""
        return [line for line in self.lines if "valid" in line]

    @property
    def looks(self) -> list[Mapping[str, Any]]:
        """The same and, where a run of several stages was measured between validations, those losses alone."""
        seen = {line["tokens"] for line in self.validations}
        ended = (line for line in self.lines if "ended" in line and line["tokens"] not in seen)
        others = [{**line, "valid": {s: {"loss": loss} for s, loss in line["losses"].items()}} for line in ended]
        return sorted([*self.validations, *others], key=lambda line: int(line["tokens"]))

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The lines of training steps."""
        return [line for line in self.lines if "loss" in line]


def read(folder: Path) -> Record:
    """The record of a run folder, finished or not.

    Raises FolderError when it is none.
    """
    if not (folder / "recipe.yaml").is_file():
        raise FolderError(f"{folder} is not a run folder; give one that bequest train wrote, such as runs/first")
    recipe = config.read(folder / "recipe.yaml")
    summary, lineage, stores = (_object(folder / name) for name in ("summary.json", LINEAGE, STORES))
    history = metrics.objects(folder / HISTORY, lambda line: {"when", "command", "versions", "machine"} <= set(line))
    lines = metrics.read(folder / "metrics.jsonl")
    return Record(recipe["name"], folder, recipe, lines, summary, lineage or {}, history, stores or {})


def _object(path: Path) -> dict[str, Any] | None:
    """The object in a file, None when there is no file."""
    try:
        found = json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        found = ""
    if found is not None and not isinstance(found, dict):
        raise FolderError(f"{path} is damaged; delete it and run the recipe again")
    return found


def remember(folder: Path, precision: str) -> None:
    """Note in a run folder that it is being worked on: when, by which command, with which versions, on what machine."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    now = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["bequest", *sys.argv[1:]]),
        "versions": {"bequest": __version__, "python": platform.python_version(), **versions},
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "precision": precision, **gpu},
    }
    with (folder / HISTORY).open("a") as file:
        file.write(json.dumps(now) + "\n")
