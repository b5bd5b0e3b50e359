"""What a finished run says: its curve, what it has cost, and how good its predecessors are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import fingerprint
from ..job import folder
from ..job.lineage import whole
from ..job.prepare import completed, find_method, resolved
from ..job.teach import seconds_of
from ..report import record
from ..types import FolderError
from .runs import Run


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
    harvests: Mapping[str, float]
    """Seconds by store: runs may share one."""
    life: Mapping[str, Any] | None = None
    """What a run of several parts has learned and forgotten."""

    @property
    def loss(self) -> float:
        """At the end; infinite for a run that diverged."""
        return self.curve[-1].loss if self.curve else math.inf

    @property
    def end(self) -> Point:
        """The last validation."""
        return self.curve[-1]


def finished(run: Run, measure: str, source: str) -> Result | None:
    """What a run says, None while it is not finished. A loss that is no longer a number counts as diverged.

    Raises FolderError when its folder belongs to another recipe or is damaged.
    """
    ended = folder.summary(run.folder)
    if not ended and not (run.folder / folder.DIVERGED).exists():
        return None
    if old := folder.recorded(run.folder):
        new = resolved(run.recipe, find_method(run.recipe))
        folder.refuse_changes(run.folder, completed(old), new, contents_known=old["name"] == run.recipe.name)
    if not ended:
        return Result(run, (), 0, {}, "", 0.0, None, {})
    found = record.read(run.folder)
    if not _is_whole(found, ended, source, measure):
        raise FolderError(f"{run.folder} is finished but damaged; delete it and compare again")
    harvests = {spec.store: seconds_of(spec.store) for spec in run.recipe.teachers.values() if spec.store}
    trained = predecessors_flops(found.lineage)
    lines = found.validations
    curve = tuple(_point(line, measured(line["valid"], source, measure), ended, trained, harvests) for line in lines)
    return Result(
        run,
        curve if all(math.isfinite(point.loss) for point in curve) else (),
        ended["student_parameters"],
        {name: measured(valid, source, measure) for name, valid in ended["teachers"].items()},
        found.lineage["measured in"],
        ended["harvest_flops"],
        trained,
        harvests,
        ended.get("life"),
    )


ALL = "all"
"""In a source's place: the mean over all."""


def measured(valid: Mapping[str, Mapping[str, float]], source: str, measure: str) -> float:
    """What a validation says of a source."""
    found = [one[measure] for name, one in valid.items() if source in (name, ALL)]
    return math.fsum(found) / len(found)


def _is_whole(found: record.Record, ended: Mapping[str, Any], source: str, measure: str) -> bool:
    """Whether the files of a finished run hold what they must and agree on its end."""
    numbers = (ended.get(key) for key in ("tokens", "student_parameters", "harvest_flops"))
    teachers, lines = ended.get("teachers"), found.validations
    valid = [line["valid"] for line in lines] + [*teachers.values()] if isinstance(teachers, dict) else [None]
    return (
        all(isinstance(number, int | float) for number in numbers)
        and all(_has(one, source, measure) for one in valid)
        and bool(lines)
        and lines[-1]["tokens"] == ended["tokens"]
        and lines[-1]["valid"] == ended["valid"]
        and whole(found.lineage)
        and "measured in" in found.lineage
    )


def _has(valid: Any, source: str, measure: str) -> bool:
    """Whether a validation says what is compared."""
    names = ([*valid] if source == ALL else [source]) if isinstance(valid, dict) else []
    return bool(names) and all(measure in valid.get(name, ()) for name in names)


def _point(
    line: Mapping[str, Any], loss: float, ended: Mapping[str, Any], trained: float | None, harvests: Mapping[str, float]
) -> Point:
    student = line["student_flops"]
    all_in = student + line["teacher_flops"] + ended["harvest_flops"]
    counted = None if trained is None else all_in + trained
    return Point(line["tokens"], student, all_in, counted, line["seconds"] + sum(harvests.values()), loss)


def predecessors_flops(lineage: Mapping[str, Any]) -> float | None:
    """What all the predecessors in a lineage cost to train, each counted once; None where one does not say."""
    found: dict[str, float | None] = {}

    def visit(member: Mapping[str, Any]) -> None:
        for one in member["predecessors"]:
            own = {key: value for key, value in one.items() if key not in ("as", "in")}
            found[fingerprint(own)] = one.get("flops")
            visit(one)

    visit(lineage)
    known = [flops for flops in found.values() if flops is not None]
    return sum(known) if len(known) == len(found) else None
