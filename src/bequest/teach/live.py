"""A predecessor that runs beside its successor: loaded when first asked, released when its rate has reached zero."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..model.flops import forward_flops
from ..model.language import Head, LanguageModel
from ..model.tiled import largest, rows_at_once, rows_in_cache
from ..types import Answer, Batch, Signal


@dataclass(frozen=True)
class Dense:
    """Every log-probability of every row, made from the teacher's features only when a chunk of rows asks for it."""

    features_ND: Tensor
    head: Head
    temperature: float
    precision: Callable[[], AbstractContextManager[Any]]

    @torch.no_grad()
    def __getitem__(self, rows: Any) -> Signal:
        with self.precision():
            logits_CV = self.head.logits(self.features_ND[rows])
        for block_CV in torch.split(logits_CV, rows_in_cache(logits_CV.shape[1], logits_CV.device.type)):
            block_CV.copy_(block_CV.div_(self.temperature).log_softmax(-1))
        return Signal(None, logits_CV, None)


class Live:
    """A model as teacher. `keep` 0 gives every id, otherwise the K likeliest and the mass of the rest.

    `vocabulary` is the number of ids that the tokenizer knows: rows beyond it are padding and are cut off before the softmax.
    """

    def __init__(
        self,
        load: Callable[[], LanguageModel],
        vocabulary: int,
        keep: int,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._load = load
        self._vocabulary = vocabulary
        self._keep = min(keep, vocabulary)
        self._precision = precision
        self._model: LanguageModel | None = None
        self._head: Head | None = None

    @property
    def model(self) -> LanguageModel:
        """The model itself, loaded if it is not."""
        if self._model is None:
            self._model = self._load().eval().requires_grad_(False)
        return self._model

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    @property
    def head(self) -> Head:
        """The model's head in the precision of its products, without padded rows."""
        if self._head is None:
            head = self.model.head.narrow(self._vocabulary)
            with self._precision():
                self._head = replace(head, weight_VD=head.weight_VD.to(head.dtype(head.weight_VD)))
        return self._head

    def release(self) -> None:
        """Leave memory."""
        self._model = self._head = None

    def prepare(self, batch: Batch, temperature: float) -> None:
        """Nothing to do ahead of time: the device is busy."""

    def flops(self, batch: Batch) -> float:
        """One forward pass."""
        return forward_flops(self.model, batch)

    @torch.no_grad()
    def __call__(self, batch: Batch, temperature: float) -> Answer:
        """What the model says about the batch's rows at a temperature."""
        with self._precision():
            features_ND = self.model(batch)
        answer = Dense(features_ND, self.head, temperature, self._precision)
        return likeliest(answer, self._keep, len(features_ND), self._vocabulary) if self._keep else answer


def likeliest(answer: Answer, keep: int, rows: int, vocabulary: int) -> Signal:
    """The K likeliest ids of each row and the log of the mass of all others, chunk by chunk."""
    chunk = rows_at_once(vocabulary, "cpu")
    kept = [_likeliest(answer[first : first + chunk].logp_NK, keep) for first in range(0, max(1, rows), chunk)]
    ids, logp, logrest = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return Signal(ids, logp, logrest)


def _likeliest(logp_CV: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    logp_CK, ids_CK = largest(logp_CV, keep)
    # Summed over what is left, not 1 - sum(kept): the difference would be rounding once the teacher is sure.
    logrest_C = logp_CV.exp().scatter_(-1, ids_CK, 0.0).sum(-1).log()
    return ids_CK, logp_CK, logrest_C


def without_rest(signal: Signal) -> Signal:
    """The kept entries scaled up to one, as the paper does it; biased (Qin et al. 2022, section 4.1)."""
    scaled = replace(signal, logp_NK=signal.logp_NK.log_softmax(-1), logrest_N=None, whole_entropy_N=None)
    if signal.whole_entropy_N is None or signal.logrest_N is None:
        return replace(scaled, whole_entropy_N=signal.whole_entropy_N)
    # Beside rows with a rest there may be rows of draws, which have none and know their entropy.
    return replace(
        scaled, whole_entropy_N=torch.where(signal.logrest_N == -torch.inf, signal.whole_entropy_N, scaled.entropy())
    )
