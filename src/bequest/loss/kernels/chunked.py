"""The closed form in PyTorch, on blocks of rows that stay in a CPU's cache while the passes go over them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...model.language import Head
from ...model.tiled import rows_in_cache
from ...types import Signal
from .pair import Pair

Losses = tuple[Tensor | None, Tensor | None]
"""Cross-entropy and divergence of some rows."""


def slope_(product_CV: Tensor, head: Head, pair: Pair) -> Losses:
    """As `kernels.slope_`, on any device."""
    size = rows_in_cache(product_CV.shape[1], product_CV.device.type)
    blocks = [slice(first, first + size) for first in range(0, len(product_CV), size)]
    crosses, divergences = zip(*(block_(product_CV[rows], head, pair[rows]) for rows in blocks), strict=True)
    return (
        None if pair.gold_C is None else torch.cat(crosses),
        None if pair.told_C is None else torch.cat(divergences),
    )


def block_(product_CV: Tensor, head: Head, pair: Pair) -> Losses:
    """As `slope_`, on all rows at once."""
    logits_CV = head.finish(product_CV)
    bend = head.bend(logits_CV)
    if pair.told_C is None or pair.temperature == 1.0:
        losses = _gradient_(logits_CV, pair)
    else:  # two softmaxes: the target is told from the logits as they are
        tempered_CV = logits_CV / pair.temperature
        told_C = pair.told_C / pair.temperature
        _, divergence_C = _gradient_(tempered_CV, replace(pair, gold_C=None, told_C=told_C))
        cross_C = None
        if pair.gold_C is None:
            logits_CV = tempered_CV
        else:
            cross_C, _ = _gradient_(logits_CV, Pair(pair.target_C, pair.gold_C))
            logits_CV += tempered_CV
        losses = cross_C, divergence_C
    product_CV.copy_(logits_CV if isinstance(bend, float) and bend == 1.0 else logits_CV * bend)
    return losses


def _gradient_(logits_CV: Tensor, pair: Pair) -> Losses:
    """Losses; the logits become the gradient. The temperature is in them already."""
    if pair.signal_C is None or pair.told_C is None:
        return _realised_(logits_CV, pair), None
    signal = pair.signal_C.to(logits_CV.dtype)
    if signal.ids_NK is None:
        return _dense_(logits_CV, pair, signal, pair.told_C)
    if signal.logrest_N is None:
        return _drawn_(logits_CV, pair, signal, signal.ids_NK, pair.told_C)
    return _kept_(logits_CV, pair, signal, signal.ids_NK, pair.told_C)


def _exponentials_(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Logits become exp(logit - largest); the log of their sum as it was, and their sum as it is (1 at least), [C].

    exp2, because it is three times as fast as exp on a CPU. Minus infinity has no share, a row of nothing else neither.
    """
    largest_C1 = logits_CV.amax(-1, keepdim=True).clamp_min(torch.finfo(logits_CV.dtype).min)
    sum_C = logits_CV.sub_(largest_C1).mul_(math.log2(math.e)).exp2_().sum(-1)
    return largest_C1[:, 0] + sum_C.log(), sum_C.clamp_min(1.0)


def _realised_(logits_CV: Tensor, pair: Pair) -> Tensor:
    assert pair.gold_C is not None
    target_C1 = pair.target_C[:, None]
    realised_C = logits_CV.gather(-1, target_C1)[:, 0]
    whole_C, sum_C = _exponentials_(logits_CV)
    logits_CV *= (pair.gold_C / sum_C)[:, None]
    logits_CV.scatter_add_(-1, target_C1, -pair.gold_C[:, None])
    return whole_C - realised_C


def _dense_(logits_CV: Tensor, pair: Pair, signal: Signal, told_C: Tensor) -> Losses:
    """The teacher may know fewer ids than the student has rows: what it does not know has no mass."""
    target_C1 = pair.target_C[:, None]
    realised_C = logits_CV.gather(-1, target_C1)[:, 0]
    known_CV = logits_CV[:, : signal.logp_NK.shape[1]]
    mass_CV = signal.logp_NK.mul(math.log2(math.e)).exp2_()
    surplus_C = (signal.logp_NK - known_CV).mul_(mass_CV).sum(-1)
    whole_C, sum_C = _exponentials_(logits_CV)
    logits_CV *= ((told_C if pair.gold_C is None else told_C + pair.gold_C) / sum_C)[:, None]
    known_CV -= mass_CV.mul_(told_C[:, None])
    if pair.gold_C is None:
        return None, surplus_C + whole_C
    logits_CV.scatter_add_(-1, target_C1, -pair.gold_C[:, None])
    return whole_C - realised_C, surplus_C + whole_C


def _drawn_(logits_CV: Tensor, pair: Pair, signal: Signal, ids_CK: Tensor, told_C: Tensor) -> Losses:
    """Without a rest the divergence is linear in what is told: M p - t, and an id may be told of several times."""
    target_C1 = pair.target_C[:, None]
    realised_C, kept_CK, t_CK = (
        logits_CV.gather(-1, target_C1)[:, 0],
        logits_CV.gather(-1, ids_CK),
        signal.logp_NK.exp(),
    )
    whole_C, sum_C = _exponentials_(logits_CV)
    divergence_C = -signal.entropy() - (t_CK * (kept_CK - whole_C[:, None])).sum(-1)
    constant_C = told_C * t_CK.sum(-1)
    logits_CV *= ((constant_C if pair.gold_C is None else constant_C + pair.gold_C) / sum_C)[:, None]
    logits_CV.scatter_add_(-1, ids_CK, -told_C[:, None] * t_CK)
    if pair.gold_C is None:
        return None, divergence_C
    logits_CV.scatter_add_(-1, target_C1, -pair.gold_C[:, None])
    return whole_C - realised_C, divergence_C


def _kept_(logits_CV: Tensor, pair: Pair, signal: Signal, ids_CK: Tensor, told_C: Tensor) -> Losses:
    """The kept ids are taken out before the sum, so that the student's rest is exact, however little is left of it.

    With the teacher's masses M of what is kept and m of the rest, the divergence's gradient is (M + m) p - t on kept ids,
    and elsewhere (M + m) p - m x the others' own softmax.
    """
    assert signal.logrest_N is not None
    target_C1 = pair.target_C[:, None]
    realised_C = logits_CV.gather(-1, target_C1)[:, 0]
    kept_CK, filling_CK = logits_CV.gather(-1, ids_CK), signal.logp_NK == -torch.inf
    logits_CV.scatter_add_(-1, ids_CK, torch.where(filling_CK, 0.0, -torch.inf).to(logits_CV.dtype))
    others_C, sum_C = _exponentials_(logits_CV)
    among_C = kept_CK.masked_fill(filling_CK, -torch.inf).logsumexp(-1)
    whole_C = torch.logaddexp(others_C, among_C)
    logp_CK, logq_C = kept_CK - whole_C[:, None], others_C - whole_C
    p_CK, q_C, t_CK = logp_CK.exp(), logq_C.exp(), signal.logp_NK.exp()
    M_C, none_C = t_CK.sum(-1), others_C == -torch.inf
    m_C = signal.logrest_N.exp().masked_fill(none_C, 0.0)  # no others: what rounding left of the rest is nothing
    told_rest_C = m_C * logq_C.masked_fill(none_C, 0.0)
    divergence_C = -signal.entropy() - (t_CK * logp_CK).sum(-1) - told_rest_C
    # Both say the same; each is a difference of nearly equal numbers where the other is not.
    elsewhere_C = torch.where(q_C < 0.5, (M_C + m_C) * q_C - m_C, M_C - (M_C + m_C) * (among_C - whole_C).exp())
    constant_C, value_CK = told_C * elsewhere_C, told_C[:, None] * ((M_C + m_C)[:, None] * p_CK - t_CK)
    if pair.gold_C is not None:
        constant_C += pair.gold_C * q_C
        value_CK += pair.gold_C[:, None] * p_CK
    logits_CV *= (constant_C / sum_C)[:, None]
    logits_CV.scatter_add_(-1, ids_CK, value_CK.masked_fill(filling_CK, 0.0))
    if pair.gold_C is None:
        return None, divergence_C
    logits_CV.scatter_add_(-1, target_C1, -pair.gold_C[:, None])
    return whole_C - realised_C, divergence_C
