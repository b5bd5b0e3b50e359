"""The runs of a sweep: recipe, place and identity of each, and what a finished one says.

A run's folder is named after what the run is (recipe, text, predecessors), so that sweeps share runs by themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import sense
from ..config import chosen, fingerprint
from ..data import source
from ..files import sampled
from ..job import folder
from ..job.prepare import completed, find_method, resolved
from ..job.stores import model_identity
from ..job.teach import seconds_file
from ..recipe import Recipe
from ..report import record
from ..types import FolderError

FREE = ("name", "trackers", "train.threads", "train.keep", "train.save_every_tokens", "train.log_every_steps")
"""What changes no bit of a run."""


@dataclass(frozen=True)
class Run:
    """One training run of an arm."""

    arm: str
    rate: float
    seed: int
    budget: float
    recipe: Recipe
    base: Path
    """The recipe's file, and what is overridden in it."""
    overrides: tuple[str, ...]
    stored: bool
    folder: Path

    @property
    def tokens(self) -> int:
        """It sees so many."""
        return self.recipe.train.tokens

    @property
    def command(self) -> tuple[str, ...]:
        """What trains it, as arguments of bequest."""
        harvest = ("--teach",) if self.stored else ()
        return ("train", str(self.base), *self.overrides, "--out", str(self.folder), *harvest)

    def __str__(self) -> str:
        budget = "" if self.budget == 1 else f" x {self.budget:g}"
        return f"{self.arm}{budget}, rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Point:
    """A validation: what had been spent when it was made, and what it found."""

    tokens: int
    student_flops: float
    all_flops: float
    """With the teachers' forward passes and the whole harvest of their stores."""
    counted_flops: float | None
    """With what predecessors cost to train; None where that is unknown."""
    seconds: float
    """Of training steps, and of the harvest."""
    loss: float


@dataclass(frozen=True)
class Result:
    """What a finished run says. A diverged one has no curve."""

    run: Run
    curve: tuple[Point, ...]
    parameters: int
    teachers: Mapping[str, float]
    """How well each live predecessor does on the same held-out text."""
    measured_in: str
    harvest_flops: float
    training_flops: float | None
    """Of all predecessors together."""

    @property
    def loss(self) -> float:
        """At the end; infinite for a run that diverged."""
        return self.curve[-1].loss if self.curve else math.inf

    @property
    def end(self) -> Point:
        """The last validation."""
        return self.curve[-1]


def assignments(keys: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides as the command line takes them."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in keys.items())


def identity(recipe: Recipe) -> str:
    """A fingerprint of what decides a run's bits: the recipe, and the contents of text and models instead of their places.

    What is left at its default is not in it, so that keys which are added later change no run's identity.
    """
    found = chosen(recipe) | {"method": [recipe.method["name"], chosen(find_method(recipe))]}
    for key in (*FREE, *(() if any(t.store for t in recipe.teachers.values()) else ("teach",))):
        room, _, inner = key.rpartition(".")
        (found.get(room, {}) if room else found).pop(inner, None)
    for side in ("train", "valid"):
        for text, entry in zip(getattr(recipe.data, side), found["data"].get(side, ()), strict=True):
            if text.path:
                entry["path"] = [sampled(path) for path in source.files(text)]
    for name, spec in recipe.teachers.items():
        found["teachers"][name] |= {"load": model_identity(spec.load), "store": bool(spec.store)}
    if recipe.student.load:
        found["student"]["load"] = model_identity(recipe.student.load)
    if recipe.tokenizer and recipe.tokenizer.load:
        own = Path(recipe.tokenizer.load) / "tokenizer.json"
        found["tokenizer"]["load"] = sampled(own) if own.is_file() else recipe.tokenizer.load
    return fingerprint(found)


def finished(run: Run, measure: str, source_name: str) -> Result | None:
    """What a run says, None while it is not finished.

    Raises FolderError when its folder belongs to another recipe or is damaged.
    """
    ended = folder.summary(run.folder)
    diverged = (run.folder / "diverged.json").exists()
    if not ended and not diverged:
        return None
    old = folder.recorded(run.folder)
    if old:
        folder.refuse_changes(run.folder, completed(old), resolved(run.recipe, find_method(run.recipe)))
    if not ended:
        return Result(run, (), 0, {}, "", 0.0, None)
    found = record.read(run.folder)
    trained = predecessors_flops(found.lineage)
    harvest, waited = ended["harvest_flops"], harvest_seconds(run.recipe)
    curve = tuple(_point(line, measure, source_name, harvest, trained, waited) for line in found.validations)
    if not curve:
        raise FolderError(f"{run.folder} is finished but holds no validation; delete the folder and compare again")
    teachers = {name: valid[source_name][measure] for name, valid in ended["teachers"].items() if source_name in valid}
    return Result(run, curve, ended["student_parameters"], teachers, found.lineage["measured in"], harvest, trained)


def _point(
    line: Mapping[str, Any], measure: str, source_name: str, harvest: float, trained: float | None, waited: float
) -> Point:
    student, all_in = line["student_flops"], line["student_flops"] + line["teacher_flops"] + harvest
    counted = None if trained is None else all_in + trained
    loss = line["valid"][source_name][measure]
    return Point(line["tokens"], student, all_in, counted, line["seconds"] + waited, loss)


def predecessors_flops(lineage: Mapping[str, Any]) -> float | None:
    """What all the predecessors in a lineage cost to train, each counted once; None where one does not say."""
    found: dict[str, float | None] = {}

    def visit(member: Mapping[str, Any]) -> None:
        for one in member["predecessors"]:
            found[fingerprint({k: one.get(k) for k in ("name", "parameters", "tokens", "flops")})] = one.get("flops")
            visit(one)

    visit(lineage)
    known = [flops for flops in found.values() if flops is not None]
    return sum(known) if len(known) == len(found) else None


def harvest_seconds(recipe: Recipe) -> float:
    """How long the harvests of a recipe's stores took."""
    notes = (seconds_file(spec.store) for spec in recipe.teachers.values() if spec.store)
    return sum(sum(map(float, note.read_text().split())) for note in notes if note.exists())


def load(base: Path, keys: Mapping[str, Any]) -> Recipe:
    """A recipe with some keys set otherwise."""
    return sense.load(base, assignments(keys))
