"""Grow a saved model into a new folder, and measure what that did to it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..data import tokenizer
from ..device import place
from ..eval.held_out import validate
from ..files import new_folder
from ..model import build
from ..model.grow.family import Sizes
from ..model.grow.growth import Growth, change, grown
from ..model.language import LanguageModel
from ..recipe import Student
from ..report.record import LINEAGE
from ..types import FolderError, ModelError, RecipeError
from . import lineage, look

POSITIONS, TOKENS = 64, 50_000
"""Tokens in each of the two sequences whose logits are compared, and of each source whose loss is told."""
ROUNDING = 5e-4
"""What fp32 may make of logits at most, norms with a large epsilon among it."""


@dataclass(frozen=True)
class Grown:
    """What a growth did."""

    sizes: tuple[Sizes, Sizes]
    parameters: tuple[int, int]
    inexact: str
    """Why the function is not the same; empty if it is."""
    difference: float
    """The largest difference of logits over the largest logit, in fp32."""
    valid: tuple[Mapping[str, Any], Mapping[str, Any]]
    """Loss, perplexity and bits per byte by source, before and after; empty without text."""
    seconds: float
    """Of the growth itself."""
    precision: str
    """In which the weights are saved: their source's."""


def read(assignments: Sequence[str]) -> Growth:
    """A growth from `key=value` assignments.

    Raises RecipeError for what is none.
    """
    raw = config.override({}, assignments)
    if {"vocab", "vocabulary", "vocab_size"} & set(raw):
        raise RecipeError("a vocabulary does not grow: its ids are the tokenizer's; leave it out")
    if not raw:
        raise RecipeError("say what is to grow, for example hidden=512 layers=12")
    return config.decode(Growth, raw, "the command line")


def grow(source: str, out: Path, growth: Growth, exact: bool, texts: Sequence[dict[str, Any]], command: str) -> Grown:
    """Write the grown model to `out`, a folder that is not there yet, and say what happened.

    With `exact` nothing is done when the function would not be the same. Raises BequestError for what a user can mend.
    """
    build.quiet()
    if out.exists():
        raise FolderError(f"{out} is there already; choose another folder")
    config_before = build.config_of(source)
    objective = build.objective_of(config_before)
    todo = change(config_before, growth)
    if exact and todo.inexact:
        raise ModelError(f"this growth is not exact: {todo.inexact}")
    where = place("auto", "fp32")
    held = look.held_out(source, texts, 0, TOKENS) if texts else {}
    vocabulary = tokenizer.load(source)
    before = build.load(source, objective).to(where.device)
    began = time.perf_counter()
    after, _ = grown(before, growth)
    seconds = time.perf_counter() - began
    found = Grown(
        sizes=(todo.old, todo.new),
        parameters=(_count(before), _count(after)),
        inexact=todo.inexact,
        difference=_difference(before, after),
        valid=(validate(before, held, where), validate(after, held, where)),
        seconds=seconds,
        precision=str(config_before.dtype or torch.float32).removeprefix("torch."),
    )
    if exact and found.difference > ROUNDING:
        raise ModelError(
            f"logits differ by {found.difference:.2g} of the largest after a growth that should be exact; "
            "this model is one that we do not know how to grow, open an issue that names it"
        )
    own = {
        "name": out.name,
        "load": None,
        "hub": False,
        "parameters": found.parameters[1],
        "tokens": 0,
        "flops": 0.0,
        "method": "grow",
        "measured in": f"{objective} {vocabulary.identity}",
        "predecessors": [{"as": "beginning", "in": "student", **lineage.predecessor(Student(load=source), objective)}],
    }
    after.model.to(getattr(torch, found.precision))
    with new_folder(out) as temporary:
        after.model.save_pretrained(temporary)
        for name, content in tokenizer.saved(vocabulary.tokenizer).items():
            (temporary / name).write_bytes(content)
        (temporary / LINEAGE).write_text(json.dumps(own, indent=1))
        (temporary / "README.md").write_text(_card(own, found, command))
    return found


def _count(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _difference(before: LanguageModel, after: LanguageModel) -> float:
    draw = torch.Generator().manual_seed(0)
    positions = min(POSITIONS, build.positions_of(before.model.config))
    tokens_BT = torch.randint(before.vocabulary, (2, positions), generator=draw)
    old, new = (_logits(model, tokens_BT) for model in (before, after))
    return ((new - old).abs().max() / old.abs().max()).item()


def _logits(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    inner: Any = model.model.eval()
    logits: Tensor = inner(input_ids=tokens_BT.to(inner.device), attention_mask=torch.ones_like(tokens_BT)).logits
    return logits.float()


def _card(own: lineage.Lineage, found: Grown, command: str) -> str:
    old, new = (asdict(sizes) for sizes in found.sizes)
    sizes = ", ".join(f"{name} {old[name]} to {new[name]}" for name in old if old[name] != new[name])
    exact = (
        f"It is another function: {found.inexact}." if found.inexact else "It computes what its predecessor computes."
    )
    return (
        f"---\nlibrary_name: transformers\ntags: [bequest, 'method:grow']\n---\n# {own['name']}\n\n"
        f"A language model of {own['parameters']:,} parameters, grown from **{own['predecessors'][0]['name']}** with "
        f"Bequest: {sizes}. {exact} Largest difference of logits over the largest logit: {found.difference:.2g}.\n\n"
        f"```bash\n{command}\n```\n"
    )
