"""`bequest check`: what a recipe would do and cost, or everything that is wrong with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from .. import sense
from ..report import table

if TYPE_CHECKING:
    from ..job.check import Plan

MIB = 1 << 20


def command(path: Path, overrides: tuple[str, ...], out: Path | None, time: bool) -> None:
    """Print the plan and what it costs, or every problem, and then leave with 2."""
    recipe, problems = sense.examine(path, overrides)
    if recipe:
        from ..job import check  # a mistake in the recipe alone should not wait for torch
        from ..model import build

        build.quiet()
        folder = out or Path("runs") / recipe.name
        more = check.outside(recipe, folder) if problems else check.problems(recipe, folder)
        problems += [sentence for sentence in more if f"{path}: {sentence}" not in problems]
    for sentence in problems:
        print(f"bequest: {sentence}", file=sys.stderr)
    if recipe is None or problems:
        raise SystemExit(2)
    with sense.named(path):
        plan = check.plan(recipe, folder)
    _show(recipe.name, plan)
    for name, spec in recipe.teachers.items():
        if check.unharvested(recipe).teachers[name] != spec:
            print(
                f"warning: the teacher {name} has no store in {spec.store} yet; run bequest teach {path} before training"
            )
    if time:
        from ..job.calibrate import calibrate

        seconds = calibrate(check.unharvested(recipe), folder)
        print(f"time here: {_span(seconds.training)} of training, {_span(seconds.validation)} of validation")


def _show(name: str, plan: Plan) -> None:
    found = Table(title=f"the plan of {name}", title_justify="left")
    for column in ("stage", "steps", "tokens", "steps with a teacher", "student FLOPs", "teacher FLOPs"):
        found.add_column(column, justify="left" if column == "stage" else "right")
    for s in plan.stages:
        about = "" if s.exact else "about "
        found.add_row(
            s.name,
            f"{s.steps:,}",
            f"{s.tokens:,}",
            f"{s.taught:.0%}",
            f"{about}{s.student_flops:.4g}",
            f"{about}{s.teacher_flops:.4g}",
        )
    table.show(found)
    both = plan.student_flops + plan.teacher_flops
    print("parameters: " + ", ".join(f"{what} {count:,}" for what, count in plan.parameters.items()))
    print(f"cost: {both:.4g} FLOPs, {plan.teacher_flops / both:.1%} of them the teachers' forward passes")
    parts = ", ".join(f"{what} {_mb(size)}" for what, size in {"process": plan.process, **plan.worst}.items())
    where = " on the GPU" if plan.gpu else ""
    print(f"memory{where}: {_mb(plan.memory)} ({parts}; one chunk of logits {_mb(plan.chunk)})")
    print(
        "disk: " + ", ".join(f"{what} {_mb(size)}" for what, size in plan.disk.items()) + f"; {_mb(plan.free)} are free"
    )
    for teacher in plan.teachers:
        print(f"the teacher {teacher}")
    for warning in plan.warnings:
        print(f"warning: {warning}")


def _mb(size: float) -> str:
    return f"{size / MIB:,.0f} MB"


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def schema_text() -> str:
    """The JSON schema of recipes, short forms and the methods' own keys included, so that editors complete and underline."""
    from .. import config, methods
    from ..recipe import Recipe
    from ..report.trackers import PACKAGES

    found = config.schema(Recipe)
    definitions, properties = found["$defs"], found["properties"]
    teacher = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/TeacherModel"}]}
    properties["teachers"]["additionalProperties"] = teacher
    tracker = {"anyOf": [properties["trackers"]["items"], {"enum": sorted(PACKAGES)}]}
    properties["trackers"]["items"] = tracker
    properties["method"] = {"anyOf": [{"enum": methods.names()}], "description": "The method and its hyper-parameters."}
    for name in methods.names():
        own = config.schema(methods.find(name))
        definitions |= own.pop("$defs", {})
        own["properties"] = {"name": {"const": name}} | own.get("properties", {})
        own["required"] = ["name", *own.get("required", [])]
        definitions[f"method_{name}"] = own
        properties["method"]["anyOf"].append({"$ref": f"#/$defs/method_{name}"})
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A Bequest recipe"}
    return json.dumps(found | head, indent=1)
