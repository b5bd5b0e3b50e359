"""What must be alike for losses to be compared, checked before any run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import config
from ..data import source
from ..files import sampled
from ..job.models import models_of
from ..job.prepare import find_method, find_tokenizer
from ..model import build
from ..recipe import Recipe
from ..types import BequestError, RecipeError, SweepError
from . import runs
from .outcome import ALL
from .sweep import Sweep, references


def require(sweep: Sweep) -> None:
    """Raises RecipeError with a sentence for every arm whose recipe is wrong or whose losses cannot be compared with the baseline's."""
    drafts: dict[str, Recipe] = {}
    config.read(Path(sweep.recipe))  # if it cannot be read, no arm need say so
    found = []
    for name in sweep.needed(tuple(sweep.arms)):
        try:
            drafts[name] = draft(sweep, name)
            find_method(drafts[name])
            _require_models(sweep, name, drafts[name])
        except BequestError as error:
            found += [f"arm {name}: {problem}" for problem in error.problems]
    if not found:
        found = list(_unlike(sweep, drafts))
    if found:
        raise SweepError(*found)


def _require_models(sweep: Sweep, name: str, recipe: Recipe) -> None:
    """Raises ModelError for a model that is nowhere, RecipeError for stores without teachers."""
    for spec in models_of(recipe).values():
        if not references(spec.load):
            build.config_of(spec.load, spec.remote_code)
    if sweep.stored(name) and not any(spec.live for spec in recipe.teachers.values()):
        raise RecipeError("stored needs a teacher whose answers can be kept; give teachers.teacher.load")


def draft(sweep: Sweep, name: str) -> Recipe:
    """An arm's recipe before any run: models of other arms go by their names."""
    return runs.load(Path(sweep.recipe), sweep.settings(name))


def source_of(sweep: Sweep) -> str:
    """The source of held-out text that is compared.

    Raises RecipeError when it is not said and there are several, or when there is none of that name.
    """
    data = draft(sweep, sweep.baseline).data
    there = list(dict.fromkeys(text.source for text in data.valid or data.train))
    if sweep.source in (*there, ALL) or (not sweep.source and len(there) == 1):
        return sweep.source or there[0]
    wrong = (
        f"source {sweep.source!r} is none of the held-out text's"
        if sweep.source
        else "there is held-out text of several sources"
    )
    raise SweepError(f"{wrong}; give source: one of {', '.join(there)}, or all for their mean")


def _unlike(sweep: Sweep, drafts: dict[str, Recipe]) -> Iterator[str]:
    base = drafts[sweep.baseline]
    if sweep.measure == "bits_per_byte" and base.data.objective == "masked":
        yield "bits per byte are of causal models alone; compare these by measure: loss"
    for name in sweep.arms:
        own = drafts[name]
        if own.data.objective != base.data.objective:
            yield (
                f"the arm {name} has the objective {own.data.objective} and {sweep.baseline} {base.data.objective}; "
                "their losses are of different things, compare them apart"
            )
        elif _held_out(own) != _held_out(base):
            yield (
                f"the arm {name} is measured on other held-out text than {sweep.baseline} "
                "(data.valid, data.valid_fraction or eval.tokens); give both the same"
            )
        elif sweep.measure == "loss" and _vocabulary(sweep, name, drafts) != _vocabulary(sweep, sweep.baseline, drafts):
            yield (
                f"the arm {name} has another vocabulary than {sweep.baseline}, so that losses per token cannot be compared; "
                "give both the same tokenizer, or compare by measure: bits_per_byte"
            )


def _held_out(recipe: Recipe) -> Any:
    data = recipe.data
    texts = data.valid or data.train
    contents = [
        (t.hub, t.split, t.source, t.field, t.part, [sampled(p) for p in source.files(t)] if t.path else [])
        for t in texts
    ]
    masks = (data.mask_rate,) if data.objective == "masked" else ()
    return contents, data.valid_fraction, recipe.eval.tokens, data.sequence, masks


def _vocabulary(sweep: Sweep, name: str, drafts: dict[str, Recipe]) -> Any:
    """What decides an arm's tokenizer; a trained one goes by what it is trained on."""
    recipe = drafts[name]
    if recipe.tokenizer and recipe.tokenizer.train:
        texts = [source.identity(text) for text in recipe.data.train]
        return config.encode(recipe.tokenizer), texts, recipe.data.valid_fraction, recipe.data.objective
    loads = [spec.load for spec in recipe.teachers.values() if not spec.store]
    given = recipe.tokenizer.load if recipe.tokenizer else next(filter(None, loads), recipe.student.load)
    if others := references(given):
        return _vocabulary(sweep, others[0], drafts)
    try:
        return find_tokenizer(recipe).identity
    except BequestError as error:
        raise RecipeError(*(f"arm {name}: {problem}" for problem in error.problems)) from None
