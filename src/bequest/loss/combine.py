"""Weighted sums of terms whose weights may move with the clock, over one forward pass of the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from ..types import Batch, Clock, Loss, LossFn, RecipeError, Teacher, Term
from . import terms
from .project import Addend, project
from .schedule import Schedule, constant


@dataclass(frozen=True)
class Part:
    """A term with its name in the metrics and, if it listens to one, the teacher that it asks and at which temperature."""

    name: str
    term: Term
    teacher: Teacher | None = None
    temperature: float = 1.0


next_token = Part("next_token", terms.next_token)
"""The student's own objective: cross-entropy with the realised token."""


def distil(teacher: Teacher, temperature: float = 1.0, factor: float | None = None, name: str = "distil") -> Part:
    """`factor` x KL(teacher || student) at a temperature; the factor is temperature² unless given, as in Qin et al. 2022."""
    return Part(name, terms.Divergence(temperature, temperature**2 if factor is None else factor), teacher, temperature)


@dataclass(frozen=True)
class Weighted:
    """A model loss: the weighted sum of parts. A part of weight zero is not computed and its teacher is not asked.

    A teacher whose every part has ended is released.
    """

    parts: tuple[tuple[Schedule, Part], ...]

    def __call__(self, model: Any, batch: Batch, clock: Clock) -> Loss:
        """The mean over `batch.rows_total`; `model` gives `features(batch)` and `head`."""
        active = [(weight(clock), part) for weight, part in self.parts if weight(clock) != 0.0]
        if not active:
            raise RecipeError(
                f"from step {clock.step} of a stage on no part of the loss has a weight; see the method's settings"
            )
        self._release(clock)
        asked = self.asked(clock)
        answers = {key: teacher(batch, key[1]) for key, teacher in asked.items()}
        flops = sum(teacher.flops(batch) for teacher in asked.values())
        addends = [
            Addend(part.term, weight / batch.rows_total, answers.get((id(part.teacher), part.temperature)))
            for weight, part in active
        ]
        total, sums_S = project(model.features(batch), model.head, batch.rows.target_N, addends, clock)
        parts = {part.name: sums_S[i] / batch.rows_total for i, (_, part) in enumerate(active)}
        return Loss(total, parts, sum(w for w, part in active if part.teacher is not None), flops)

    def prepare(self, batch: Batch, clock: Clock) -> None:
        """Tell the teachers that a step will ask about this batch; runs in the loader's thread, ahead of the step."""
        for (_, temperature), teacher in self.asked(clock).items():
            teacher.prepare(batch, temperature)

    def asked(self, clock: Clock) -> dict[tuple[int, float], Teacher]:
        """The teachers that this clock's step asks, by their identity and the temperature: each once."""
        return {
            (id(part.teacher), part.temperature): part.teacher
            for weight, part in self.parts
            if part.teacher is not None and weight(clock) != 0.0
        }

    def rates(self, clock: Clock) -> tuple[float, ...]:
        """Every part's weight at a clock."""
        return tuple(weight(clock) for weight, _ in self.parts)

    def release(self) -> None:
        """Let every teacher go: the stage has ended."""
        for _, part in self.parts:
            if part.teacher is not None:
                part.teacher.release()

    def _release(self, clock: Clock) -> None:
        ended: dict[int, bool] = {}
        for weight, part in self.parts:
            if part.teacher is not None:
                ended[id(part.teacher)] = ended.get(id(part.teacher), True) and weight.ended(clock)
        for _, part in self.parts:
            if part.teacher is not None and ended[id(part.teacher)]:
                part.teacher.release()


class Around:
    """A loss around another one, `inner`, which it speaks for in everything but the loss itself."""

    inner: LossFn

    def prepare(self, batch: Batch, clock: Clock) -> None:
        """As the inner loss's."""
        getattr(self.inner, "prepare", lambda batch, clock: None)(batch, clock)

    def asked(self, clock: Clock) -> Mapping[tuple[int, float], Teacher]:
        """As the inner loss's."""
        found: Mapping[tuple[int, float], Teacher] = getattr(self.inner, "asked", lambda clock: {})(clock)
        return found

    def rates(self, clock: Clock) -> Any:
        """As the inner loss's."""
        return getattr(self.inner, "rates", lambda clock: clock.steps)(clock)

    def release(self) -> None:
        """As the inner loss's."""
        getattr(self.inner, "release", lambda: None)()


def plus(loss: LossFn, weight: float, part: Part) -> LossFn:
    """The loss with one more part.

    Raises RecipeError when it is no sum of parts.
    """
    if isinstance(loss, Weighted):
        return Weighted((*loss.parts, (constant(weight), part)))
    if isinstance(loss, Around) and is_dataclass(loss):
        return replace(loss, inner=plus(loss.inner, weight, part))
    raise RecipeError(
        f"{part.name} cannot be added to this method's loss, which is no sum of terms; set its weight to 0"
    )


def weighted(*parts: tuple[Schedule | float, Part]) -> Weighted:
    """The sum of `(weight, part)` pairs; a number is a constant weight."""
    return Weighted(tuple((w if isinstance(w, Schedule) else constant(w), part) for w, part in parts))
