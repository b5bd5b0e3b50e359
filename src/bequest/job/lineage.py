"""Who descends from whom: a model's predecessors, with sizes and tokens, as far back as the folders tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..model import build
from ..recipe import Recipe, Student, TeacherModel
from ..report.record import LINEAGE
from ..teach.store import open_store
from ..types import ModelError

Lineage = dict[str, Any]
"""{name, load, hub, parameters, tokens, flops, method, as, predecessors}; tokens and flops None where nobody wrote them down.

`flops` are those of its own training: its own, its teachers' forward passes and the harvest of its stores.

`measured in` is the objective and a hash of the tokenizer: losses can be compared where it is equal.
"""


def of(recipe: Recipe, vocabulary: str, parameters: int, tokens: int, flops: float) -> Lineage:
    """The lineage of the model that a recipe makes, after so many tokens and FLOPs."""
    loaded: list[tuple[str, str, TeacherModel | Student]]
    loaded = [("teacher", name, t) for name, t in recipe.teachers.items() if t.live]
    loaded += [("beginning", "student", recipe.student)] if recipe.student.load else []
    return {
        "name": recipe.name,
        "load": None,
        "hub": False,
        "parameters": parameters,
        "tokens": tokens,
        "flops": flops,
        "method": recipe.method["name"],
        "measured in": f"{recipe.data.objective} {vocabulary}",
        "predecessors": [
            {"as": role, "in": name, **predecessor(spec, recipe.data.objective)} for role, name, spec in loaded
        ]
        + [
            {"as": "teacher", "in": name, **_known(open_store(Path(t.store)).manifest.teacher.lineage)}
            for name, t in recipe.teachers.items()
            if t.store
        ],
    }


def _read(path: Path) -> Lineage:
    try:
        found: Lineage = json.loads(path.read_text())
    except ValueError:
        found = {}
    if not whole(found):
        raise ModelError(f"{path} is damaged; fetch it again, or delete it and do without what it tells")
    return found


def whole(member: Any) -> bool:
    """Whether a lineage, or a member of one, holds what it must."""
    keys = {"name", "parameters", "tokens", "method", "predecessors"}
    return isinstance(member, dict) and keys <= set(member) and all(map(whole, member["predecessors"]))


def _known(member: Lineage) -> Lineage:
    """A member with all keys: files from before `flops` lack it."""
    return {"flops": None} | member | {"predecessors": [_known(p) for p in member["predecessors"]]}


def predecessor(spec: TeacherModel | Student, objective: str) -> Lineage:
    """The lineage of a model that is loaded. An untrained one descends from none and has cost nothing."""
    found = _loaded(spec.load, objective, spec.remote_code)
    if isinstance(spec, TeacherModel) and spec.control == "untrained":
        fresh: Lineage = {"hub": False, "tokens": 0, "flops": 0.0, "method": None, "predecessors": []}
        return found | fresh | {"name": f"{found['name']}, untrained"}
    return found


def _loaded(load: str, objective: str, remote_code: bool) -> Lineage:
    own = Path(load) / LINEAGE
    if own.is_file():
        return _known(_read(own)) | {"load": load}
    count = sum(p.numel() for p in build.outline(load, objective, remote_code).parameters())
    hub = not Path(load).exists()
    name = load if hub else Path(load).name
    return {
        "name": name,
        "load": load,
        "hub": hub,
        "parameters": count,
        "tokens": None,
        "flops": None,
        "method": None,
        "predecessors": [],
    }
