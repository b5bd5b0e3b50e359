"""Features -> loss, a chunk of rows at a time: N x V logits are never held, and the gradient is made in the same pass.

Each chunk costs the three matrix products that cross-entropy alone costs (logits, features' gradient, weight's gradient),
whatever the number of terms. The head's gradient is summed in fp32. Terms are differentiated by autograd on the chunk's
logits; a closed form for common pairs of terms can take that one line's place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..model.language import Head

CHUNK_BYTES = 32 << 20
MOST_ROWS = 1024

Score = Callable[[Tensor, slice], Tensor]
"""`score(logits_CV, rows) -> loss_C` for the rows of the slice."""


def chunk_rows(vocabulary: int) -> int:
    """Rows per chunk: an fp32 chunk of logits within a byte budget. Depends on the vocabulary alone."""
    return max(16, min(MOST_ROWS, CHUNK_BYTES // (4 * vocabulary)))


def project(
    features_ND: Tensor, head: Head, scores: Sequence[Score], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Weighted sum over all rows and scores, and each score's own sum [S] without gradient; fp32 scalars.

    The gradient flows to the features and to the head's weight and bias. It cannot be differentiated twice.
    """
    tensors: tuple[Tensor | None, ...] = (features_ND, head.weight_VD, head.bias_V)
    if not torch.is_grad_enabled():  # autograd would still say that parameters want a gradient
        tensors = tuple(t if t is None else t.detach() for t in tensors)
    total, sums_S = _Project.apply(*tensors, head, tuple(scores), tuple(weights))  # type: ignore[no-untyped-call]
    return total, sums_S


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        scores: tuple[Score, ...],
        weights: tuple[float, ...],
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[:3]
        used_VD = weight_VD.to(head.dtype(features_ND))
        head = replace(head, bias_V=bias_V)
        gradients = [
            torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) if t is not None and want else None
            for t, want in zip((features_ND, weight_VD, bias_V), wanted, strict=True)
        ]
        sums_S = features_ND.new_zeros(len(scores), dtype=torch.promote_types(features_ND.dtype, torch.float32))
        size = chunk_rows(weight_VD.shape[0])
        for first in range(0, len(features_ND), size):
            rows = slice(first, min(first + size, len(features_ND)))
            chunk_CD = features_ND[rows].detach()
            with torch.enable_grad():
                product_CV = head.product(chunk_CD, used_VD.detach()).detach().requires_grad_(any(wanted))
                logits_CV = head.finish(product_CV)
                found_S = torch.stack([score(logits_CV, rows).sum() for score in scores])
                total = sum((w * f for w, f in zip(weights, found_S, strict=True)), found_S.new_zeros(()))
            sums_S += found_S.detach()
            if any(wanted):
                (slope_CV,) = torch.autograd.grad(total, product_CV)
                _accumulate(gradients, rows, slope_CV, chunk_CD, used_VD)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = tuple(t.dtype if t is not None else None for t in (features_ND, weight_VD, bias_V))
        ctx.mark_non_differentiable(sums_S)
        return (sums_S * sums_S.new_tensor(weights)).sum(), sums_S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = (
            None if g is None else (g * upstream).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*found, None, None, None)


def _accumulate(
    gradients: list[Tensor | None], rows: slice, slope_CV: Tensor, chunk_CD: Tensor, weight_VD: Tensor
) -> None:
    """Add one chunk's part to the gradients of features, weight and bias."""
    features_ND, head_VD, bias_V = gradients
    cast_CV = slope_CV.to(weight_VD.dtype)
    if features_ND is not None:
        features_ND[rows] = cast_CV @ weight_VD
    if head_VD is not None:
        head_VD += cast_CV.T @ chunk_CD.to(weight_VD.dtype)
    if bias_V is not None:
        bias_V += slope_CV.sum(0)
