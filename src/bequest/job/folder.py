"""The run folder: who may use it, which recipe it belongs to, what is in it.

recipe.yaml      the resolved recipe, every default spelled out
metrics.jsonl    one object per logged step and validation
summary.json     written once, at the end
diverged.json    in its place, when the loss is no longer finite: the step and the sentence
checkpoint/      the result, an ordinary Hugging Face folder
checkpoints/     what a resumed run goes on from
stages/          the models between stages, for plans that have several
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import config
from ..files import locked, replace_text
from ..recipe import MAY_CHANGE
from ..types import FolderError

SUMMARY = ("name", "tokens", "student_flops", "teacher_flops", "wall_s", "tokens_per_s", "valid", "checkpoint")
"""What a summary must have."""
DIVERGED = "diverged.json"


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises FolderError when it cannot be written or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise FolderError(
            f"cannot use {folder} as a run folder ({error.strerror}); choose another with --out"
        ) from None
    with locked(folder / ".lock", wait=False):
        yield


def recorded(folder: Path) -> dict[str, Any] | None:
    """The recipe that the folder belongs to. As long as nothing has been saved in it, it belongs to none."""
    path, saved = folder / "recipe.yaml", [*(folder / "checkpoints").glob("step-*"), *folder.glob("summary.json")]
    if not path.exists() or not saved:
        return None
    found = config.read(path)
    train = found.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("tokens"), int):
        raise FolderError(f"{path} is damaged (train.tokens); restore it or choose another folder with --out")
    return found


PLACES = re.compile(r"data\.(train|valid)\.\d+\.path|teachers\.[^.]+\.(load|store)|student\.load|tokenizer\.load")
"""Keys that say where something is."""


def refuse_changes(folder: Path, old: dict[str, Any], new: dict[str, Any], contents_known: bool = False) -> None:
    """Raises FolderError that names what changed when a folder belongs to another recipe.

    Where the contents of text and models are known to be the same, their places may differ.
    """
    changed = config.differences(old, new)
    for key, (before, now) in changed.items():
        if contents_known and before and now and PLACES.fullmatch(key):
            continue
        if not any(key == free or key.startswith(free + ".") for free in MAY_CHANGE):
            more = f" and {len(changed) - 1} more keys" if len(changed) > 1 else ""
            raise FolderError(
                f"{folder} belongs to another recipe: {key} was {before!r} and is {now!r}{more}; "
                "choose another folder with --out"
            )
    if new["train"]["tokens"] < old["train"]["tokens"]:
        raise FolderError(f"{folder} was planned for {old['train']['tokens']} tokens; train.tokens can only be raised")


def record(folder: Path, recipe: dict[str, Any]) -> None:
    """Write down the resolved recipe."""
    replace_text(folder / "recipe.yaml", config.text_of(recipe))


def summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    try:
        found: Any = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not set(SUMMARY) <= set(found):
        raise FolderError(f"{path} is damaged; delete it and run again: nothing is trained twice")
    return found


def diverged(folder: Path, step: int, sentence: str) -> None:
    """The run has ended because its loss is no longer finite; the next one in this folder takes the file away."""
    replace_text(folder / DIVERGED, json.dumps({"step": step, "sentence": sentence}, indent=1) + "\n")


def finish(folder: Path, summary: dict[str, Any]) -> None:
    """The run is finished: this file says so."""
    replace_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
