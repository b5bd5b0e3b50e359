"""How the output answers to the input: gradients of a signal with respect to what enters the first block, aligned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..model.flops import TRAINING, forward_flops
from ..model.language import Head, LanguageModel
from ..model.states import watched
from ..types import Batch, Clock, Loss, Teacher
from .combine import Weighted
from .hidden import between
from .rows import sequence_of

NOTHING = 1e-12
"""A gradient shorter than this has no direction."""
ONE_IN = 8
"""Of the rows, so many are in the signal, others at every step."""


def _one_in(batch: Batch, turn: int) -> Tensor:
    """The rows whose signal is taken, by their place in their sequence: how a batch is split does not matter."""
    place_N = batch.rows.index_N % batch.tokens_BT.shape[1]
    return ((place_N + turn) % ONE_IN == 0).nonzero()[:, 0]


def _evenly(batch: Batch, turn: int) -> Tensor:
    return torch.arange(0, len(batch.rows.index_N), ONE_IN, device=batch.rows.index_N.device)


class Aligned(nn.Module):
    """inner + weight x mean over tokens of |g_T / |g_T| - M g_S / |M g_S||², in every `every`-th step (Wang et al. 2022, arXiv 2211.01071).

    g are the gradients of a signal with respect to what enters the first block, M a learned map between the widths, the
    identity at first. The student's takes a second derivative, so that in such a step attention is transformers' plain one.
    Such a step takes the student twice its pass, and the teacher one forward and one backward pass more.
    """

    def __init__(
        self,
        inner: Weighted,
        weight: float,
        every: int,
        signal: Literal["confidence", "gold"],
        teacher: Callable[[], LanguageModel],
        chosen: Callable[[Batch, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.weight, self.every, self.signal, self.teacher = inner, weight, every, signal, teacher
        self.chosen = chosen or _one_in
        self.map_SD: nn.Parameter | None = None

    def meet(self, model: LanguageModel) -> None:
        """Learn the student's width."""
        if self.weight:
            self.map_SD = between(model, self.teacher())

    def aligns(self, clock: Clock) -> bool:
        """Whether gradients are compared in this step."""
        return bool(self.weight) and clock.step % self.every == 0

    def forward(self, model: LanguageModel, batch: Batch, clock: Clock) -> Loss:
        """The inner loss, and what gradients add to it."""
        if not self.aligns(clock):
            return self.inner(model, batch, clock)
        with model.differentiable_twice(), watched(model, [0]) as states:
            passed = _Passed(model.features(batch), model.head)
        loss = self.inner(passed, batch, clock)
        own_BTD = self._slopes(passed.features(batch), passed.head, states[0], batch, clock, again=True)
        apart = self._apart(own_BTD, self._teachers(batch, clock), batch).sum() / batch.rows_total
        return Loss(
            loss.total + self.weight * apart,
            {**loss.parts, "gradient": apart.detach()},
            loss.rate,
            loss.teacher_flops + 2 * forward_flops(self.teacher(), batch),
            loss.student_flops + TRAINING * forward_flops(model, batch),
        )

    @torch.enable_grad()
    def _teachers(self, batch: Batch, clock: Clock) -> Tensor:
        teacher = self.teacher()
        with watched(teacher, [0], learning=True) as states:
            features_ND = teacher.features(batch)
        return self._slopes(features_ND, teacher.head, states[0], batch, clock, again=False)

    def _slopes(
        self, features_ND: Tensor, head: Head, state_BTD: Tensor, batch: Batch, clock: Clock, again: bool
    ) -> Tensor:
        """Of the signal with respect to what enters the first block, [B, T, D]."""
        rows = self.chosen(batch, clock.step // self.every)
        logp_CV = head.logits(features_ND[rows]).log_softmax(-1)
        gold_C = logp_CV.gather(1, batch.rows.target_N[rows, None])[:, 0]
        signal = (gold_C if self.signal == "gold" else logp_CV.amax(-1).exp()).sum()
        (found,) = torch.autograd.grad(signal, state_BTD, create_graph=again)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def _apart(self, own_BTD: Tensor, other_BTD: Tensor, batch: Batch) -> Tensor:
        """The mean over each sequence's tokens that have both gradients, times its rows, [B]."""
        assert self.map_SD is not None
        mapped_BTD = nn.functional.linear(own_BTD, self.map_SD.to(own_BTD.dtype))
        own_BT, other_BT = mapped_BTD.norm(dim=-1), other_BTD.norm(dim=-1)
        known_BT = (own_BT > NOTHING) & (other_BT > NOTHING) & (batch.segments_BT >= 0)
        cosine_BT = (mapped_BTD * other_BTD).sum(-1) / (own_BT * other_BT).clamp_min(NOTHING**2)
        apart_BT = torch.where(known_BT, 2.0 - 2.0 * cosine_BT, 0.0)
        rows_B = own_BT.new_zeros(len(own_BT)).index_add_(
            0, sequence_of(batch), own_BT.new_ones(len(batch.rows.index_N))
        )
        apart_B: Tensor = apart_BT.sum(1) / known_BT.sum(1).clamp_min(1) * rows_B
        return apart_B

    def prepare(self, batch: Batch, clock: Clock) -> None:
        """As the inner loss's."""
        self.inner.prepare(batch, clock)

    def asked(self, clock: Clock) -> Mapping[tuple[int, float], Teacher]:
        """As the inner loss's; gradients are asked of the model itself."""
        return self.inner.asked(clock)

    def rates(self, clock: Clock) -> tuple[float, ...]:
        """As the inner loss's."""
        return self.inner.rates(clock)

    def expected(self, model: LanguageModel, batch: Batch, clock: Clock) -> tuple[float, float]:
        """Operations of a step beyond the student's own pass: the student's, the teacher's."""
        asked = sum(teacher.flops(batch) for teacher in self.asked(clock).values())
        if not self.aligns(clock):
            return 0.0, asked
        return TRAINING * forward_flops(model, batch), asked + 2 * forward_flops(self.teacher(), batch)

    def outline(self) -> Aligned:
        """The same where the batch has no numbers: as many rows in the signal, others."""
        return Aligned(self.inner, self.weight, self.every, self.signal, self.teacher, _evenly)

    def release(self) -> None:
        """The stage has ended."""
        self.inner.release()


@dataclass(frozen=True)
class _Passed:
    """A student whose pass has been made."""

    features_ND: Tensor
    head: Head

    def features(self, batch: Batch) -> Tensor:
        """They are there."""
        return self.features_ND
