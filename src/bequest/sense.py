"""Read a recipe: short forms, overrides, and every combination of keys that makes no sense, one sentence each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import override, read, salvage
from .recipe import LEAST_VOCAB, Recipe, Student, TeacherModel
from .types import RecipeError

CAUSAL_FAMILIES = ("llama", "qwen3", "gpt2")
MASKED_FAMILIES = ("bert", "roberta")
MOST_PARAMETERS = 1e13
"""More is a slip of the finger."""


def load(path: Path, assignments: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a file, with overrides such as `data.sequence=512` applied.

    Raises RecipeError, one sentence per mistake that names the key and the file. Relative paths stay relative to the working folder.
    """
    recipe, mistakes = examine(path, assignments)
    if recipe is None or mistakes:
        raise RecipeError(*mistakes)
    return recipe


def examine(path: Path, assignments: tuple[str, ...] = ()) -> tuple[Recipe | None, list[str]]:
    """The recipe, or what can be read of it (None: too little), and a sentence for every mistake that needs no other file."""
    raw = _shorthands(override(_shorthands(read(path)), assignments))
    recipe, mistakes = salvage(Recipe, raw, str(path))
    impossible = problems(recipe) if recipe else []
    left_out = {_named(key) for key in mistakes}  # what they are about is not known
    sure = [f"{path}: {sentence}" for sentence in impossible if not left_out & set(re.findall(r"\w+", sentence))]
    return recipe, [*mistakes.values(), *sure]


def _named(key: str) -> str:
    """The key's last name; numbers are places in lists."""
    return next((part for part in reversed(key.split(".")) if not part.isdigit()), key)


def _shorthands(raw: dict[str, Any]) -> dict[str, Any]:
    """`teachers: {teacher: PATH}` is `{teacher: {load: PATH}}`; `method: ki` and `trackers: [wandb]` are names."""
    teachers = raw.get("teachers")
    if isinstance(teachers, dict):
        raw["teachers"] = {name: {"load": spec} if isinstance(spec, str) else spec for name, spec in teachers.items()}
    if isinstance(raw.get("trackers"), list):
        raw["trackers"] = [{"name": one} if isinstance(one, str) else one for one in raw["trackers"]]
    if isinstance(raw.get("method"), str):
        raw["method"] = {"name": raw["method"]}
    return raw


def problems(recipe: Recipe) -> list[str]:
    """Every impossible combination in a recipe, one sentence each."""
    data, student, train = recipe.data, recipe.student, recipe.train
    found = []
    for place, texts in (("data.train", data.train), ("data.valid", data.valid)):
        for number, text in enumerate(texts):
            if bool(text.path) == bool(text.hub):
                found.append(f"{place}.{number} needs either path or hub")
            if text.part[0] >= text.part[1]:
                found.append(
                    f"{place}.{number}.part {list(text.part)} is empty; give shares that rise, such as [0.1, 1]"
                )
    if not data.train:
        found.append("data.train is empty; name at least one file, folder, glob or data set")
    if data.valid and data.valid_fraction:
        found.append("data.valid and data.valid_fraction exclude each other; keep one")
    if not data.valid and not data.valid_fraction:
        found.append("there is nothing to validate on; give data.valid, or data.valid_fraction such as 0.01")
    schedule = train.schedule
    if schedule.name == "wsd" and schedule.warmup < 1 and schedule.decay < 1 and schedule.warmup + schedule.decay > 1:
        found.append(
            "train.schedule.warmup and train.schedule.decay overlap; as shares of the run they add up to 1 at most"
        )
    if not recipe.name or set(recipe.name) & set("/\\\0") or recipe.name in (".", ".."):
        found.append(f"name {recipe.name!r} cannot be a folder's name; use letters, digits and dashes")
    tokenizer = recipe.tokenizer
    if tokenizer and bool(tokenizer.train) == bool(tokenizer.load):
        found.append("tokenizer needs either train or load")
    if tokenizer and tokenizer.train and tokenizer.train.vocab < LEAST_VOCAB[data.objective]:
        found.append(
            f"tokenizer.train.vocab {tokenizer.train.vocab} is too small; "
            f"byte-level BPE needs at least {LEAST_VOCAB[data.objective]}"
        )
    for name, teacher in recipe.teachers.items():
        found += _teacher_problems(name, teacher, recipe)
    if recipe.teach.kind == "sampled" and recipe.teach.top_p < 1 and not recipe.teach.keep:
        found.append("teach.top_p with kind sampled needs teach.keep, such as 100: the most ids that can be drawn")
    if recipe.teach.kind == "sampled" and len(recipe.teach.temperatures) > 1:
        found.append(
            "teach.temperatures has several, but draws are bound to one; harvest a store for each, or use teach.kind topk"
        )
    if tokenizer is None and not student.load and not any(t.load or t.store for t in recipe.teachers.values()):
        found.append("there is no tokenizer to use; give tokenizer, a teacher or student.load")
    found += _student_problems(student, data.objective)
    found += _life_problems(recipe)
    if train.batch_tokens % data.sequence:
        found.append(f"train.batch_tokens {train.batch_tokens} must be a multiple of data.sequence {data.sequence}")
    if train.micro_batch_tokens % data.sequence:
        found.append(
            f"train.micro_batch_tokens {train.micro_batch_tokens} must be a multiple of data.sequence {data.sequence}"
        )
    if train.tokens < train.batch_tokens:
        found.append(
            f"train.tokens {train.tokens} is less than one batch of {train.batch_tokens}; "
            "raise it or lower train.batch_tokens"
        )
    if not isinstance(recipe.method.get("name"), str):
        found.append("method needs a name, for example {name: ki}")
    return found


def _teacher_problems(name: str, teacher: TeacherModel, recipe: Recipe) -> list[str]:
    found, key = [], f"teachers.{name}"
    ways = [bool(teacher.load or teacher.store), bool(teacher.route), bool(teacher.ensemble)]
    if not any(ways) and teacher.control != "uniform":
        found.append(f"{key} needs load, the folder or hub id of a model (or store, route or ensemble)")
    if sum(ways) > 1:
        found.append(f"{key} is several things at once; keep one of load (or store), route and ensemble")
    if teacher.control == "untrained" and (not teacher.load or teacher.server):
        found.append(f"{key}.control untrained is made from a model's configuration; give load, and no server")
    if teacher.keep and not (teacher.load and not teacher.store):
        found.append(f"{key}.keep is for live models alone; what a store keeps is said in teach")
    for other in dict.fromkeys([*teacher.route.values(), *teacher.ensemble]):
        if other not in recipe.teachers:
            found.append(f"{key} names the teacher {other!r}, which is not there; add it to teachers")
        elif recipe.teachers[other].route or recipe.teachers[other].ensemble:
            found.append(f"{key} names the teacher {other!r}, which is itself several; name models and stores")
    if teacher.route:
        for source in dict.fromkeys(text.source for text in recipe.data.train):
            if source not in teacher.route:
                found.append(f"{key}.route has no teacher for the source {source!r} of data.train; add one")
    found += _store_problems(name, teacher.store, recipe)
    return found + (_server_problems(key, teacher, recipe) if teacher.server else [])


def _server_problems(key: str, teacher: TeacherModel, recipe: Recipe) -> list[str]:
    found, teach = [], recipe.teach
    if not teacher.server.startswith(("http://", "https://")):
        found.append(f"{key}.server {teacher.server!r} is no URL; write it like http://localhost:8000")
    if not (teacher.load and teacher.store):
        found.append(
            f"{key}.server needs load, the folder or hub id of the model that it serves, and store, where to keep its answers"
        )
    if recipe.data.objective != "causal":
        found.append(f"{key}.server tells next tokens alone; leave it out, or set data.objective to causal")
    if teach.kind == "sampled" or any(t != 1 for t in teach.temperatures):
        found.append(
            f"{key}.server tells only the likeliest ids at temperature 1; "
            "set teach.kind to topk and teach.temperatures to [1], or leave the server out"
        )
    return found


def _store_problems(name: str, store: str, recipe: Recipe) -> list[str]:
    if not store:
        return []
    if "\0" in store:
        return [f"teachers.{name}.store cannot be a folder's name; leave out the null byte"]
    own = os.path.realpath(store)
    others = [os.path.realpath(t.store.replace("\0", "")) for n, t in recipe.teachers.items() if t.store and n != name]
    loads = [os.path.realpath(t.load.replace("\0", "")) for t in recipe.teachers.values() if t.load]
    if own in others:
        return [f"teachers.{name}.store is another teacher's store, too; give each its own folder"]
    if own in loads:
        return [f"teachers.{name}.store is the folder of a model; give the store its own folder"]
    return []


def _student_problems(student: Student, objective: str) -> list[str]:
    if bool(student.load) == bool(student.family):
        return ["student needs either family (with sizes) or load"]
    if student.load:
        return []
    found = []
    size = student.layers * 4 * student.hidden * (student.hidden + (student.feed_forward or student.hidden))
    if size + student.vocab * student.hidden > MOST_PARAMETERS:
        found.append("the student would have more than 1e13 parameters; lower student.hidden, layers or feed_forward")
    families = CAUSAL_FAMILIES if objective == "causal" else MASKED_FAMILIES
    if student.family not in families:
        found.append(
            f"student.family {student.family} does not fit data.objective {objective}; it takes {', '.join(families)}"
        )
    if student.hidden % student.heads:
        found.append(f"student.hidden {student.hidden} must be a multiple of student.heads {student.heads}")
    elif student.family in ("llama", "qwen3") and student.hidden // student.heads % 2:
        found.append(
            f"student.hidden / student.heads is {student.hidden // student.heads}; rotary positions need an even number"
        )
    if student.kv_heads and student.heads % student.kv_heads:
        found.append(f"student.heads {student.heads} must be a multiple of student.kv_heads {student.kv_heads}")
    if student.kv_heads and student.family not in ("llama", "qwen3"):
        found.append(f"student.kv_heads has no meaning for family {student.family}; leave it out")
    return found


def _life_problems(recipe: Recipe) -> list[str]:
    life, parts, found = recipe.life, recipe.parts, []
    if len(parts) > 1 and "" in parts:
        found.append("data.train has entries with and without a stage; give every one a stage, or none")
    homes: dict[str, str] = {}
    for stage, sources in parts.items():
        for source in sources:
            if homes.setdefault(source, stage) != stage:
                found.append(
                    f"data.train has the source {source!r} in the stages {homes[source]!r} and {stage!r}; "
                    "give the later one another source"
                )
        if stage and not re.fullmatch(r"\w[\w-]{0,99}", stage):
            found.append(
                f"data.train has the stage {stage!r}, which cannot be a folder's name; use letters, digits, dashes"
            )
    held_out = {text.source for text in recipe.data.valid}
    if len(parts) > 1 and held_out and (missing := [source for source in homes if source not in held_out]):
        found.append(
            f"data.valid has no text of the source {missing[0]!r}; add some, or nobody can tell how much of it is forgotten"
        )
    if any(text.stage for text in recipe.data.valid):
        found.append("data.valid has a stage, but only data.train is learned in stages; leave it out there")
    if len(parts) == 1 and life != type(life)():
        found.append(
            "life is about runs of several stages; give the entries of data.train a stage each, or leave life out"
        )
    if life.shares and len(life.shares) != len(parts):
        found.append(f"life.shares has {len(life.shares)} numbers for {len(parts)} stages; give one for each, or none")
    if life.sampling != "uniform" and not life.replay:
        found.append(f"life.sampling {life.sampling} says what is replayed; give life.replay, such as 0.1")
    if life.sampling != "uniform" and any(t.store for t in recipe.teachers.values()):
        found.append(
            f"life.sampling {life.sampling} chooses text while training, which no store can know ahead; "
            "use uniform, or live teachers"
        )
    if (data_drop := recipe.data.prompt_drop) and not recipe.data.prompts:
        found.append(f"data.prompt_drop {data_drop:g} has no meaning without data.prompts; leave it out")
    return found


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors about a recipe name its file, wherever they are found."""
    try:
        yield
    except RecipeError as error:
        raise type(error)(*(p if p.startswith(f"{path}:") else f"{path}: {p}" for p in error.problems)) from None
