"""What a recipe would do, before it does: every problem at once, and what the run will cost. Trains nothing.

Texts are tokenised (training would do it anyway, and finds them done), models are read without their numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from ..data import source
from ..device import Place, place
from ..model import build
from ..model.flops import TRAINING, forward
from ..model.language import LanguageModel
from ..recipe import Recipe
from ..train.plan import Method, Stage
from ..types import BequestError, Clock, FolderError
from . import folder
from .prepare import (
    Prepared, check_model, find_method, find_objective, find_tokenizer, inputs, models_of, new_student, packs, prepare, resolved,
)

P, R = ParamSpec("P"), TypeVar("R")
MOST_SEQUENCES = 200_000
"""Up to here every batch is looked at; longer stages are counted on an even sample of their steps."""


class Tries:
    """Does one thing after another and keeps what went wrong."""

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}

    def __call__(self, do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return do(*args, **kwargs)
        except BequestError as error:
            self.problems |= dict.fromkeys(error.problems)
            return None


def problems(recipe: Recipe, out: Path) -> list[str]:
    """Everything that would keep the recipe from training into `out`, one sentence each."""
    tries = Tries()
    method = tries(find_method, recipe)
    if method:
        tries(_needs, recipe, method)
        tries(_folder, recipe, method, out)
    tries(place, recipe.train.device, recipe.train.precision)
    models = models_of(recipe)
    configs = {what: tries(build.config_of, spec.load, spec.remote_code) for what, spec in models.items()}
    for what, spec in models.items():
        if configs[what]:
            tries(build.load, spec.load, recipe.data.objective, spec.remote_code, "meta")
    texts = {text: tries(source.files, text) for text in (*recipe.data.train, *recipe.data.valid) if text.path}
    vocabulary = tries(find_tokenizer, recipe) if all(texts.values()) else None
    if vocabulary is None:
        return list(tries.problems)
    objective = tries(find_objective, recipe, vocabulary)
    for what, spec in models.items():
        if configs[what]:
            tries(check_model, what, spec.load, configs[what], recipe.data.sequence, vocabulary)
    if recipe.student.family:
        tries(new_student, recipe, vocabulary, "meta")
    if objective:
        for side in ("train", "valid"):
            tries(packs, recipe, vocabulary, objective, side)
    if not tries.problems:
        tries(prepare, recipe)
    return list(tries.problems)
