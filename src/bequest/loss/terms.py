"""Terms: what is asked of a chunk of logits. Pure functions `(logits_CV, chunk, clock) -> loss_C`, in fp32.

They say what the losses are; of `next_token` with a `Divergence` the kernels know the gradient in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..types import Chunk, Clock, Signal


def next_token(logits_CV: Tensor, chunk: Chunk, clock: Clock) -> Tensor:
    """Cross-entropy with the realised token (the next one, or the masked one)."""
    return nn.functional.cross_entropy(logits_CV, chunk.target_C, reduction="none")


@dataclass(frozen=True)
class Divergence:
    """`factor` x KL(teacher || student), both at `temperature` (Hinton et al. 2015; Qin et al. 2022, section 3.1).

    With kept entries and a rest, the rest is one bucket on both sides: a teacher that equals the student then gives
    exactly no gradient, and with all entries kept it is the dense divergence.
    """

    temperature: float = 1.0
    factor: float = 1.0

    def __call__(self, logits_CV: Tensor, chunk: Chunk, clock: Clock) -> Tensor:
        """The divergence of each row, [C]."""
        assert chunk.signal_C is not None
        tempered_CV = logits_CV / self.temperature
        if chunk.signal_C.ids_NK is None:
            return self.factor * _dense(tempered_CV, chunk.signal_C)
        return self.factor * _kept(tempered_CV, chunk.signal_C, chunk.signal_C.ids_NK)


def _dense(logits_CV: Tensor, signal: Signal) -> Tensor:
    """The teacher may know fewer ids than the student has rows: what it does not know has no mass."""
    known_CV = logits_CV.log_softmax(-1)[:, : signal.logp_NK.shape[1]]
    return nn.functional.kl_div(known_CV, signal.logp_NK, reduction="none", log_target=True).sum(-1)


def _kept(logits_CV: Tensor, signal: Signal, ids_CK: Tensor) -> Tensor:
    kept_CK = logits_CV.gather(-1, ids_CK)
    p_CK = signal.logp_NK.exp()
    if signal.logrest_N is None:
        return p_CK.sum(-1) * logits_CV.logsumexp(-1) - signal.entropy() - (p_CK * kept_CK).sum(-1)
    # The rest in log space: 1 - sum(kept) would be rounding error once the student is sure of the kept ids.
    filling_CK = signal.logp_NK == -torch.inf
    told_CV = torch.zeros_like(logits_CV, dtype=torch.bool).scatter_reduce(-1, ids_CK, ~filling_CK, "amax")
    others_C = logits_CV.masked_fill(told_CV, -torch.inf).logsumexp(-1)
    all_C = torch.logaddexp(others_C, kept_CK.masked_fill(filling_CK, -torch.inf).logsumexp(-1))
    # A rest of nothing times the log of nothing is nothing; no others: what rounding left of the rest is nothing, too.
    nothing_C = (signal.logrest_N == -torch.inf) | (others_C == -torch.inf)
    others_C = torch.where(nothing_C, all_C, others_C)
    rest_C = signal.logrest_N.exp()
    return -signal.entropy() - (p_CK * (kept_CK - all_C[:, None])).sum(-1) - rest_C * (others_C - all_C)
