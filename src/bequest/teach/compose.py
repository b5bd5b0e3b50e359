"""Several predecessors as one: each source its own teacher, or a weighted mean of what several say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..types import Answer, Batch, Signal, Teacher


@dataclass(frozen=True)
class Routed:
    """Sequences of each source go to that source's teacher (Qin et al. 2022: one teacher per domain)."""

    teachers: Mapping[str, Teacher]
    """By source."""

    def _parts(self, batch: Batch) -> Iterator[tuple[Teacher, list[int]]]:
        """Each teacher with the numbers of its sequences."""
        for teacher in {id(t): t for t in self.teachers.values()}.values():
            if numbers := [n for n, source in enumerate(batch.sources) if self.teachers[source] is teacher]:
                yield teacher, numbers

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        """Every row's answer comes from its own teacher."""
        sequence_N = batch.rows.index_N // batch.tokens_BT.shape[1]
        answers, of_N, place_N = [], torch.empty_like(sequence_N), torch.empty_like(sequence_N)
        for number, (teacher, numbers) in enumerate(self._parts(batch)):
            mine_N = torch.isin(sequence_N, sequence_N.new_tensor(numbers))
            of_N[mine_N], place_N[mine_N] = number, mine_N.cumsum(0)[mine_N] - 1
            answers.append(teacher(batch.of(numbers), temperature))
        return _Merged(answers, of_N, place_N)

    def prepare(self, batch: Batch, temperature: float) -> None:
        """Each teacher prepares its own sequences."""
        for teacher, numbers in self._parts(batch):
            teacher.prepare(batch.of(numbers), temperature)

    def flops(self, batch: Batch) -> float:
        """What its teachers need."""
        return sum(teacher.flops(batch.of(numbers)) for teacher, numbers in self._parts(batch))

    def release(self) -> None:
        """All of them leave."""
        for teacher in self.teachers.values():
            teacher.release()


@dataclass(frozen=True)
class _Merged:
    """Row n is row `place_N[n]` of answer number `of_N[n]`."""

    answers: Sequence[Answer]
    of_N: Tensor
    place_N: Tensor

    def __getitem__(self, rows: Any) -> Signal:
        of_C, place_C = self.of_N[rows], self.place_N[rows]
        asked = [(answer, of_C == number) for number, answer in enumerate(self.answers)]
        found = [answer[place_C[mine_C]] for answer, mine_C in asked if mine_C.any()]
        order = torch.cat([mine_C.nonzero()[:, 0] for _, mine_C in asked]).argsort()
        return _stacked(found)[order]


def _stacked(parts: Sequence[Signal]) -> Signal:
    """Signals of different rows, one after another, in one form: dense when all are, else with ids and a rest."""
    if len(parts) == 1:
        return parts[0]
    if all(part.ids_NK is None for part in parts):
        return Signal(None, torch.cat([part.logp_NK for part in parts]), None)
    most = max(part.logp_NK.shape[1] for part in parts)
    columns = [_explicit(part, most) for part in parts]
    return Signal(*(torch.cat(column) for column in zip(*columns, strict=True)))


def _explicit(part: Signal, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, log-probabilities, rest and entropy, filled up to as many ids."""
    rows, kept = part.logp_NK.shape
    ids_NK = torch.arange(kept, device=part.logp_NK.device).expand(rows, -1) if part.ids_NK is None else part.ids_NK
    ids_NM = torch.cat([ids_NK, ids_NK[:, :1].expand(-1, most - kept)], 1)
    logp_NM = torch.nn.functional.pad(part.logp_NK, (0, most - kept), value=-torch.inf)
    none_N = torch.full_like(part.logp_NK[:, 0], -torch.inf)
    return ids_NM, logp_NM, none_N if part.logrest_N is None else part.logrest_N, part.entropy()


@dataclass(frozen=True)
class Ensembled:
    """The weighted mean of several teachers' distributions.

    Where a member keeps few ids, its mass on any other is not known: the mean keeps the ids that every member knows,
    and everything else is its rest. The divergence from a mean that holds draws is told as the mean of the members'
    divergences: of the mean's own entropy draws know nothing (a dense member gives them a place: then it is the mean's own).
    """

    members: Sequence[tuple[Teacher, float]]
    """With weights that add up to 1."""

    def __call__(self, batch: Batch, temperature: float) -> Answer:
        """The mean of the members' answers."""
        return _Mean([(teacher(batch, temperature), weight) for teacher, weight in self.members])

    def prepare(self, batch: Batch, temperature: float) -> None:
        """All members prepare."""
        for teacher, _ in self.members:
            teacher.prepare(batch, temperature)

    def flops(self, batch: Batch) -> float:
        """What its members need."""
        return sum(teacher.flops(batch) for teacher, _ in self.members)

    def release(self) -> None:
        """All of them leave."""
        for teacher, _ in self.members:
            teacher.release()


@dataclass(frozen=True)
class _Mean:
    answers: Sequence[tuple[Answer, float]]

    def __getitem__(self, rows: Any) -> Signal:
        parts = [(answer[rows], weight) for answer, weight in self.answers]
        found = _mixture(parts)
        if all(part.whole_entropy_N is None for part, _ in parts):
            return found
        entropy_C = sum((weight * part.entropy() for part, weight in parts), torch.zeros_like(found.logp_NK[:, 0]))
        return replace(found, whole_entropy_N=entropy_C)


def _mixture(parts: Sequence[tuple[Signal, float]]) -> Signal:
    """The mean: dense where a member is and none has a rest, else with ids."""
    dense = [weight * part.logp_NK.exp() for part, weight in parts if part.ids_NK is None]
    if not dense:
        return _mean(parts, None)
    dense_CV = sum(dense[1:], dense[0])
    for part, weight in parts:
        if part.ids_NK is not None and part.logrest_N is None:  # every id has its place, and so have draws
            dense_CV = dense_CV.scatter_add(1, part.ids_NK, weight * part.logp_NK.exp())
    kept = [(part, weight) for part, weight in parts if part.logrest_N is not None]
    return (
        _mean(kept, dense_CV)
        if kept
        else Signal(None, dense_CV.clamp_min(torch.finfo(dense_CV.dtype).tiny).log(), None)
    )


def _mean(parts: Sequence[tuple[Signal, float]], dense_CV: Tensor | None) -> Signal:
    """The mean of signals with ids, and of the weighted sum of dense ones: equal ids meet in one place of the grid."""
    ids_CM = torch.cat([part.ids_NK for part, _ in parts if part.ids_NK is not None], 1)
    p_CM = torch.cat([weight * part.logp_NK.exp() for part, weight in parts], 1)
    # An id is known to those that keep it, and to those that leave no rest.
    votes_CM = torch.cat([(part.logp_NK > -torch.inf).float() * (part.logrest_N is not None) for part, _ in parts], 1)
    ids_CM, order = ids_CM.sort(-1)
    place_CM = torch.nn.functional.pad((ids_CM[:, 1:] != ids_CM[:, :-1]).long(), (1, 0)).cumsum(-1)
    mass_CM, known_CM = (
        torch.zeros_like(p_CM).scatter_add(1, place_CM, values.gather(1, order)) for values in (p_CM, votes_CM)
    )
    ids_CM = ids_CM[:, :1].repeat(1, ids_CM.shape[1]).scatter(1, place_CM, ids_CM)
    used_CM = torch.zeros_like(p_CM).scatter(1, place_CM, 1.0) > 0
    if dense_CV is not None:
        mass_CM = mass_CM + dense_CV.gather(1, ids_CM)
    with_rest = sum(part.logrest_N is not None for part, _ in parts)
    mass_CM = mass_CM * (used_CM & (known_CM == with_rest))
    # What not every member knows belongs to the rest; its place becomes filling.
    first_C1 = ids_CM.gather(1, mass_CM.argmax(-1, keepdim=True))
    ids_CM = torch.where(mass_CM > 0, ids_CM, first_C1)
    rest_C = (1.0 - mass_CM.sum(-1)).clamp_min(0.0)
    return Signal(ids_CM, mass_CM.log(), rest_C.log() if with_rest else None)
