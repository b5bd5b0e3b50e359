"""What is known of each row before it is learned from: chunk by chunk, without gradient, in one more pass through the head."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..model.language import Head
from ..model.tiled import rows_at_once
from ..types import Answer, Batch, RecipeError

Criterion = Callable[[Tensor], Tensor]
"""How unsure rows of logits are, [C, V] -> [C]."""


def entropy(logits_CV: Tensor) -> Tensor:
    """Over log V: 1 is as unsure as can be (Li et al. 2021, arXiv 2109.11295)."""
    logp_CV = logits_CV.log_softmax(-1)
    return -(logp_CV.exp() * logp_CV).sum(-1) / math.log(logits_CV.shape[1])


def margin(logits_CV: Tensor) -> Tensor:
    """1 less the distance of the two likeliest."""
    first, second = logits_CV.softmax(-1).topk(2, -1).values.unbind(-1)
    return 1.0 - (first - second)


def confidence(logits_CV: Tensor) -> Tensor:
    """1 less the likeliest's probability."""
    return 1.0 - logits_CV.softmax(-1).amax(-1)


CRITERIA: dict[str, Criterion] = {"entropy": entropy, "margin": margin, "confidence": confidence}


def losses(features_ND: Tensor, head: Head, target_N: Tensor) -> Tensor:
    """Cross-entropy of each row in nats, [N]."""
    return head.over(features_ND, lambda z, rows: nn.functional.cross_entropy(z, target_N[rows], reduction="none"))


def told(answer: Answer, target_N: Tensor, vocabulary: int) -> Tensor:
    """Log-probability that a predecessor gives to each row's token, [N]."""
    step = rows_at_once(vocabulary, target_N.device.type)
    found = []
    for first in range(0, max(1, len(target_N)), step):
        rows = slice(first, first + step)
        signal = answer[rows]
        if signal.logp_target_N is None:
            if signal.ids_NK is not None:
                raise RecipeError(
                    "a reference must know every token, and this one keeps its likeliest; leave its keep out"
                )
            found.append(signal.logp_NK.gather(1, target_N[rows, None])[:, 0])
        else:
            found.append(signal.logp_target_N)
    return torch.cat(found)


def head_flops(head: Head, rows: int) -> float:
    """Of one pass through the head."""
    return float(2 * head.weight_VD.numel() * rows)


def sequence_of(batch: Batch) -> Tensor:
    """The number of each row's sequence, [N]."""
    return batch.rows.index_N // batch.tokens_BT.shape[1]


def chance(keys: Iterable[bytes], *parts: Any) -> list[float]:
    """A number in 0 to 1 for each sequence, the same wherever it comes in a batch."""
    found = (hashlib.blake2b(key + repr(parts).encode(), digest_size=7).digest() for key in keys)
    return [int.from_bytes(one, "little") / 2**56 for one in found]
