"""What is measured of a life in stages when the run has ended: its matrix, models between two stages, other prompts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..device import Place
from ..eval.forgetting import Matrix
from ..eval.held_out import HeldOut, validate
from ..model import build
from ..recipe import Recipe
from ..report.record import Record
from ..types import FolderError


def told(recipe: Recipe, record: Record, held_out: Mapping[str, HeldOut], place: Place) -> dict[str, Any]:
    """What a finished run's summary says of it, with what its recipe asks for besides.

    Of a single part that goes on from a loaded model: how the loss on every domain has changed, the old ones' too.
    """
    found: dict[str, Any] = {}
    if len(recipe.parts) > 1:
        found["life"] = matrix(record).plain()
        if recipe.life.merge:
            found["life"]["merged"] = list(merged(recipe, held_out, place, record.folder))
    elif recipe.student.load and (begun := [line["losses"] for line in record.lines if line.get("ended") == ""]):
        now = record.validations[-1]["valid"]
        found["change"] = {source: now[source]["loss"] - loss for source, loss in begun[-1].items()}
    if recipe.data.prompts:
        last = str(record.folder / "checkpoint")
        model = build.load(last, recipe.data.objective, recipe.student.remote_code).to(place.device)
        found["prompts"] = {which: validate(model, texts, place) for which, texts in prompted(held_out).items()}
    return found


def matrix(record: Record) -> Matrix:
    """The losses that a run's metrics file tells of, before its first part and after each.

    Raises FolderError when there is no line for one of them.
    """
    texts = record.recipe["data"]["train"]
    parts = list(dict.fromkeys(text["stage"] for text in texts))
    home = {text["source"]: 1 + parts.index(text["stage"]) for text in texts}
    found = {line["ended"]: line["losses"] for line in record.lines if "ended" in line}
    if missing := [part for part in ("", *parts) if part not in found]:
        raise FolderError(
            f"{record.folder / 'metrics.jsonl'} has no losses after the stage {missing[0]!r}; run the recipe again with --out"
        )
    measured = found[""]
    return Matrix(
        tuple(parts), {i: t for i, t in home.items() if i in measured}, [found[part] for part in ("", *parts)]
    )


@torch.no_grad()
def merged(recipe: Recipe, held_out: Mapping[str, HeldOut], place: Place, out: Path) -> Iterator[dict[str, Any]]:
    """Losses of theta + alpha (theta' - theta), theta and theta' being the models before and after every later part."""
    models = _ends(recipe, out)
    for (_, before), (part, after) in itertools.pairwise(models):
        first, model = (
            build.load(str(path), recipe.data.objective, recipe.student.remote_code).to(place.device)
            for path in (before, after)
        )
        theta = dict(first.named_parameters())
        last = {name: p.detach().clone() for name, p in model.named_parameters()}
        for alpha in recipe.life.merge:
            for name, p in model.named_parameters():
                p.copy_(torch.lerp(theta[name], last[name], alpha))
            losses = validate(model, held_out, place)
            yield {"part": part, "alpha": alpha, "loss": {source: m["loss"] for source, m in losses.items()}}


def _ends(recipe: Recipe, out: Path) -> list[tuple[str, Path]]:
    """The last model of every part, in order."""
    found = {path.name: path for path in (out / "stages").iterdir()}
    parts = list(recipe.parts)
    last = {part: max((p for n, p in found.items() if n.startswith(f"{part}.")), key=_saved) for part in parts[:-1]}
    return [*last.items(), (parts[-1], out / "checkpoint")]


def _saved(folder: Path) -> int:
    """When a model was saved, in the tokens that it has seen."""
    tokens: int = json.loads((folder / "lineage.json").read_text())["tokens"]
    return tokens


def prompted(held_out: Mapping[str, HeldOut]) -> dict[str, dict[str, HeldOut]]:
    """The held-out text of every source that has a prompt with the right one, with the next source's, and with none."""
    packs = {source: held.batches.packs[0] for source, held in held_out.items()}
    own = {source: pack.prompt for source, pack in packs.items() if pack.prompt is not None}
    after = dict(zip(own, [*own.values()][1:] + [*own.values()][:1], strict=True))
    choices: dict[str, dict[str, int | None]] = {"right": dict(own), "wrong": dict(after), "none": dict.fromkeys(own)}
    if len(own) < 2:
        del choices["wrong"]
    return {
        which: {source: _with(held_out[source], prompt) for source, prompt in chosen.items()}
        for which, chosen in choices.items()
    }


def _with(held: HeldOut, prompt: int | None) -> HeldOut:
    (pack,) = held.batches.packs
    return replace(held, batches=replace(held.batches, packs=(replace(pack, prompt=prompt),)))
