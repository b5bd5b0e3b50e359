"""What a recipe would do, before it does: every problem at once, and what the run will cost. Trains nothing.

Texts are tokenised (training would do it anyway, and finds it done) and models are loaded once to see that they are whole;
what is counted is counted on models without numbers.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from torch._subclasses.fake_tensor import FakeTensorMode

from ..data import source
from ..device import Place, place
from ..loss.project import chunk_rows
from ..model import build
from ..model.flops import TRAINING, forward_flops
from ..model.language import LanguageModel
from ..optim import Policy
from ..recipe import Recipe, Text
from ..report import trackers
from ..train.plan import Method, Stage
from ..train.run import Settings
from ..types import BequestError, Clock, FolderError, Teacher
from . import folder
from .footprint import footprint, made_fake, process_bytes
from .prepare import (
    Prepared,
    check_model,
    check_positions,
    find_method,
    find_objective,
    find_tokenizer,
    inputs,
    models_of,
    outline,
    packs,
    prepare,
    resolved,
)
from .train import settings_of

P = ParamSpec("P")
R = TypeVar("R")
FOOTSTEPS = 6
"""Steps whose memory is followed."""
MOST_SEQUENCES = 200_000
"""Up to here every batch of a stage is looked at; longer stages are counted on an even sample of their steps."""


class _Tries:
    """Does one thing after another and keeps what went wrong."""

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}

    def __call__(self, do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return do(*args, **kwargs)
        except BequestError as error:
            self.problems |= dict.fromkeys(error.problems)
            return None


def outside(recipe: Recipe, out: Path) -> list[str]:
    """What is missing around a recipe: its method, its folder, its device, its trackers, its models and its texts."""
    tries = _Tries()
    if method := tries(find_method, recipe):
        tries(_folder, recipe, method, out)
    tries(place, recipe.train.device, recipe.train.precision)
    tries(trackers.require, recipe.trackers)
    for what, spec in models_of(recipe).items():
        model = tries(build.load, spec.load, recipe.data.objective, spec.remote_code) if spec.load else None
        if model:
            config = model.model.config
            tries(check_positions, what, spec.load, config, recipe.data.sequence)
    for text in (*recipe.data.train, *recipe.data.valid):
        if text.path:
            tries(_begins, text)
    return list(tries.problems)


def _begins(text: Text) -> None:
    """Whether a text is there and its first document can be read."""
    next(source.documents(text), None)


def problems(recipe: Recipe, out: Path) -> list[str]:
    """Everything that would keep a recipe without mistakes of its own from training into `out`, one sentence each."""
    tries = _Tries()
    tries.problems |= dict.fromkeys(outside(recipe, out))
    models = models_of(recipe)
    texts = [t for t in (*recipe.data.train, *recipe.data.valid) if t.path]
    own = [_quietly(build.config_of, spec.load, spec.remote_code) for spec in models.values()]
    known = all(_quietly(source.files, t) for t in texts) and (recipe.tokenizer or (own and all(own)))
    if known and (vocabulary := tries(find_tokenizer, recipe)):
        for (what, spec), config in zip(models.items(), own, strict=True):
            if config:
                tries(check_model, what, spec.load, config, recipe.data.sequence, vocabulary)
        if recipe.student.family:
            tries(outline, recipe, vocabulary)
        if objective := tries(find_objective, recipe, vocabulary):
            for side in ("train", "valid"):
                tries(packs, recipe, vocabulary, objective, side)
    if not tries.problems:
        tries(prepare, recipe)
    return list(tries.problems)


def _quietly(do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """What was tried before, and complained of then."""
    return _Tries()(do, *args, **kwargs)


def _folder(recipe: Recipe, method: Method, out: Path) -> None:
    """Whether `out` can be this recipe's run folder."""
    if out.exists():
        with folder.opened(out):
            if old := folder.recorded(out):
                folder.refuse_changes(out, old, resolved(recipe, method))
        return
    parent = next(p for p in out.absolute().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise FolderError(f"cannot use {out} as a run folder ({parent} may not be written); choose another with --out")


@dataclass(frozen=True)
class StageCost:
    """One stage of the plan. FLOPs are exact when every batch was looked at, else from an even sample of the steps."""

    name: str
    steps: int
    tokens: int
    student_flops: float
    teacher_flops: float
    taught: float
    """Share of the steps that ask a teacher; at most, when the plan may let it go earlier."""
    memory: Mapping[str, int]
    """Bytes at the worst moment: weights, optimiser, teachers, activations (gradients and one chunk of logits among them)."""
    exact: bool


@dataclass(frozen=True)
class Plan:
    """What a run will do and cost."""

    parameters: Mapping[str, int]
    stages: Sequence[StageCost]
    gpu: bool
    """Whether tensors will be on a GPU, where its own allocator leaves no such gaps."""
    process: int
    """Bytes of a process that trains next to nothing, and of the text that is mapped into it."""
    chunk: int
    """Bytes of one chunk of logits, of which a step holds a few."""
    disk: Mapping[str, int]
    free: int
    """Bytes free where the run folder will be."""
    warnings: Sequence[str]

    @property
    def student_flops(self) -> float:
        """Of all stages."""
        return sum(stage.student_flops for stage in self.stages)

    @property
    def teacher_flops(self) -> float:
        """Of all stages."""
        return sum(stage.teacher_flops for stage in self.stages)

    @property
    def worst(self) -> Mapping[str, int]:
        """The parts of the stage that needs most."""
        return max((stage.memory for stage in self.stages), key=lambda memory: sum(memory.values()))

    @property
    def memory(self) -> int:
        """Bytes at the worst moment: of the whole process, or of the tensors on the GPU."""
        parts = sum(self.worst.values())
        return parts - self.worst["gaps"] if self.gpu else self.process + parts


def plan(recipe: Recipe, out: Path) -> Plan:
    """What the recipe will cost, stage by stage.

    Raises BequestError with the first problem; `problems` has them all.
    """
    prepared, method, where = prepare(recipe), find_method(recipe), Place("cpu", recipe.train.precision)
    process = process_bytes(where, recipe.train.optimiser) + _mapped(recipe, prepared)
    # Shuffling a teacher's signals costs nothing and wants their numbers.
    plainly = {n: replace(t, control="none") if t.control == "shuffle" else t for n, t in recipe.teachers.items()}
    recipe, mode = replace(recipe, teachers=plainly), FakeTensorMode(allow_non_fake_inputs=True)
    model = made_fake(outline(recipe, prepared.vocabulary), mode)
    predecessors = {
        what: made_fake(build.outline(t.load, recipe.data.objective, t.remote_code), mode)
        for what, t in recipe.teachers.items()
        if t.control != "uniform"
    }
    of_folder = {recipe.teachers[name].load: found for name, found in predecessors.items()}
    # What an earlier stage leaves behind is as large as the student.
    given = inputs(recipe, prepared, where, out, lambda spec: of_folder.get(spec.load, model))
    policy = Policy(recipe.train.schedule, recipe.train.batch_tokens, recipe.train.tokens)
    settings, stages = settings_of(recipe, where, policy), []
    for stage in method.plan(given):
        model, _ = stage.enter(model, {})
        stages.append(_cost(stage, model, predecessors.values(), settings, mode))
    parameters = {"student": _count(model)} | {name: _count(found) for name, found in predecessors.items()}
    chunk = 4 * model.vocabulary * chunk_rows(model.vocabulary)
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    disk = _disk(recipe, stages, prepared)
    gpu = place(recipe.train.device, recipe.train.precision).device == "cuda"
    return Plan(parameters, stages, gpu, process, chunk, disk, shutil.disk_usage(parent).free, prepared.warnings)


def _cost(
    stage: Stage, model: LanguageModel, teachers: Iterable[LanguageModel], settings: Settings, mode: FakeTensorMode
) -> StageCost:
    """Walk a stage's batches and count."""
    every = max(1, stage.steps * stage.batches.size // MOST_SEQUENCES)
    looked = range(0, stage.steps, every)
    scale = stage.steps / len(looked)
    student = teacher = asking = 0.0
    worst = (-1, 0, 0)  # teachers asked, rows, step
    for step in looked:
        batch, clock = stage.batches[step], Clock(step, stage.steps)
        asked: Sequence[Teacher] = list(getattr(stage.loss, "asked", lambda clock: {})(clock).values())
        student += TRAINING * forward_flops(model, batch)
        teacher += sum(one.flops(batch) for one in asked)
        asking += bool(asked)
        worst = max(worst, (len(asked), batch.rows_total, step), key=lambda found: found[:2])
    batches = [stage.batches[worst[2] + later] for later in range(FOOTSTEPS)]
    clock = Clock(worst[2], stage.steps)
    memory = footprint(model, stage.loss, teachers if worst[0] else (), batches, clock, settings, mode)
    tokens = stage.steps * settings.batch_tokens
    return StageCost(
        stage.name, stage.steps, tokens, student * scale, teacher * scale, asking / len(looked), memory, every == 1
    )


def _count(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.parameters())


def _mapped(recipe: Recipe, prepared: Prepared) -> int:
    """Bytes of the token stores that a run reads: pages once touched stay mapped."""
    stores = [pack.store for pack in prepared.batches.packs]
    stored = sum(store.tokens.nbytes + store.ends.nbytes for store in stores)
    sequences = recipe.train.tokens // recipe.data.sequence
    pages = 1 + recipe.data.sequence * stores[0].tokens.itemsize // resource.getpagesize()
    return min(stored, sequences * (pages + 1) * resource.getpagesize())


def _disk(recipe: Recipe, stages: Sequence[StageCost], prepared: Prepared) -> dict[str, int]:
    """Bytes of what a run leaves behind, and of what it holds in between."""
    weights = stages[-1].memory["weights"]
    kept = recipe.train.keep + 1  # one more while it is written
    return {
        "checkpoints": kept * (weights + stages[-1].memory["optimiser"]),
        "models": weights * len(stages),
        "tokens": sum(pack.store.tokens.nbytes for pack in prepared.batches.packs),
    }
