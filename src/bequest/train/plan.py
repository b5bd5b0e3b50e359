"""What to train, in order: a method is a generator of stages.

`plan()` does no work. Teachers in it are handles that load when first asked, batches are recipes for batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..config import Config
from ..data.batches import Batches
from ..data.mix import Stream
from ..model.flops import forward_flops
from ..model.grow.depth import Depth
from ..model.grow.growth import into
from ..model.grow.width import Width
from ..model.language import LanguageModel
from ..optim import Policy
from ..teach.score import Judgement, Scores
from ..types import Batch, Journal, LossFn, RecipeError, Teacher

Moments = dict[str, Tensor]
Enter = Callable[[LanguageModel, Moments], tuple[LanguageModel, Moments]]
Evaluate = Callable[[LanguageModel, Sequence[Batch]], float]


def unchanged(model: LanguageModel, moments: Moments) -> tuple[LanguageModel, Moments]:
    """Enter a stage with the model and the optimiser's moments as they are."""
    return model, moments


@dataclass(frozen=True)
class Measure:
    """An evaluation that the plan itself asks for, before step 0 and every `every` steps of a stage; it enters the journal."""

    every: int
    ask: Callable[[LanguageModel, Journal], Mapping[str, float]]
    """Gets the model and the stage's entries so far."""
    flops: Callable[[LanguageModel], tuple[float, float]] = lambda model: (0.0, 0.0)
    """Floating-point operations of one evaluation, of student and teacher."""


@dataclass(frozen=True)
class Stretch:
    """Steps over which the run's learning-rate schedule is laid once: this stage begins `before` steps after their begin."""

    before: int
    steps: int


@dataclass(frozen=True)
class Stage:
    """A number of steps on one sequence of batches with one loss."""

    name: str
    batches: Stream
    loss: LossFn
    steps: int
    enter: Enter = unchanged
    optimiser: Literal["carry", "fresh"] = "carry"
    rate: Literal["run", "stage"] | Stretch | Policy = "run"
    """The run's learning-rate schedule over the run, or over this stage alone or a stretch, or one of its own over this stage."""
    measure: Measure | None = None
    part: str = ""
    """The stage of the run's life (`data.train`) to which it belongs."""


@dataclass(frozen=True)
class Inputs:
    """What a run hands to a method."""

    batches: Stream
    steps: int
    seed: int
    teachers: Mapping[str, Teacher]
    """Predecessors as signals, asked about batches."""
    models: Mapping[str, Callable[[], LanguageModel]]
    """The same predecessors as models."""
    evaluate: Evaluate
    """Mean loss of a model on held-out batches."""
    after: Callable[[str], Teacher]
    """A handle on the model at the end of an earlier stage, as a teacher."""
    judge: Callable[[str, Stream, Judgement], Scores]
    """What the predecessor of that name makes of every sequence of some batches; read when the choice is made, and kept."""
    part: int = 0
    """Which stage of the run's life is to be planned: the first one is 0."""
    parts: int = 1
    """How many there are."""
    memories: tuple[Batches, ...] = ()
    """Of every source of earlier parts, in order: what is kept of it."""

    @property
    def teacher(self) -> Teacher:
        """The predecessor named `teacher`."""
        return self.teachers["teacher"]

    @property
    def sources(self) -> tuple[str, ...]:
        """The domains, in the recipe's order."""
        return self.batches.sources

    def model(self, name: str) -> Callable[[], LanguageModel]:
        """A predecessor as a model, loaded when called.

        Raises RecipeError when the recipe has only its answers.
        """
        if name not in self.models:
            raise RecipeError(
                f"the method needs one model as {name}, not only a store or several together; give teachers.{name}.load"
            )
        return self.models[name]

    def handed_down(self, name: str, width: Width, depth: Depth) -> Enter:
        """Enter a stage with that predecessor's weights, grown to the student's sizes, in the student's place.

        In later parts of a life the student goes on with its own.
        """
        predecessor = self.model(name)
        if self.part:
            return unchanged
        return lambda student, moments: (into(predecessor(), student, width, depth, self.seed), {})

    def against_teacher(self, share: float, sequences: int = 64) -> tuple[Stream, Measure]:
        """Batches without some reserved sequences, and a comparison of student and teacher on those, every `share` of the run."""
        predecessor = self.model("teacher")
        batches, held = self.batches.reserve(sequences)

        def ask(model: LanguageModel, journal: Journal) -> dict[str, float]:
            found = {"student": self.evaluate(model, held)}
            if not any("teacher" in entry.values for entry in journal):
                found["teacher"] = self.evaluate(predecessor(), held)
            return found

        # The teacher's one pass over them is not counted.
        return batches, Measure(max(1, round(share * self.steps)), ask, lambda model: (passes(model, held), 0.0))


def passes(model: LanguageModel, batches: Sequence[Batch]) -> float:
    """Floating-point operations of a forward pass over each."""
    return sum(forward_flops(model, batch) for batch in batches)


class Method(Config):
    """Base of all methods: hyper-parameters are its fields, and there is one generator to write."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the teachers that the recipe must give."""
    smaller: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of teachers of which the first should be no larger than the second."""

    @property
    def strangers(self) -> tuple[str, ...]:
        """Teachers that are only asked about text, so that they may have a tokenizer of their own."""
        return ()

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """The stages, in order."""
        raise NotImplementedError
