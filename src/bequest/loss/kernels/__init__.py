"""Cross-entropy and a divergence on a chunk of logits, with their gradient in closed form instead of by autograd.

With respect to the logits the gradient of both together is a row constant times the student's softmax, and corrections
at the kept ids and the target: element by element it costs what cross-entropy alone costs. `chunked` says it in PyTorch
for every device, `cuda` in Triton. Both are tested against autograd on `terms`, in float64.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ...model.language import Head
from . import chunked
from .pair import Pair

MOST_KEPT = 4096
"""Kept ids of a row, in Triton."""


def slope_(product_CV: Tensor, head: Head, pair: Pair) -> tuple[Tensor | None, Tensor | None]:
    """Cross-entropy and divergence of each row, unweighted; their weighted gradient takes the place of `product_CV`.

    `product_CV` is features x head weight, before bias, scale and soft-cap. A half without weight has no loss.
    """
    if _in_triton(product_CV, pair):
        from . import cuda

        return cuda.slope_(product_CV, head, pair)
    return chunked.slope_(product_CV, head, pair)


def _in_triton(product_CV: Tensor, pair: Pair) -> bool:
    """There sums are fp32, which is no float64, and kept ids fill registers, which hold no whole vocabulary of them."""
    ids_CK = None if pair.signal_C is None else pair.signal_C.ids_NK
    if not product_CV.is_cuda or product_CV.dtype == torch.float64 or not importlib.util.find_spec("triton"):
        return False
    return ids_CK is None or ids_CK.shape[1] <= MOST_KEPT
