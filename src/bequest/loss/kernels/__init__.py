"""Cross-entropy and a divergence on a chunk of logits, with their gradient in closed form instead of by autograd.

With respect to the logits the gradient of both together is a row constant times the student's softmax, and corrections
at the kept ids and the target: element by element it costs what cross-entropy alone costs. `chunked` says it in PyTorch
for every device, `cuda` in Triton. Both are tested against autograd on `terms`, in float64.
"""

from __future__ import annotations

import importlib.util

from torch import Tensor

from ...model.language import Head
from . import chunked
from .pair import Pair


def slope_(product_CV: Tensor, head: Head, pair: Pair) -> tuple[Tensor | None, Tensor | None]:
    """Cross-entropy and divergence of each row, unweighted; their weighted gradient takes the place of `product_CV`.

    `product_CV` is features x head weight, before bias, scale and soft-cap. A half without weight has no loss.
    """
    if product_CV.is_cuda and importlib.util.find_spec("triton"):
        from . import cuda

        return cuda.slope_(product_CV, head, pair)
    return chunked.slope_(product_CV, head, pair)
