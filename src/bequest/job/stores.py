"""Which store a recipe can learn from: teacher, tokenizer and packing must be the recipe's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .. import config
from ..data.objective import Objective
from ..data.tokenizer import Vocabulary
from ..files import sampled
from ..recipe import Recipe, TeacherModel
from ..teach import store
from ..teach.store import Packing, Store
from ..types import ModelError

SAYS_NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Keys of a model's configuration that do not change what it computes."""
UNTRAINED = "untrained "
"""Before the identity of a model that was asked with fresh weights."""
DOCUMENTS = "each from its own beginning, unseen by others"


def packing(recipe: Recipe, objective: Objective) -> Packing:
    """How a recipe's text becomes sequences."""
    return Packing(sequence=recipe.data.sequence, objective=objective.policy, documents=DOCUMENTS)


def opened(spec: TeacherModel, recipe: Recipe, vocabulary: Vocabulary, objective: Objective) -> Store:
    """A teacher's store.

    Raises FolderError when there is none, or one of another teacher, tokenizer or packing; DataError when it is damaged.
    """
    found = store.open_store(Path(spec.store))
    wanted: dict[str, Any] = {
        "tokenizer": vocabulary.identity,
        "packing": config.encode(packing(recipe, objective)),
    }
    origin = found.manifest.teacher
    gone = spec.load == origin.lineage["load"] and not Path(spec.load).is_dir()
    if spec.load:
        known = origin.weights.removeprefix(UNTRAINED)  # a store is enough
        wanted["teacher"] = {"weights": teacher_identity(spec, known if gone else "")}
    store.require(found, wanted)
    return found


def tokenizer_of(spec: TeacherModel) -> str:
    """Where a teacher's tokenizer is: in its store, or with its model.

    Raises FolderError when that store is not there.
    """
    return str(store.open_store(Path(spec.store)).folder / "tokenizer") if spec.store else spec.load


def teacher_identity(spec: TeacherModel, known: str = "") -> str:
    """Who answers for a teacher: its model (`known` where that is not here to look at), or the same one untrained."""
    model = known or model_identity(spec.load)
    return UNTRAINED + model if spec.control == "untrained" else model


def model_identity(path: str) -> str:
    """A fingerprint of a model folder: its configuration, and samples spread over its weights. A hub id stands for itself."""
    files = sorted(Path(path).glob("*.safetensors")) if path else []
    if not files:
        return path
    try:
        found = dict(json.loads((Path(path) / "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise ModelError(f"{path}/config.json is missing or damaged; make or fetch the model again") from None
    digest = hashlib.blake2b(
        config.fingerprint({k: v for k, v in found.items() if k not in SAYS_NOTHING}).encode(), digest_size=10
    )
    for file in files:
        digest.update(f"{file.name}:{sampled(file)}".encode())
    return digest.hexdigest()
