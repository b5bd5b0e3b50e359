"""A predecessor's judgement of data: what it makes of each sequence, in numbers, and what is chosen by that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..config import Config, Positive
from ..data.batches import Choice
from ..data.pack import Ints
from ..model.language import Head, LanguageModel
from ..types import Batch

Floats = npt.NDArray[np.float64]


class Judgement(Protocol):
    """What is asked about a batch's sequences: some numbers for each, [B, W]."""

    @property
    def per(self) -> str:
        """token or byte; per byte a model with a tokenizer of its own can be asked, too: it reads the same text."""
        ...

    def width(self, model: LanguageModel) -> int:
        """W."""
        ...

    def __call__(self, model: LanguageModel, head: Head, batch: Batch, sizes_B: Ints) -> Tensor:
        """`head` leaves out padded rows of the vocabulary; `sizes_B` are tokens or bytes that are predicted."""
        ...


class MeanLoss(Config):
    """The negative log-likelihood in nats per token, or per byte of text (Gu et al. 2025, arXiv 2410.17215)."""

    per: Literal["token", "byte"] = "token"

    def width(self, model: LanguageModel) -> int:
        """One number."""
        return 1

    def __call__(self, model: LanguageModel, head: Head, batch: Batch, sizes_B: Ints) -> Tensor:
        """[B, 1]; 0 for a sequence of which nothing is predicted."""
        nats_N = head.over(model(batch), _nats(batch)).double()
        sum_B = nats_N.new_zeros(len(batch.keys)).index_add_(0, _sequence_of(batch), nats_N)
        return (sum_B.cpu() / torch.from_numpy(sizes_B).clamp_min(1))[:, None]


class MedianLoss(Config):
    """The median loss over the tokens that are among the model's `top` first guesses (Rawat et al. 2024, arXiv 2410.18779, SALT_DS).

    Those that are not are dropped, or count as if they had no loss: the paper leaves it open.
    """

    top: Positive = 10
    others: Literal["drop", "zero"] = "drop"
    per: Literal["token"] = "token"

    def width(self, model: LanguageModel) -> int:
        """One number."""
        return 1

    def __call__(self, model: LanguageModel, head: Head, batch: Batch, sizes_B: Ints) -> Tensor:
        """[B, 1] in nats, of an even number the mean of the middle two; minus infinity where no token is among the guesses."""
        features_ND = model(batch)
        both = (head.over(features_ND, one(batch)).cpu() for one in (_nats, _rank))
        sizes = torch.bincount(_sequence_of(batch).cpu(), minlength=len(batch.keys)).tolist()
        split = zip(*(torch.split(column, sizes) for column in both), strict=True)
        return torch.tensor([[self._of(*found)] for found in split])

    def _of(self, nats_N: Tensor, rank_N: Tensor) -> float:
        likely_N = rank_N < self.top
        if not likely_N.any():
            return -math.inf
        return float(np.median((nats_N[likely_N] if self.others == "drop" else nats_N * likely_N).numpy()))


class State(Config):
    """The model's last hidden state, a mean over what is predicted: what a proxy of another judgement is fitted on."""

    per: Literal["token"] = "token"

    def width(self, model: LanguageModel) -> int:
        """D."""
        return int(model.head.weight_VD.shape[1])

    def __call__(self, model: LanguageModel, head: Head, batch: Batch, sizes_B: Ints) -> Tensor:
        """[B, D]."""
        features_ND = model(batch).float()
        sum_BD = features_ND.new_zeros(len(batch.keys), features_ND.shape[1])
        sum_BD.index_add_(0, _sequence_of(batch), features_ND)
        mean_BD: Tensor = sum_BD.cpu() / torch.from_numpy(sizes_B).clamp_min(1)[:, None]
        return mean_BD


def _nats(batch: Batch) -> Callable[[Tensor, slice], Tensor]:
    """Each row's loss."""
    return lambda z_CV, rows: nn.functional.cross_entropy(z_CV, batch.rows.target_N[rows], reduction="none")


def _rank(batch: Batch) -> Callable[[Tensor, slice], Tensor]:
    """The place of each row's token among the model's guesses; 0 is the first."""
    return lambda z_CV, rows: (z_CV > z_CV.gather(1, batch.rows.target_N[rows, None])).sum(-1)


def _sequence_of(batch: Batch) -> Tensor:
    return batch.rows.index_N // batch.tokens_BT.shape[1]


@dataclass(frozen=True)
class Scores:
    """Numbers for every sequence of a list, [count, W]; made when asked for, once."""

    count: int
    find: Callable[[], Floats]
    flops: Callable[[], float]
    """Floating-point operations that they take."""

    @cached_property
    def all(self) -> Floats:
        """Every sequence's."""
        return self.find()

    def __sub__(self, other: Scores) -> Scores:
        assert self.count == other.count, "scores of the same sequences"
        return Scores(self.count, lambda: self.all - other.all, lambda: self.flops() + other.flops())

    def highest(self, count: int) -> Choice:
        """The sequences with the highest scores, in their order; of equals the first."""
        return Choice(count, lambda: np.sort(np.argsort(-self.all[:, 0], kind="stable")[:count]), self.flops)


def randomly(sequences: int, count: int, seed: int) -> Choice:
    """So many of a list of sequences by chance: what every judgement is to be measured against."""
    return Choice(count, lambda: np.sort(np.random.default_rng(seed).permutation(sequences)[:count]), lambda: 0.0)


def proxy(states: Scores, sample: Choice, scores: Scores, ridge: float = 1.0) -> Scores:
    """Scores of all sequences by a linear map from their states, fitted on a sample whose scores are known (MiniPLM's proxy).

    Mean squared error with a little ridge; states and scores are centred on the sample.
    """

    def find() -> Floats:
        known_SD, wanted_S = states.all[sample.numbers], scores.all[:, 0]
        middle_D, middle = known_SD.mean(0), wanted_S.mean()
        centred_SD = known_SD - middle_D
        gram_DD = centred_SD.T @ centred_SD + ridge * np.eye(centred_SD.shape[1])
        weight_D = np.linalg.solve(gram_DD, centred_SD.T @ (wanted_S - middle))
        guessed_N: Floats = middle + (states.all - middle_D) @ weight_D
        return guessed_N[:, None]

    return Scores(states.count, find, lambda: states.flops() + scores.flops())
