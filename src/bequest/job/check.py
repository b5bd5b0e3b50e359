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
from typing import Any, ParamSpec, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..data import source
from ..device import Place, place_for
from ..loss.project import chunk_rows
from ..model import build
from ..model.flops import TRAINING, forward_flops
from ..model.language import LanguageModel
from ..optim import Policy
from ..recipe import Recipe, TeacherModel, Text
from ..report import trackers
from ..teach.store import exists
from ..train.plan import Method, Stage
from ..train.run import Settings
from ..types import Batch, BequestError, Clock, FolderError, LossFn, Teacher
from . import folder
from .asked import require_answers
from .economy import sentences
from .footprint import footprint, made_fake, process_bytes, twin
from .judge import Guess
from .models import check_model, check_positions, models_of, opener
from .prepare import (
    Prepared,
    completed,
    find_method,
    find_objective,
    find_tokenizer,
    inputs,
    knowing,
    outline,
    packs,
    prepare,
    resolved,
)
from .stages import stages_of
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
    tries(place_for, recipe.train)
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
    recipe, tries = unharvested(recipe), _Tries()
    tries.problems |= dict.fromkeys(outside(recipe, out))
    models = models_of(recipe)
    texts = [t for t in (*recipe.data.train, *recipe.data.valid) if t.path]
    own = [_quietly(build.config_of, spec.load, spec.remote_code) for spec in models.values()]
    known = all(_quietly(source.files, t) for t in texts) and (recipe.tokenizer or (own and all(own)))
    if known and (vocabulary := tries(find_tokenizer, recipe)):
        method = _quietly(find_method, recipe)
        must_know = knowing(recipe, method) if method else models
        for (what, spec), config in zip(models.items(), own, strict=True):
            if config and what in must_know:
                tries(check_model, what, spec.load, config, recipe.data.sequence, vocabulary)
        if recipe.student.family:
            tries(outline, recipe, vocabulary)
        if objective := tries(find_objective, recipe, vocabulary):
            for side in ("train", "valid"):
                tries(packs, recipe, vocabulary, objective, side)
    if not tries.problems and (prepared := tries(prepare, recipe)) and (method := tries(find_method, recipe)):
        tries(require_answers, recipe, prepared, method)
    return list(tries.problems)


def _quietly(do: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """What was tried before, and complained of then."""
    return _Tries()(do, *args, **kwargs)


def _folder(recipe: Recipe, method: Method, out: Path) -> None:
    """Whether `out` can be this recipe's run folder."""
    if out.exists():
        with folder.opened(out):
            if old := folder.recorded(out):
                known = not folder.summary(out)
                folder.refuse_changes(out, completed(old), resolved(recipe, method), contents_known=known)
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
    """Bytes of one chunk of logits, which a step holds once; a loss that is left to autograd holds a few."""
    disk: Mapping[str, int]
    free: int
    """Bytes free where the run folder will be."""
    warnings: Sequence[str]
    teachers: Sequence[str]
    """What each teacher costs, live and stored."""

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
    recipe = unharvested(recipe)
    real = place_for(recipe.train)
    prepared, method, where = prepare(recipe), find_method(recipe), Place("cpu", real.precision)
    prepared = replace(prepared, judge=Guess(recipe))
    teachers = tuple(sentences(recipe, prepared, method, _asked(recipe, prepared, method, where, out)))
    process = process_bytes(where, recipe.train.optimiser) + _mapped(recipe, prepared)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = made_fake(outline(recipe, prepared.vocabulary), mode)
    predecessors = {
        what: made_fake(build.outline(t.load, recipe.data.objective, t.remote_code), mode)
        for what, t in recipe.teachers.items()
        if t.live
    }
    at_hand = {recipe.teachers[name].load: found for name, found in predecessors.items()}
    left: dict[str, LanguageModel] = {}  # by earlier stages, of which a later one may learn

    def load(spec: TeacherModel) -> LanguageModel:
        if spec.load not in at_hand:
            at_hand[spec.load] = twin(left[spec.load], mode)
        return at_hand[spec.load]

    given, simple = (inputs(one, prepared, where, out, load) for one in (recipe, _simple(recipe)))
    policy = Policy(recipe.train.schedule, recipe.train.batch_tokens, recipe.train.tokens)
    settings, stages = settings_of(recipe, where, policy), []
    for stage, simpler in zip(stages_of(recipe, method, given), stages_of(recipe, method, simple), strict=True):
        model, _ = stage.enter(model, {})
        stages.append(_cost(stage, simpler.loss, model, at_hand.values(), settings, mode))
        for folder_of_stage in left:
            at_hand.pop(folder_of_stage, None)
        left[str(out / "stages" / stage.name)] = model
    parameters = {"student": _count(model)} | {name: _count(found) for name, found in predecessors.items()}
    rows = chunk_rows(model.vocabulary, where.dtype, torch.device(where.device))
    chunk = where.dtype.itemsize * model.vocabulary * min(rows, settings.micro_batch * recipe.data.sequence)
    free = shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free
    disk, gpu = _disk(recipe, stages, prepared), real.device == "cuda"
    return Plan(parameters, stages, gpu, process, chunk, disk, free, prepared.warnings, teachers)


def _simple(recipe: Recipe) -> Recipe:
    """The recipe with teachers as large whose answers want no numbers: not shuffled, and one member for several."""
    plain = {name: replace(t, control="none") if t.control == "shuffle" else t for name, t in recipe.teachers.items()}
    members = {name: [*t.route.values(), *t.ensemble] for name, t in plain.items()}
    live_first = {name: sorted(found, key=lambda other: not plain[other].live) for name, found in members.items()}
    return replace(recipe, teachers={n: plain[live_first[n][0]] if live_first[n] else t for n, t in plain.items()})


def unharvested(recipe: Recipe) -> Recipe:
    """The recipe with its models live where their stores are not there yet."""
    waiting = {n: t for n, t in recipe.teachers.items() if t.load and t.store and not exists(Path(t.store))}
    return replace(recipe, teachers=recipe.teachers | {n: replace(t, store="") for n, t in waiting.items()})


def _asked(recipe: Recipe, prepared: Prepared, method: Method, where: Place, out: Path) -> int:
    """Sequences about which a run asks a teacher, repetitions counted."""
    stages = stages_of(recipe, method, inputs(recipe, prepared, where, out, opener(recipe, "cpu")))
    asks: list[tuple[Stage, Callable[[Clock], Any]]]
    asks = [(stage, getattr(stage.loss, "asked", lambda clock: {})) for stage in stages]
    return sum(
        stage.batches.size * sum(bool(ask(Clock(step, stage.steps))) for step in range(stage.steps))
        for stage, ask in asks
    )


def _cost(
    stage: Stage,
    simple: LossFn,
    model: LanguageModel,
    teachers: Iterable[LanguageModel],
    settings: Settings,
    mode: FakeTensorMode,
) -> StageCost:
    """Walk a stage's batches and count; memory is that of the simpler loss."""
    every = max(1, stage.steps * stage.batches.size // MOST_SEQUENCES)
    looked = range(0, stage.steps, every)
    scale = stage.steps / len(looked)
    student = teacher = asking = 0.0
    scoring = stage.batches.settle()
    worst = (-1, 0, 0)  # teachers asked, rows, step
    for step in looked:
        batch, clock = stage.batches[step], Clock(step, stage.steps)
        asked: Sequence[Teacher] = list(getattr(stage.loss, "asked", lambda clock: {})(clock).values())
        more, told = _expected(stage.loss, model, batch, clock)
        student += TRAINING * forward_flops(model, batch) + more
        teacher += told
        asking += bool(asked)
        worst = max(worst, (len(asked), batch.rows_total, step), key=lambda found: found[:2])
    batches = [stage.batches[worst[2] + later] for later in range(FOOTSTEPS)]
    clock = Clock(worst[2], stage.steps)
    outline = getattr(simple, "outline", lambda: simple)()
    memory = footprint(model, outline, teachers if worst[0] else (), batches, clock, settings, mode)
    tokens = stage.steps * settings.batch_tokens
    looks = -(-stage.steps // stage.measure.every) if stage.measure else 0
    look_s, look_t = stage.measure.flops(model) if stage.measure else (0.0, 0.0)
    return StageCost(
        stage.name,
        stage.steps,
        tokens,
        student_flops=student * scale + looks * look_s,
        teacher_flops=teacher * scale + looks * look_t + scoring,
        taught=asking / len(looked),
        memory=memory,
        exact=every == 1,
    )


def _expected(loss: LossFn, model: LanguageModel, batch: Batch, clock: Clock) -> tuple[float, float]:
    """Operations of a step beyond the student's own pass: the student's, the teachers' (all that are asked, if the loss says no more)."""
    if hasattr(loss, "expected"):
        found: tuple[float, float] = loss.expected(model, batch, clock)
        return found
    asked: Mapping[Any, Teacher] = getattr(loss, "asked", lambda clock: {})(clock)
    return 0.0, sum(one.flops(batch) for one in asked.values())


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
