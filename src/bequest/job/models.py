"""The models that a recipe loads: which, how, and whether they can read the run's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..data import tokenizer
from ..data.tokenizer import Vocabulary
from ..model import build
from ..model.language import LanguageModel
from ..recipe import Recipe, Student, TeacherModel
from ..types import ModelError


def models_of(recipe: Recipe) -> dict[str, TeacherModel | Student]:
    """The models that a recipe loads, by what they are in it."""
    models: dict[str, TeacherModel | Student] = {
        f"the teacher {name}": spec for name, spec in recipe.teachers.items() if spec.live
    }
    return models | ({"the student": recipe.student} if recipe.student.load else {})


Open = Callable[[TeacherModel], LanguageModel]


def opener(recipe: Recipe, device: str) -> Open:
    """How this recipe's predecessors are loaded, or made where they are to be untrained."""

    def opened(spec: TeacherModel) -> LanguageModel:
        make = build.untrained if spec.control == "untrained" else build.load
        return make(spec.load, recipe.data.objective, spec.remote_code).to(device)

    return opened


def check_positions(what: str, path: str, config: Any, sequence: int) -> None:
    """Raises ModelError when a model cannot take sequences that long."""
    if build.positions_of(config) < sequence:
        raise ModelError(
            f"{what} ({path}) takes at most {build.positions_of(config)} positions; lower data.sequence from {sequence}"
        )


def check_model(what: str, path: str, config: Any, sequence: int, vocabulary: Vocabulary) -> None:
    """Whether a model can read this run's tokens: context, vocabulary size, and the same string for every id.

    Raises ModelError. Reads configuration and tokenizer only, no weights.
    """
    check_positions(what, path, config, sequence)
    rows = config.get_text_config().vocab_size
    own = tokenizer.load(path)
    if own.strings != vocabulary.strings or rows < vocabulary.size:
        raise ModelError(
            f"{what} ({path}) has another vocabulary: {own.size} ids in a model of {rows} rows, tokenizer {own.strings}, "
            f"against {vocabulary.size} ids, tokenizer {vocabulary.strings}; "
            f"use its tokenizer (tokenizer: {{load: {path}}}) or another model"
        )
