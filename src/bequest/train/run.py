"""The spine: walk a plan, train its stages. There is no other training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import seed_of
from ..device import Place
from ..model.flops import TRAINING, forward_flops
from ..model.language import LanguageModel
from ..optim import Optimiser, Policy
from ..recipe import OptimiserSettings
from ..types import Batch, Clock, Entry, Loss, LossFn, TrainingError
from .ahead import Ahead
from .plan import Moments, Stage, Stretch


@dataclass
class Ledger:
    """What the run has cost so far. Seconds are those of training steps: data, teachers and updates, not validation or saving."""

    student_flops: float = 0.0
    teacher_flops: float = 0.0
    """Of all that teachers computed: answers, and the scores by which text was chosen."""
    scoring_flops: float = 0.0
    """Of those scores alone, whenever they were made."""
    seconds: float = 0.0

    def cost(self) -> dict[str, float]:
        """As part of a line of the metrics file."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


@dataclass
class State:
    """Everything that is needed to go on: the model, its optimiser, and the place in the plan."""

    model: LanguageModel
    node: int = 0
    step: int = 0
    run_step: int = 0
    tokens: int = 0
    planned: int = 0
    """Tokens of the whole run as planned when it began."""
    journal: list[Entry] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    moments: Moments = field(default_factory=dict)
    """Moments to go on with when the next stage begins."""
    loss_state: dict[str, Tensor] = field(default_factory=dict)
    optimiser: Optimiser | None = None
    loss: LossFn | None = None

    def snapshot(self) -> tuple[Moments, dict[str, Tensor]]:
        """The optimiser's moments and the loss's own state, as of now."""
        moments = self.optimiser.state() if self.optimiser else self.moments
        return moments, dict(self.loss.state_dict()) if isinstance(self.loss, nn.Module) else self.loss_state


@dataclass(frozen=True)
class Settings:
    """How the spine runs, whatever the method."""

    place: Place
    optimiser: OptimiserSettings
    policy: Policy
    batch_tokens: int
    micro_batch: int
    """Sequences held in memory at once."""
    clip: float
    seed: int
    check_every: int
    """Steps between looks at whether the loss is finite (looking waits for the device)."""
    compile: bool = False
    """Whether PyTorch compiles the student's blocks."""
    flex: bool = False
    """Whether FlexAttention keeps the student's documents apart."""
    activation_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass, so that what is inside them need not be kept."""


@dataclass(frozen=True)
class Stepped:
    """One step lies behind. Numbers stay on the device until `line` is asked for."""

    stage: str
    run_step: int
    run_steps: int
    before: int
    tokens: int
    """Tokens of the run before and after this step."""
    loss: Tensor
    parts: Mapping[str, Tensor]
    norm: Tensor
    lr: float
    rate: float
    ledger: Ledger
    """What the run has cost up to here."""

    @property
    def last(self) -> bool:
        """Whether this was the run's last step."""
        return self.run_step == self.run_steps

    def crosses(self, every: int) -> bool:
        """Whether a multiple of `every` tokens was reached in this step; never for 0."""
        return bool(every) and self.tokens // every > self.before // every

    def line(self) -> dict[str, Any]:
        """The step as a line of the metrics file."""
        parts = {name: value.item() for name, value in self.parts.items()}
        return {
            "step": self.run_step,
            "stage": self.stage,
            "tokens": self.tokens,
            "loss": self.loss.item(),
            "parts": parts,
            "lr": self.lr,
            "rate": self.rate,
            "norm": self.norm.item(),
            **self.ledger.cost(),
        }


@dataclass(frozen=True)
class StageEnded:
    """A stage has run all its steps; `last` says whether it was the plan's last."""

    stage: str
    last: bool
    part: str = ""
    """The stage of the run's life that has ended with it, if it has one."""


Observer = Callable[[State, Stepped | StageEnded], None]
"""Watches. Whatever it does, it changes no bit of training."""


class Trained(nn.Module):
    """Student and loss as one module, so that a wrapper around it sees every parameter used inside its forward."""

    def __init__(self, model: LanguageModel, loss: LossFn) -> None:
        super().__init__()
        getattr(loss, "meet", lambda model: None)(model)  # what a loss owns is sized for the student
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch, clock: Clock) -> Loss:
        """The loss of one micro-batch."""
        return self.loss(self.model, batch, clock)


def run(stages: Sequence[Stage], state: State, settings: Settings, observers: Sequence[Observer] = ()) -> State:
    """Train from wherever `state` stands to the end of the plan.

    Raises TrainingError when the loss is no longer finite.
    """
    steps = sum(stage.steps for stage in stages)
    for node in range(state.node, len(stages)):
        stage = stages[node]
        trained = _enter(stage, state, settings)
        unchecked: list[Stepped] = []
        with Ahead(stage) as ahead:
            while state.step < stage.steps:
                _measure(stage, state)
                stepped = _advance(stage, trained, state, settings, steps, ahead)
                unchecked.append(stepped)
                if len(unchecked) >= settings.check_every or state.step == stage.steps:
                    for earlier in unchecked:
                        require_finite(earlier)
                    unchecked.clear()
                for observe in observers:
                    observe(state, stepped)
        getattr(stage.loss, "release", lambda: None)()
        last = node + 1 == len(stages)
        if not last:  # a finished run stays inside its last stage: with more tokens it can go on
            state.moments, state.loss_state = state.snapshot()[0], {}
            state.node, state.step, state.optimiser, state.loss = node + 1, 0, None, None
        for observe in observers:
            observe(
                state,
                StageEnded(stage.name, last, "" if not last and stages[node + 1].part == stage.part else stage.part),
            )
    return state


def _enter(stage: Stage, state: State, settings: Settings) -> Trained:
    """Begin a stage, or go on inside it."""
    if state.step == 0:
        moments = state.moments if stage.optimiser == "carry" else {}
        state.model, state.moments = stage.enter(state.model, moments)
    scoring = stage.batches.settle()
    if state.step == 0:
        state.ledger.teacher_flops += scoring
        state.ledger.scoring_flops += scoring
    state.model.to(settings.place.device).train()
    if settings.flex:
        state.model.attend_by_blocks()
    if settings.activation_checkpointing:
        state.model.checkpoint_activations()
    if settings.compile:
        state.model.compile_blocks()
    trained = Trained(state.model, stage.loss).to(settings.place.device)
    if isinstance(stage.loss, nn.Module) and state.loss_state:
        stage.loss.load_state_dict(state.loss_state)
    state.loss = stage.loss
    state.optimiser = Optimiser(trained, settings.optimiser)
    state.optimiser.load(state.moments)
    return trained


def _measure(stage: Stage, state: State) -> None:
    if stage.measure and state.step % stage.measure.every == 0:
        values = stage.measure.ask(state.model, [entry for entry in state.journal if entry.stage == stage.name])
        student, teacher = stage.measure.flops(state.model)
        state.ledger.student_flops += student
        state.ledger.teacher_flops += teacher
        state.journal.append(Entry(stage.name, state.step, dict(values)))


def _advance(stage: Stage, trained: Trained, state: State, settings: Settings, steps: int, ahead: Ahead) -> Stepped:
    """One optimiser step on one global batch, micro-batch by micro-batch."""
    started = time.perf_counter()
    assert state.optimiser is not None
    clock = Clock(
        step=state.step,
        steps=stage.steps,
        tokens=state.step * settings.batch_tokens,
        run_step=state.run_step,
        run_tokens=state.tokens,
        journal=tuple(state.journal),
        stage=stage.name,
    )
    torch.manual_seed(seed_of(settings.seed, state.run_step))  # dropout is a function of the step: nothing to save
    batch = ahead(clock)
    losses = list(_backward(trained, batch, clock, settings, state))
    norm = nn.utils.clip_grad_norm_(state.optimiser.parameters, settings.clip or math.inf)
    multiplier = rate_at(stage, settings.policy, clock, steps, settings.batch_tokens)
    state.optimiser.step(multiplier)
    state.step += 1
    state.run_step += 1
    state.tokens += batch.tokens_BT.numel()
    state.ledger.seconds += time.perf_counter() - started
    names = dict.fromkeys(name for loss in losses for name in loss.parts)
    return Stepped(
        stage=stage.name,
        run_step=state.run_step,
        run_steps=steps,
        before=clock.run_tokens,
        tokens=state.tokens,
        loss=torch.stack([loss.total for loss in losses]).sum(),
        parts={n: torch.stack([loss.parts[n] for loss in losses if n in loss.parts]).sum() for n in names},
        norm=norm,
        lr=settings.optimiser.lr * multiplier,
        rate=losses[0].rate,
        ledger=replace(state.ledger),
    )


def rate_at(stage: Stage, policy: Policy, clock: Clock, steps: int, batch_tokens: int) -> float:
    """The learning rate's multiplier at a clock: the run's policy over all its steps, over the stage or a stretch, or the stage's own."""
    if stage.rate == "run":
        return policy(clock.run_tokens, steps * batch_tokens)
    if stage.rate == "stage" or isinstance(stage.rate, Stretch):
        stretch = stage.rate if isinstance(stage.rate, Stretch) else Stretch(0, stage.steps)
        whole = stretch.steps * batch_tokens
        return replace(policy, planned=whole)(stretch.before * batch_tokens + clock.tokens, whole)
    return stage.rate(clock.tokens, stage.steps * batch_tokens)


def _backward(trained: Trained, batch: Batch, clock: Clock, settings: Settings, state: State) -> Iterator[Loss]:
    micros = list(batch.micro(settings.micro_batch))
    survey = getattr(trained.loss, "survey", None)
    if survey and len(micros) > 1:  # what is decided over a whole batch
        state.ledger.student_flops += survey(trained.model, micros, clock, settings.place)
    for micro in micros:
        micro = micro.to(settings.place.device)  # what was chosen on the host needs no wait for the device
        with settings.place.autocast():
            loss = trained(micro, clock)
        loss.total.backward()
        state.ledger.student_flops += TRAINING * forward_flops(state.model, micro) + loss.student_flops
        state.ledger.teacher_flops += loss.teacher_flops
        yield replace(loss, total=loss.total.detach())


def require_finite(stepped: Stepped) -> None:
    """Raises TrainingError when a step's loss or gradient is not a number, or infinite."""
    if not torch.isfinite(stepped.loss + stepped.norm):
        raise TrainingError(
            f"the loss is no longer finite at step {stepped.run_step} "
            f"(loss {stepped.loss.item()}, gradient norm {stepped.norm.item()}); "
            "lower train.optimiser.lr, lengthen the warm-up or look at that step's text",
            stepped.run_step,
        )
