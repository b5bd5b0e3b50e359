"""Recipe -> everything that training needs: tokenizer, token stores, batches, student and teachers, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import config, methods
from ..config import fingerprint
from ..data import source, tokenizer, tokens
from ..data.batches import Batches, seed_of
from ..data.objective import Causal, Masked, Objective
from ..data.pack import Pack
from ..data.tokenizer import Vocabulary
from ..device import Place
from ..eval.held_out import HeldOut, mean_loss
from ..files import locked, new_folder
from ..model import build
from ..model.language import LanguageModel
from ..recipe import Recipe, Student, TeacherModel, Text
from ..report.progress import Reading
from ..teach.compose import Ensembled, Routed
from ..teach.controls import CONTROLS
from ..teach.live import Live
from ..teach.store import open_store
from ..teach.stored import Stored
from ..train.plan import Inputs, Method
from ..types import DataError, Doc, ModelError, RecipeError, Teacher
from .judge import Guess, Judge
from .models import Open, check_model, models_of
from .stores import opened, teacher_identity, tokenizer_of

PIECE = 1 << 20
"""Documents whose hashes are held at once."""


@dataclass(frozen=True)
class Prepared:
    """What a run is made of."""

    vocabulary: Vocabulary
    batches: Batches
    held_out: Mapping[str, HeldOut]
    judge: Judge | Guess
    """Asked what predecessors make of text."""
    identity: Mapping[str, Any]
    """What must be the same when the run is resumed."""
    warnings: tuple[str, ...]
    """What a user should know and may want."""


def cache() -> Path:
    """Where tokenizers and token stores are kept between runs: $BEQUEST_CACHE, or bequest in the user's cache folder."""
    own = os.environ.get("BEQUEST_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bequest"


def find_method(recipe: Recipe) -> Method:
    """The method with its hyper-parameters.

    Raises RecipeError when there is none of that name, a key is wrong or a teacher that it needs is missing.
    """
    name = recipe.method.get("name")
    if not isinstance(name, str):
        raise RecipeError("method needs a name, for example {name: ki}")
    fields = {key: value for key, value in recipe.method.items() if key != "name"}
    method = config.decode(methods.find(name), fields, "", "method")
    for teacher in method.needs:
        if teacher not in recipe.teachers:
            raise RecipeError(f"method {name} needs a teacher; add teachers: {{{teacher}: PATH}}")
    return method


def resolved(recipe: Recipe, method: Method) -> dict[str, Any]:
    """The recipe as plain values, every default spelled out, the method's too."""
    return config.encode(recipe) | {"method": {"name": recipe.method["name"], **config.encode(method)}}


def completed(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recipe that was written down resolved, with the keys that have been added since at their defaults."""
    recipe = config.decode(Recipe, recorded, "the recipe of the run folder")
    return resolved(recipe, find_method(recipe))


def prepare(recipe: Recipe) -> Prepared:
    """Tokenise what is not tokenised yet and check that text, tokenizer, student and teachers fit together.

    Raises BequestError with the first thing that does not.
    """
    method, models = find_method(recipe), models_of(recipe)
    configs = {what: build.config_of(spec.load, spec.remote_code) for what, spec in models.items()}
    for what, spec in models.items():
        build.check_kind(spec.load, configs[what], recipe.data.objective)
        if not (isinstance(spec, TeacherModel) and spec.server):  # the server has the weights
            build.check_weights(spec.load)
    vocabulary = find_tokenizer(recipe)
    objective = find_objective(recipe, vocabulary)
    for what, spec in knowing(recipe, method).items():
        check_model(what, spec.load, configs[what], recipe.data.sequence, vocabulary)
    stores = {name: opened(spec, recipe, vocabulary, objective) for name, spec in recipe.teachers.items() if spec.store}
    size = recipe.train.batch_tokens // recipe.data.sequence
    training = packs(recipe, vocabulary, objective, "train")
    batches = Batches(training, objective, size, recipe.seed)
    if batches.count < 2:
        names = ", ".join(text.path or text.hub for text in recipe.data.train)
        raise DataError(
            f"the training text ({names}) fills {batches.count} sequence of {recipe.data.sequence} tokens; "
            "give more text or lower data.sequence"
        )
    validation = packs(recipe, vocabulary, objective, "valid")
    held = recipe.train.micro_batch_tokens // recipe.data.sequence or size
    held_out = {
        pack.store.source: HeldOut(Batches((pack,), objective, held, 0, ordered=True), int(pack.store.text_bytes[-1]))
        for pack in validation
    }
    identity = {
        "training text": [p.store.digest for p in training],
        "tokenizer": vocabulary.identity,
        "teacher": {
            name: stores[name].fingerprint if spec.store else teacher_identity(spec)
            for name, spec in recipe.teachers.items()
        },
    }
    judge = Judge(recipe, vocabulary, cache() / "scores")
    warnings = (*_overlaps(training, validation), *_too_large(recipe, method))
    return Prepared(vocabulary, batches, held_out, judge, identity, warnings)


def knowing(recipe: Recipe, method: Method) -> dict[str, TeacherModel | Student]:
    """The models that have to know the run's tokens, by what they are."""
    others = {f"the teacher {name}" for name in method.strangers}
    return {what: spec for what, spec in models_of(recipe).items() if what not in others}


def _too_large(recipe: Recipe, method: Method) -> Iterator[str]:
    """Predecessors that the method wants to be smaller than others, and are not."""
    for small, large in method.smaller:
        sizes = [
            sum(p.numel() for p in build.outline(spec.load, recipe.data.objective, spec.remote_code).parameters())
            for spec in (recipe.teachers[small], recipe.teachers[large])
            if spec.load
        ]
        if len(sizes) == 2 and sizes[0] > sizes[1]:
            yield (
                f"the {small} has {sizes[0]:,} parameters, more than the {large} ({sizes[1]:,}); "
                "what is chosen is then what the smaller model knows better"
            )


def _overlaps(training: Sequence[Pack], validation: Sequence[Pack]) -> Iterator[str]:
    """Validation documents that are training documents, word for word."""
    held = np.concatenate([pack.store.hashes for pack in validation])
    hashes = [pack.store.hashes for pack in training]
    pieces = (h[first : first + PIECE] for h in hashes for first in range(0, len(h), PIECE))  # there may be billions
    seen = np.concatenate([piece[np.isin(piece, held)] for piece in pieces])
    for pack in validation:
        if count := int(np.isin(pack.store.hashes, seen).sum()):
            yield (
                f"{count} of {len(pack.store.hashes)} validation documents of the source {pack.store.source!r} also "
                "stand in the training text; its loss will look better than it is"
            )


def find_tokenizer(recipe: Recipe) -> Vocabulary:
    """The recipe's tokenizer: trained (once), loaded, or the teacher's, or the loaded student's; with its prompts."""
    vocabulary = _tokenizer(recipe)
    return tokenizer.prompted(vocabulary, (t.source for t in recipe.data.train)) if recipe.data.prompts else vocabulary


def _tokenizer(recipe: Recipe) -> Vocabulary:
    wanted = recipe.tokenizer
    if wanted and wanted.train:
        key = {
            "texts": [source.identity(t) for t in recipe.data.train],
            "train": wanted.train.vocab,
            "objective": recipe.data.objective,
        }
        key |= {"sample": wanted.train.sample_mb, "valid_fraction": recipe.data.valid_fraction}
        folder = cache() / "tokenizers" / fingerprint(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock"), wait=True):
            if not folder.exists():
                streams = [_documents([t], recipe, "train") for t in recipe.data.train]
                trained = tokenizer.train(
                    streams, wanted.train.vocab, wanted.train.sample_mb << 20, recipe.data.objective
                )
                with new_folder(folder) as temporary:
                    trained.save_pretrained(temporary)
        return tokenizer.load(str(folder))
    models = [*(tokenizer_of(spec) for spec in recipe.teachers.values()), recipe.student.load]
    where = wanted.load if wanted else next(filter(None, models), "")
    if not where:
        raise RecipeError("there is no tokenizer to use; give tokenizer, a teacher or student.load")
    return tokenizer.load(where)


def find_objective(recipe: Recipe, vocabulary: Vocabulary) -> Objective:
    """Next token, or masked tokens for a tokenizer that has a mask."""
    if recipe.data.objective == "causal":
        return Causal()
    if vocabulary.mask is None:
        raise ModelError(
            "the tokenizer has no mask token, which data.objective masked needs; "
            "choose another tokenizer or objective causal"
        )
    return Masked(vocabulary, recipe.data.mask_rate, recipe.data.mask_seed, recipe.data.masks == "static")


def packs(recipe: Recipe, vocabulary: Vocabulary, objective: Objective, side: str) -> tuple[Pack, ...]:
    """One pack per source, tokenised where that has not been done."""
    texts = recipe.data.valid if side == "valid" and recipe.data.valid else recipe.data.train
    found = []
    for name in dict.fromkeys(t.source for t in texts):
        own = [t for t in texts if t.source == name]
        key = [[source.identity(t) for t in own], vocabulary.identity, vocabulary.begin, vocabulary.end]
        key += [recipe.data.valid_fraction, side if recipe.data.valid_fraction else "", tokens.FORMAT]
        folder = cache() / "tokens" / fingerprint(key)
        docs = partial(_documents, own, recipe, side)
        progress = Reading(f"tokenising {name} ({side})")
        store = tokens.build(folder, name, docs, vocabulary, progress, _nothing(own, recipe, side))
        if side == "valid" and recipe.eval.tokens:
            store = store.first(recipe.eval.tokens)
        prompt = vocabulary.prompts.get(name) if recipe.data.prompts else None
        drop = recipe.data.prompt_drop if side == "train" else 0.0
        found.append(Pack(store, recipe.data.sequence, objective.overlap, prompt, drop))
    return tuple(found)


def _nothing(texts: Iterable[Text], recipe: Recipe, side: str) -> str:
    """What to say of a source without documents."""
    where, fraction = ", ".join(t.path or t.hub for t in texts), recipe.data.valid_fraction
    if not fraction:
        return f"there is no document with text in {where}; check the path, the field and the split"
    what = {"train": "training", "valid": "validation"}[side]
    return (
        f"data.valid_fraction {fraction} leaves no document of {where} for {what}; "
        "change it, give more documents, or name data.valid"
    )


def _documents(texts: Iterable[Text], recipe: Recipe, side: str) -> Iterator[Doc]:
    """The documents of some texts that belong to the training or the validation side."""
    fraction = recipe.data.valid_fraction
    chosen = source.in_valid(fraction)
    keep: Callable[[str], bool] | None = (lambda text: chosen(text) == (side == "valid")) if fraction else None
    return chain.from_iterable(source.documents(text, keep) for text in texts)


def new_student(recipe: Recipe, vocabulary: Vocabulary) -> LanguageModel:
    """The successor at step 0: the same weights for the same seed, whatever the method."""
    torch.manual_seed(seed_of(recipe.seed))
    if recipe.student.load:
        return build.load(recipe.student.load, recipe.data.objective, recipe.student.remote_code)
    return build.build(recipe.student, vocabulary, recipe.data.sequence)


def outline(recipe: Recipe, vocabulary: Vocabulary) -> LanguageModel:
    """The successor without its numbers, on the device `meta`."""
    if recipe.student.load:
        return build.outline(recipe.student.load, recipe.data.objective, recipe.student.remote_code)
    with torch.device("meta"):
        return build.build(recipe.student, vocabulary, recipe.data.sequence)


Make = Callable[[str, TeacherModel], Teacher]


def inputs(recipe: Recipe, prepared: Prepared, place: Place, run: Path, load: Open, make: Make | None = None) -> Inputs:
    """What the method gets. `make` makes a teacher from its name and entry; without it they are what the recipe says."""
    alive = partial(_live, vocabulary=prepared.vocabulary, place=place, load=load)
    live = {name: alive(spec) for name, spec in recipe.teachers.items() if spec.load}

    def real(name: str, spec: TeacherModel) -> Teacher:
        return Stored(partial(open_store, Path(spec.store))) if spec.store else live.get(name) or alive(spec)

    return Inputs(
        batches=prepared.batches,
        steps=recipe.train.tokens // recipe.train.batch_tokens,
        seed=recipe.seed,
        teachers=_teachers(recipe, make or real, prepared.vocabulary.size),
        models={name: partial(getattr, teacher, "model") for name, teacher in live.items()},
        judge=prepared.judge,
        evaluate=lambda model, batches: mean_loss(model.to(place.device), batches, place),
        after=lambda stage: alive(TeacherModel(load=str(run / "stages" / stage))),
    )


def _teachers(recipe: Recipe, make: Make, vocabulary: int) -> dict[str, Teacher]:
    """Every entry as a teacher: first models and stores, then those that are made of them."""
    found: dict[str, Teacher] = {}
    for name, spec in sorted(recipe.teachers.items(), key=lambda item: bool(item[1].route or item[1].ensemble)):
        teacher: Teacher
        if spec.route:
            teacher = Routed({source: found[other] for source, other in spec.route.items()})
        elif spec.ensemble:
            total = sum(spec.ensemble.values())
            teacher = Ensembled([(found[other], weight / total) for other, weight in spec.ensemble.items()])
        else:
            teacher = make(name, spec)
        found[name] = CONTROLS[spec.control](teacher, vocabulary)
    return found


def _live(spec: TeacherModel, vocabulary: Vocabulary, place: Place, load: Open) -> Live:
    return Live(partial(load, spec), vocabulary.size, spec.keep, place.autocast)
