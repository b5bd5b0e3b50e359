"""Features -> loss, a chunk of rows at a time: N x V logits are never held, and the gradient is made in the same pass.

Each chunk costs the three matrix products that cross-entropy alone costs (logits, features' gradient, weight's gradient),
whatever the number of terms. For next_token, a divergence or both the gradient between them is a closed form (`kernels`),
for anything else autograd's on the chunk's logits. The head's gradient is summed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..model.language import Head
from ..types import Answer, Chunk, Clock, Term
from .kernels import slope_
from .kernels.pair import Pair
from .terms import Divergence, next_token

MOST_ROWS = 4096
BLOCK = 1024
"""Ids whose weight's gradient is made at once: small enough for a CPU's cache."""


@dataclass(frozen=True)
class Addend:
    """One term of a weighted sum over rows, and what its teacher says about them."""

    term: Term
    weight: float | Tensor
    """Of every row, or of each [N]; with the divisor of the mean in it."""
    answer: Answer | None = None

    def weights(self, like_N: Tensor) -> Tensor:
        """Of each row, [N]."""
        return (torch.zeros_like(like_N) + self.weight).to(like_N.dtype)


def chunk_bytes(device: torch.device) -> int:
    """The size of a chunk of logits. From the device's memory in all, not from what is free: bits must not depend on that."""
    if device.type != "cuda":
        return 64 << 20
    return min(1 << 30, int(torch.cuda.get_device_properties(device).total_memory) // 128)


def chunk_rows(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows per chunk."""
    return max(16, min(MOST_ROWS, chunk_bytes(device) // (dtype.itemsize * vocabulary)))


def project(
    features_ND: Tensor, head: Head, target_N: Tensor, addends: Sequence[Addend], clock: Clock
) -> tuple[Tensor, Tensor]:
    """The weighted sum over all rows and addends, and each addend's own sum [S] without gradient; fp32 scalars.

    Rows with a negative target count for nothing; what is said about them must still be numbers. The gradient flows to
    the features and to the head's weight and bias, once: it cannot be differentiated twice or asked for again, and weights
    that vary with the rows are given here, not multiplied on later.
    """
    tensors: tuple[Tensor | None, ...] = (features_ND, head.weight_VD, head.bias_V)
    if not torch.is_grad_enabled():  # autograd would still say that parameters want a gradient
        tensors = tuple(t if t is None else t.detach() for t in tensors)
    total, sums_S = _Project.apply(*tensors, head, target_N, tuple(addends), clock)  # type: ignore[no-untyped-call]
    return total, sums_S


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        target_N: Tensor,
        addends: tuple[Addend, ...],
        clock: Clock,
    ) -> tuple[Tensor, Tensor]:
        head = replace(head, weight_VD=weight_VD.to(head.dtype(features_ND)), bias_V=bias_V)
        wide = torch.promote_types(head.weight_VD.dtype, torch.float32)
        wanted = ctx.needs_input_grad[:3]
        gradients = (
            torch.empty_like(features_ND) if wanted[0] else None,
            (torch.empty_like if len(features_ND) else torch.zeros_like)(weight_VD, dtype=wide) if wanted[1] else None,
            torch.zeros_like(bias_V, dtype=wide) if bias_V is not None and wanted[2] else None,
        )
        learned_N, target_N = target_N >= 0, target_N.clamp_min(0)
        weights_SN = [a.weights(learned_N.to(wide)) * learned_N for a in addends]
        total = features_ND.new_zeros((), dtype=wide)
        sums_S = features_ND.new_zeros(len(addends), dtype=wide)
        for rows, chunk_CD, product_CV in _chunks(features_ND, head):
            weights_SC = [weight_N[rows] for weight_N in weights_SN]
            losses_SC = _losses_(product_CV, head, target_N, rows, addends, weights_SC if any(wanted) else None, clock)
            if any(wanted):
                _accumulate(gradients, rows, product_CV, chunk_CD, head.weight_VD)
            found_S = [loss_C.masked_fill(~learned_N[rows], 0.0) for loss_C in losses_SC]
            total += sum((f * w).sum() for f, w in zip(found_S, weights_SC, strict=True))
            sums_S += torch.stack([f.sum() for f in found_S])
        ctx.gradients = gradients
        ctx.dtypes = [None if t is None else t.dtype for t in (features_ND, weight_VD, bias_V)]
        ctx.mark_non_differentiable(sums_S)
        return total, sums_S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the gradient was made in the forward pass, and it has been taken"
        found = (None if g is None else g.mul_(upstream).to(d) for g, d in zip(gradients, ctx.dtypes, strict=True))
        return (*found, None, None, None, None)


def _chunks(features_ND: Tensor, head: Head) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, their features in the precision of the matrix product, and the product; all products share one buffer."""
    vocabulary, dtype = len(head.weight_VD), head.weight_VD.dtype
    size = min(chunk_rows(vocabulary, dtype, features_ND.device), max(1, len(features_ND)))
    # On a GPU rows begin where whole words can be loaded.
    stride = vocabulary if features_ND.device.type == "cpu" else -(-vocabulary // 64) * 64
    buffer_CV = features_ND.new_empty(size, stride, dtype=dtype)[:, :vocabulary]
    for first in range(0, len(features_ND), size):
        rows = slice(first, min(first + size, len(features_ND)))
        chunk_CD = features_ND[rows].detach().to(dtype)
        yield rows, chunk_CD, torch.mm(chunk_CD, head.weight_VD.detach().T, out=buffer_CV[: len(chunk_CD)])


def _losses_(
    product_CV: Tensor,
    head: Head,
    target_N: Tensor,
    rows: slice,
    addends: Sequence[Addend],
    weights_SC: Sequence[Tensor] | None,
    clock: Clock,
) -> list[Tensor]:
    """Each addend's loss of each of these rows; with weights, their gradient takes the place of the product."""
    chunks = [Chunk(target_N[rows], None if a.answer is None else a.answer[rows]) for a in addends]
    if weights_SC is None:
        logits_CV = head.finish(product_CV)
        return [a.term(logits_CV, chunk, clock) for a, chunk in zip(addends, chunks, strict=True)]
    if _common(addends):
        return _closed_(product_CV, head, addends, chunks, weights_SC)
    return _differentiated_(product_CV, head, addends, chunks, weights_SC, clock)


def _common(addends: Sequence[Addend]) -> bool:
    """Whether the kernels know the gradient: of next_token, a divergence, or one of each."""
    kinds = [Divergence if isinstance(a.term, Divergence) else a.term for a in addends]
    return len(set(kinds)) == len(kinds) and set(kinds) <= {next_token, Divergence}


def _closed_(
    product_CV: Tensor, head: Head, addends: Sequence[Addend], chunks: Sequence[Chunk], weights_SC: Sequence[Tensor]
) -> list[Tensor]:
    """The losses; the product becomes its gradient, by the kernels."""
    pair = Pair(chunks[0].target_C, None)
    for addend, chunk, weight_C in zip(addends, chunks, weights_SC, strict=True):
        if isinstance(addend.term, Divergence):
            told_C, temperature = weight_C * addend.term.factor, addend.term.temperature
            pair = replace(pair, told_C=told_C, signal_C=chunk.signal_C, temperature=temperature)
        else:
            pair = replace(pair, gold_C=weight_C)
    cross_C, divergence_C = slope_(product_CV, head, pair)
    losses_SC = []
    for addend in addends:
        factor = addend.term.factor if isinstance(addend.term, Divergence) else None
        loss_C = cross_C if factor is None else divergence_C
        assert loss_C is not None
        losses_SC.append(loss_C if factor is None else factor * loss_C)
    return losses_SC


def _differentiated_(
    product_CV: Tensor,
    head: Head,
    addends: Sequence[Addend],
    chunks: Sequence[Chunk],
    weights_SC: Sequence[Tensor],
    clock: Clock,
) -> list[Tensor]:
    """The losses; the product becomes its gradient, by autograd."""
    with torch.enable_grad():
        leaf_CV = product_CV.detach().requires_grad_()
        logits_CV = head.finish(leaf_CV)
        losses_SC = [a.term(logits_CV, chunk, clock) for a, chunk in zip(addends, chunks, strict=True)]
        total = torch.stack([(loss * w).sum() for loss, w in zip(losses_SC, weights_SC, strict=True)]).sum()
        (slope_CV,) = torch.autograd.grad(total, leaf_CV)
    product_CV.copy_(slope_CV)
    return [loss_C.detach() for loss_C in losses_SC]


def _accumulate(
    gradients: Sequence[Tensor | None], rows: slice, slope_CV: Tensor, chunk_CD: Tensor, weight_VD: Tensor
) -> None:
    """Write one chunk's part of the features' gradient, add its part to those of weight and bias."""
    features_ND, head_VD, bias_V = gradients
    if features_ND is not None:
        features_ND[rows] = slope_CV @ weight_VD
    if bias_V is not None:
        bias_V += slope_CV.sum(0, dtype=bias_V.dtype)
    if head_VD is None:
        return
    begun = int(rows.start > 0)  # what is not begun holds no numbers yet
    if head_VD.dtype == slope_CV.dtype:
        torch.addmm(head_VD, slope_CV.T, chunk_CD, beta=begun, out=head_VD)
        return
    block = BLOCK if slope_CV.device.type == "cpu" else 16 * BLOCK
    for first in range(0, len(head_VD), block):
        ids = slice(first, first + block)
        part_VD = slope_CV[:, ids].T @ chunk_CD
        head_VD[ids].add_(part_VD) if begun else head_VD[ids].copy_(part_VD)
