"""Harvest: ask a recipe's teachers about its text once and keep what they say in their stores."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ..data.tokenizer import Vocabulary, saved
from ..device import Place, place
from ..model import build
from ..recipe import Recipe, TeacherModel
from ..report.progress import Harvesting
from ..teach import store
from ..teach.codec import MOST_IDS
from ..teach.harvest import Asked, harvest
from ..teach.live import Live
from ..teach.signals import Form
from ..teach.store import FORMAT, Manifest, Origin, Store
from ..types import ModelError, RecipeError
from .asked import Questions, walk
from .lineage import predecessor
from .prepare import Prepared, find_method, find_objective, inputs, opener, prepare
from .stores import packing, weights_identity


@dataclass(frozen=True)
class Harvest:
    """One teacher's part of the work."""

    name: str
    spec: TeacherModel
    manifest: Manifest
    asked: list[Asked]

    @property
    def shards(self) -> list[Asked]:
        """What is to be there in the end."""
        return [shard for one in self.asked for shard in one.shards(self.manifest.shard_sequences)]


def teach(recipe: Recipe) -> dict[str, Store]:
    """Harvest what the recipe's schedule will ask of every teacher that has both `load` and `store`.

    Goes on where an earlier call stopped, and beside other processes. Raises BequestError for what a user can mend.
    """
    build.quiet()
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    where = place(recipe.train.device, recipe.train.precision)
    if where.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    prepared, work = plan(recipe, where)
    if not work:
        raise RecipeError(
            f"the method {recipe.method['name']} asks no teacher that has a store; nothing is to be harvested"
        )
    tokenizer, load = saved(prepared.vocabulary.tokenizer), opener(recipe, where.device)
    found = {}
    for one in work:
        kept = store.create(Path(one.spec.store), one.manifest, tokenizer)
        teacher = Live(partial(load, one.spec), prepared.vocabulary.size, 0, where.autocast)
        with Harvesting(f"{one.name}, {one.manifest.form.name}", sum(len(s.keys) for s in one.shards)) as progress:
            for done in harvest(kept, teacher, one.shards, where, rank, ranks):
                progress(done, one.manifest.packing.sequence)
        teacher.release()
        kept.refresh()
        found[one.name] = kept
    return found


def plan(recipe: Recipe, where: Place) -> tuple[Prepared, list[Harvest]]:
    """What is to be harvested, teacher by teacher."""
    method = find_method(recipe)
    chosen = {name: spec for name, spec in recipe.teachers.items() if spec.load and spec.store}
    if not chosen:
        raise RecipeError("no teacher has both load and store; say where to keep its answers, with teachers.NAME.store")
    # The models are asked, whatever their stores hold by now.
    asking = {name: replace(spec, store="") if name in chosen else spec for name, spec in recipe.teachers.items()}
    asking_recipe = replace(recipe, teachers=asking)
    prepared = prepare(asking_recipe)
    questions = {name: Questions() for name in recipe.teachers}
    given = inputs(asking_recipe, prepared, where, Path(), opener(recipe, "cpu"), lambda name, spec: questions[name])
    asked = walk(method.plan(given), questions, recipe.teach.sequences == "all")
    return prepared, [
        Harvest(name, spec, _manifest(name, spec, recipe, prepared, questions[name]), asked[name])
        for name, spec in chosen.items()
        if asked[name]
    ]


def _manifest(name: str, spec: TeacherModel, recipe: Recipe, prepared: Prepared, questions: Questions) -> Manifest:
    vocabulary = prepared.vocabulary
    if vocabulary.size > MOST_IDS:
        raise ModelError(f"a store holds at most {MOST_IDS} different ids, and this tokenizer has {vocabulary.size}")
    return Manifest(
        format=FORMAT,
        teacher=Origin(
            weights=weights_identity(spec.load),
            revision=str(getattr(build.config_of(spec.load, spec.remote_code), "_commit_hash", None) or ""),
            lineage=predecessor(spec.load, recipe.data.objective, spec.remote_code),
        ),
        tokenizer=vocabulary.identity,
        packing=packing(recipe, find_objective(recipe, vocabulary)),
        form=form_of(name, recipe, vocabulary, tuple(sorted(questions.temperatures))),
        seed=recipe.teach.seed,
        precision=recipe.train.precision,
        shard_sequences=max(1, recipe.teach.shard_tokens // recipe.data.sequence),
    )


def form_of(name: str, recipe: Recipe, vocabulary: Vocabulary, asked: tuple[float, ...]) -> Form:
    """What the recipe wants to be kept of a teacher's answers.

    Raises RecipeError when the method asks at temperatures that it would not hold.
    """
    teach = recipe.teach
    temperatures = teach.temperatures or asked
    if missing := [t for t in asked if t not in temperatures]:
        raise RecipeError(
            f"the method asks the teacher {name} at temperature {missing[0]:g}, which teach.temperatures leaves out; add it"
        )
    if teach.kind == "sampled" and len(temperatures) > 1:
        listed = ", ".join(f"{t:g}" for t in temperatures)
        raise RecipeError(
            f"the method asks the teacher {name} at temperatures {listed}, but draws are bound to one; use teach.kind topk"
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
