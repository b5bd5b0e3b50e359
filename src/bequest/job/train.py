"""Train a recipe into a run folder: begin or go on, observe, and leave the result as a Hugging Face folder."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..data.tokenizer import saved
from ..device import Place, settle
from ..eval.held_out import HeldOut, validate
from ..files import replace_text
from ..model import build
from ..optim import Policy
from ..recipe import Recipe
from ..report import page, trackers
from ..report.card import card
from ..report.metrics import Metrics
from ..report.progress import Training, console
from ..report.record import LINEAGE, STORES, read, remember
from ..train import checkpoint
from ..train.plan import Method, Stage
from ..train.run import Settings, StageEnded, State, Stepped, run
from ..types import FolderError, ModelError, Stopped, TrainingError
from . import extend, folder, lineage
from .asked import require_answers
from .inspect import describe
from .life import told
from .models import Open, opener
from .prepare import Prepared, completed, find_method, inputs, new_student, prepare, resolved
from .stages import stages_of


def train(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Train `recipe` into the folder `out` and return its summary; goes on where an earlier call stopped.

    Raises BequestError for what a user can mend, Stopped when a signal asked the run to stop (it is saved then).
    """
    build.quiet()
    method = find_method(recipe)
    trackers.require(recipe.trackers)
    with folder.opened(out):
        old = folder.recorded(out)
        if old:
            finished = folder.summary(out)
            # A run that goes on compares the contents of text and models with those in its checkpoint.
            folder.refuse_changes(out, completed(old), resolved(recipe, method), contents_known=not finished)
            if finished and old["train"]["tokens"] == recipe.train.tokens:
                return finished | {"was_finished": True}
            compared = len(recipe.parts) > 1 or recipe.student.load  # with what was measured before
            if compared and old["eval"]["tokens"] != recipe.eval.tokens:
                raise FolderError(
                    f"{out} was measured so far on eval.tokens {old['eval']['tokens']}; "
                    "leave it at that, or start a new run with --out"
                )
        return _train(recipe, method, old, out)


def _train(recipe: Recipe, method: Method, old: dict[str, Any] | None, out: Path) -> dict[str, Any]:
    where = settle(recipe.train)
    (out / folder.DIVERGED).unlink(missing_ok=True)
    prepared = prepare(recipe)
    for warning in prepared.warnings:
        console().print(f"warning: {warning}", soft_wrap=True)
    stores = {name: describe(store) for name, store in require_answers(recipe, prepared, method).items()}
    load = opener(recipe, where.device)
    stages = tuple(stages_of(recipe, method, inputs(recipe, prepared, where, out, load)))
    state = _state(recipe, prepared, out)
    policy = Policy(recipe.train.schedule, recipe.train.batch_tokens, state.planned)
    if old and old["train"]["tokens"] != recipe.train.tokens:
        shorter = replace(recipe, train=replace(recipe.train, tokens=old["train"]["tokens"]))
        before = tuple(stages_of(shorter, method, inputs(shorter, prepared, where, out, load)))
        extend.refuse_if_different(before, stages, policy, recipe.train.batch_tokens, state.run_step)
    settings = settings_of(recipe, where, policy)
    tokenizer = saved(prepared.vocabulary.tokenizer)
    harvested = sum(store["flops"] for store in stores.values())
    own = lineage.of(recipe, prepared.vocabulary.identity, _parameters(state), 0, harvested)
    writer = Writer(resolved(recipe, method), own, tokenizer)
    if old:
        read(out)  # what is damaged should not be found when all is trained
    folder.record(out, resolved(recipe, method))
    remember(out, where.precision)
    (out / "summary.json").unlink(missing_ok=True)
    replace_text(out / LINEAGE, json.dumps(writer.lineage, indent=1))
    replace_text(out / STORES, json.dumps(stores, indent=1))
    _run(recipe, prepared, stages, state, settings, out, writer)
    return _finish(recipe, prepared, state, writer, where, out, load)


def _state(recipe: Recipe, prepared: Prepared, out: Path) -> State:
    """The newest checkpoint's state, or the beginning."""
    open_model = lambda path: build.load(str(path), recipe.data.objective, recipe.student.remote_code)
    if saved := checkpoint.existing(out):
        return checkpoint.load(saved[-1], open_model, prepared.identity)
    return State(new_student(recipe, prepared.vocabulary), planned=recipe.train.tokens)


def settings_of(recipe: Recipe, where: Place, policy: Policy) -> Settings:
    """How the spine runs this recipe."""
    train = recipe.train
    micro = (train.micro_batch_tokens or train.batch_tokens) // recipe.data.sequence
    return Settings(
        place=where,
        optimiser=train.optimiser,
        policy=policy,
        batch_tokens=train.batch_tokens,
        micro_batch=micro,
        clip=train.clip,
        seed=recipe.seed,
        check_every=train.log_every_steps,
        compile=train.compile,
        flex=train.document_mask == "flex",
        activation_checkpointing=train.activation_checkpointing,
    )


def _run(
    recipe: Recipe,
    prepared: Prepared,
    stages: Sequence[Stage],
    state: State,
    settings: Settings,
    out: Path,
    writer: Writer,
) -> None:
    train = recipe.train
    saver = checkpoint.Saver(out, writer, prepared.identity, train.save_every_tokens, train.keep)
    with (
        trackers.opened(recipe.trackers, recipe.name, out, writer.recipe, state.run_step) as listeners,
        Training(train.tokens, recipe.name) as progress,
        stopping(saver, out) as stopper,
    ):
        metrics = Metrics(out / "metrics.jsonl", train.log_every_steps, state.run_step, listeners)
        evaluator = Evaluator(prepared.held_out, settings.place, metrics, recipe.eval.every_tokens, writer.valid)
        if not state.run_step and (len(recipe.parts) > 1 or recipe.student.load):
            evaluator.note(state, "")
        try:
            run(stages, state, settings, (metrics, evaluator, progress, saver, stopper))
        except TrainingError as error:
            saved = checkpoint.existing(out)
            good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint before it"
            folder.diverged(out, error.step, f"{error}; {good}")
            raise TrainingError(f"{error}; {good}", error.step) from None


@dataclass
class Writer:
    """Writes a model as a Hugging Face folder, with its card and its lineage."""

    recipe: Mapping[str, Any]
    lineage: lineage.Lineage
    """At step 0; its FLOPs are those of the harvest."""
    tokenizer: Mapping[str, bytes]
    """Its files."""
    valid: dict[str, dict[str, float]] = field(default_factory=dict)
    """The latest validation."""

    def __call__(self, state: State, temporary: Path) -> None:
        """Fill a folder."""
        state.model.model.save_pretrained(temporary)
        for name, content in self.tokenizer.items():
            (temporary / name).write_bytes(content)
        flops = self.lineage["flops"] + state.ledger.student_flops + state.ledger.teacher_flops
        now = self.lineage | {"tokens": state.tokens, "flops": flops, "parameters": _parameters(state)}
        (temporary / LINEAGE).write_text(json.dumps(now, indent=1))
        (temporary / "README.md").write_text(card(self.recipe, now, asdict(state.ledger), self.valid))


def _parameters(state: State) -> int:
    return sum(p.numel() for p in state.model.parameters())


@dataclass
class Evaluator:
    """Validates every so many tokens, at the end, and after every part of the run's life. An observer."""

    held_out: Mapping[str, HeldOut]
    place: Place
    metrics: Metrics
    every_tokens: int
    latest: dict[str, dict[str, float]]
    at: int = -1
    """The step of the latest validation."""

    def __call__(self, state: State, event: Stepped | StageEnded) -> None:
        """Validate if it is time."""
        if isinstance(event, StageEnded):
            if event.part:
                self.note(state, event.part)
        elif event.crosses(self.every_tokens) or event.last:
            self.latest.update(validate(state.model, self.held_out, self.place))
            self.at = event.run_step
            self.metrics.add(
                {"step": event.run_step, "tokens": event.tokens, **event.ledger.cost(), "valid": self.latest}
            )

    def note(self, state: State, part: str) -> None:
        """A part of the run's life has ended ("" is before the first): a row of the matrix."""
        if self.at != state.run_step:
            self.latest.update(validate(state.model, self.held_out, self.place))
            self.at = state.run_step
        losses = {source: measures["loss"] for source, measures in self.latest.items()}
        self.metrics.add(
            {"step": state.run_step, "tokens": state.tokens, **state.ledger.cost(), "ended": part, "losses": losses}
        )


@contextmanager
def stopping(saver: checkpoint.Saver, out: Path) -> Iterator[Any]:
    """Within the block Ctrl-C and SIGTERM ask the run to stop after the step; the observer that it gives saves and raises Stopped."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 2:  # someone insists: leave without saving
            raise Stopped(number, f"stopped without saving; {out} goes on from its last checkpoint")

    def observe(state: State, event: Stepped | StageEnded) -> None:
        if asked and isinstance(event, Stepped):
            saver.save(state)
            raise Stopped(asked[0], f"stopped at step {state.run_step}; run the same command again to go on")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield observe
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(
    recipe: Recipe, prepared: Prepared, state: State, writer: Writer, place: Place, out: Path, load: Open
) -> dict[str, Any]:
    # A run that was killed after its last step has nothing left to train, but is not validated yet.
    writer.valid.update(writer.valid or validate(state.model, prepared.held_out, place))
    checkpoint.save_model(state, out / "checkpoint", writer)
    replace_text(out / LINEAGE, (out / "checkpoint" / LINEAGE).read_text())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ledger = state.ledger
    summary = {
        "name": recipe.name,
        "method": recipe.method["name"],
        "tokens": state.tokens,
        "student_parameters": _parameters(state),
        "student_flops": ledger.student_flops,
        "teacher_flops": ledger.teacher_flops,
        "scoring_flops": ledger.scoring_flops,
        "harvest_flops": writer.lineage["flops"],
        "wall_s": round(ledger.seconds, 2),
        "tokens_per_s": round(state.tokens / max(1e-9, ledger.seconds), 1),
        "peak_rss_mb": round(peak, 1),
        **({"peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1)} if place.device == "cuda" else {}),
        "valid": writer.valid,
        "teachers": _teachers(recipe, prepared, place, load),
        "checkpoint": str(out / "checkpoint"),
        **told(recipe, read(out), prepared.held_out, place),
    }
    folder.finish(out, summary)
    page.write([read(out)], out / "report.html")
    return summary


def _teachers(recipe: Recipe, prepared: Prepared, place: Place, load: Open) -> dict[str, dict[str, dict[str, float]]]:
    """How well each predecessor predicts the run's held-out text. Each is in memory only while it is measured.

    Left out: one in whose place `uniform` stands, one whose weights a server has, one with another tokenizer, and one that
    cannot be loaded any more, which those who learn from its store do without.
    """
    found, strangers = {}, find_method(recipe).strangers
    for name, spec in recipe.teachers.items():
        if spec.load and not spec.server and spec.control != "uniform" and name not in strangers:
            try:
                found[name] = validate(load(spec), prepared.held_out, place)
            except ModelError as error:
                console().print(f"warning: the teacher {name} is not measured: {error}", soft_wrap=True)
    return found
