"""The runs of a sweep: recipe, place and identity of each.

A run's folder is named after what the run is (recipe, text, predecessors), so that sweeps share runs by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import sense
from ..config import chosen, fingerprint
from ..data import source
from ..files import sampled
from ..job.prepare import find_method
from ..job.stores import model_identity
from ..recipe import Recipe

FREE = ("name", "trackers", "train.threads", "train.keep", "train.save_every_tokens", "train.log_every_steps")
"""What changes no bit of a run."""


@dataclass(frozen=True)
class Run:
    """One training run of an arm."""

    arm: str
    rate: float
    seed: int
    budget: float
    recipe: Recipe
    base: Path
    """The recipe's file, and what is overridden in it."""
    overrides: tuple[str, ...]
    stored: bool
    folder: Path

    @property
    def tokens(self) -> int:
        """It sees so many."""
        return self.recipe.train.tokens

    @property
    def command(self) -> tuple[str, ...]:
        """What trains it, as arguments of bequest."""
        harvest = ("--teach",) if self.stored else ()
        return ("train", str(self.base), *self.overrides, "--out", str(self.folder), *harvest)

    def __str__(self) -> str:
        budget = "" if self.budget == 1 else f" x {self.budget:g}"
        return f"{self.arm}{budget}, rate {self.rate:g}, seed {self.seed}"


def assignments(keys: Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides as the command line takes them."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in keys.items())


def identity(recipe: Recipe) -> str:
    """A fingerprint of what decides a run's bits: the recipe, and the contents of text and models instead of their places.

    What is left at its default is not in it, so that keys which are added later change no run's identity.
    """
    found = chosen(recipe) | {"method": [recipe.method["name"], chosen(find_method(recipe))]}
    for key in (*FREE, *(() if any(t.store for t in recipe.teachers.values()) else ("teach",))):
        room, _, inner = key.rpartition(".")
        (found.get(room, {}) if room else found).pop(inner, None)
    for side in ("train", "valid"):
        for text, entry in zip(getattr(recipe.data, side), found["data"].get(side, ()), strict=True):
            if text.path:
                entry["path"] = [sampled(path) for path in source.files(text)]
    for name, spec in recipe.teachers.items():
        found["teachers"][name] |= {"load": model_identity(spec.load), "store": bool(spec.store)}
    if recipe.student.load:
        found["student"]["load"] = model_identity(recipe.student.load)
    if recipe.tokenizer and recipe.tokenizer.load:
        own = Path(recipe.tokenizer.load) / "tokenizer.json"
        found["tokenizer"]["load"] = sampled(own) if own.is_file() else recipe.tokenizer.load
    return fingerprint(found)


def load(base: Path, keys: Mapping[str, Any]) -> Recipe:
    """A recipe with some keys set otherwise."""
    return sense.load(base, assignments(keys))
