"""Harvest: ask a recipe's teachers about its text once and keep what they say in their stores."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ..data.tokenizer import Vocabulary, saved
from ..device import Place, place_for, settle
from ..model import build
from ..recipe import Recipe, TeacherModel
from ..report.progress import Harvesting
from ..teach import server, store
from ..teach.codec import MOST_IDS
from ..teach.harvest import Asked, Here, Told, harvest
from ..teach.live import Live
from ..teach.signals import Form
from ..teach.store import FORMAT, Manifest, Origin, Store
from ..types import FolderError, ModelError, RecipeError
from .asked import questions
from .lineage import predecessor
from .models import opener
from .prepare import Prepared, find_method, find_objective, prepare
from .stores import packing, teacher_identity


@dataclass(frozen=True)
class Harvest:
    """One teacher's part of the work."""

    name: str
    spec: TeacherModel
    manifest: Manifest
    asked: list[Asked]


def teach(recipe: Recipe) -> dict[str, Store]:
    """Harvest what the recipe's schedule will ask of every teacher that has both `load` and `store`.

    Goes on where an earlier call stopped, and beside other processes. Raises BequestError for what a user can mend.
    """
    build.quiet()
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    where = settle(recipe.train)
    if where.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    prepared, work = plan(recipe)
    if not work:
        raise RecipeError(
            f"the method {recipe.method['name']} asks no teacher that has a store; nothing is to be harvested"
        )
    tokenizer = saved(prepared.vocabulary.tokenizer)
    found = {}
    for one in work:
        teacher = _told(one.spec, recipe, prepared.vocabulary.size, where)
        with ExitStack() as stack:
            stack.callback(teacher.release)
            kept = store.create(Path(one.spec.store), one.manifest, tokenizer)
            total = sum(len(asked.keys) for asked in one.asked)
            progress = stack.enter_context(Harvesting(f"{one.name}, {one.manifest.form.name}", total))
            began = time.perf_counter()
            for done in harvest(kept, teacher, one.asked, rank, ranks):
                progress(done, one.manifest.packing.sequence)
            if progress.made:
                with seconds_file(one.spec.store).open("a") as file:
                    file.write(f"{time.perf_counter() - began:.3f}\n")
        kept.refresh()
        found[one.name] = kept
    return found


def seconds_file(store: str) -> Path:
    """Beside a store: how long each harvest that came to its end took. Not in it: stores are the same bytes in every harvest."""
    return Path(f"{store}.seconds")


def seconds_of(store: str) -> float:
    """How long a store's harvests took; 0 where nobody noted it."""
    path = seconds_file(store)
    try:
        return sum(map(float, path.read_text().split())) if path.exists() else 0.0
    except ValueError:
        raise FolderError(f"{path} is damaged; delete it to do without what it says about time") from None


def _told(spec: TeacherModel, recipe: Recipe, vocabulary: int, where: Place) -> Told:
    """Who answers for a teacher: its server, or the model itself."""
    if spec.server:
        outline = build.outline(spec.load, recipe.data.objective, spec.remote_code)
        return server.connect(spec.server, spec.load, outline, recipe.data.sequence)
    load = opener(recipe, where.device)
    return Here(Live(partial(load, spec), vocabulary, 0, where.autocast), where)


def plan(recipe: Recipe) -> tuple[Prepared, list[Harvest]]:
    """What is to be harvested, teacher by teacher."""
    method = find_method(recipe)
    chosen = {name: spec for name, spec in recipe.teachers.items() if spec.load and spec.store}
    if not chosen:
        raise RecipeError("no teacher has both load and store; say where to keep its answers, with teachers.NAME.store")
    # The models are asked, whatever their stores hold by now.
    live = {name: replace(spec, store="") if name in chosen else spec for name, spec in recipe.teachers.items()}
    prepared = prepare(replace(recipe, teachers=live))
    asking = questions(recipe, prepared, method, recipe.teach.sequences == "all")
    return prepared, [
        Harvest(name, spec, _manifest(name, recipe, prepared, asking[name].temperatures), asking[name].asked)
        for name, spec in chosen.items()
        if asking[name].asked
    ]


def _manifest(name: str, recipe: Recipe, prepared: Prepared, asked: tuple[float, ...]) -> Manifest:
    vocabulary, spec = prepared.vocabulary, recipe.teachers[name]
    if vocabulary.size > MOST_IDS:
        raise ModelError(f"a store holds at most {MOST_IDS} different ids, and this tokenizer has {vocabulary.size}")
    return Manifest(
        format=FORMAT,
        teacher=Origin(
            weights=teacher_identity(spec),
            revision=str(getattr(build.config_of(spec.load, spec.remote_code), "_commit_hash", None) or ""),
            lineage=predecessor(spec, recipe.data.objective),
        ),
        tokenizer=vocabulary.identity,
        packing=packing(recipe, find_objective(recipe, vocabulary)),
        form=form_of(name, recipe, vocabulary, asked),
        seed=recipe.teach.seed,
        precision="server" if spec.server else place_for(recipe.train).precision,
        shard_tokens=recipe.teach.shard_tokens,
    )


def form_of(name: str, recipe: Recipe, vocabulary: Vocabulary, asked: tuple[float, ...]) -> Form:
    """What the recipe wants to be kept of a teacher's answers.

    Raises RecipeError when the method asks at temperatures that it would not hold.
    """
    teach = recipe.teach
    temperatures = tuple(sorted(set(teach.temperatures))) or asked
    if missing := [t for t in asked if t not in temperatures]:
        raise RecipeError(
            f"the method asks the teacher {name} at temperature {missing[0]:g}, which teach.temperatures leaves out; add it"
        )
    if teach.kind == "sampled" and len(temperatures) > 1:
        listed = ", ".join(f"{t:g}" for t in temperatures)
        raise RecipeError(
            f"the method asks the teacher {name} at temperatures {listed}, but draws are bound to one; use teach.kind topk"
        )
    if recipe.teachers[name].server and temperatures != (1.0,):
        listed = ", ".join(f"{t:g}" for t in temperatures)
        raise RecipeError(
            f"the method asks the teacher {name} at temperature {listed}, but a server answers at 1 alone; "
            f"let the method ask at 1, or leave out teachers.{name}.server"
        )
    limit = teach.keep if teach.keep is not None else {"topk": 32, "sampled": 0}[teach.kind]
    return Form(
        kind=teach.kind,
        vocabulary=vocabulary.size,
        keep=min(limit, vocabulary.size),
        top_p=teach.top_p,
        draws=teach.draws if teach.kind == "sampled" else 0,
        temperatures=temperatures,
        values=teach.values,
    )
