"""Document borders for transformers models: attention stays inside a document, positions restart with it.

Measured with transformers 5.23: additive float masks are right in every family and attention kind; boolean ones are
silently wrong under eager attention; restarted positions alone suffice only for causal models.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def additive(segments_BT: Tensor, causal: bool, dtype: torch.dtype) -> Tensor:
    """Mask [B, 1, T, T]: 0 where a position may look, the dtype's smallest number elsewhere."""
    length = segments_BT.shape[1]
    seen = segments_BT[:, :, None] == segments_BT[:, None, :]
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=segments_BT.device).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments_BT.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def blocks(segments_BT: Tensor, causal: bool) -> BlockMask:
    """The same for FlexAttention: which blocks of the T x T products to make at all, and what to hide inside of them."""

    def seen(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = segments_BT[sequence, query] == segments_BT[sequence, key]
        return same & (query >= key) if causal else same

    count, length = segments_BT.shape
    found = create_block_mask(seen, count, None, length, length, device=segments_BT.device)
    found.ndim = 4  # type: ignore[attr-defined]  # GPT-2 asks every mask
    return found


def positions(segments_BT: Tensor) -> Tensor:
    """Position of each token inside its document (or the part of it that this sequence holds)."""
    length = segments_BT.shape[1]
    count_T = torch.arange(length, device=segments_BT.device)
    starts = torch.ones_like(segments_BT, dtype=torch.bool)
    starts[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    began_BT = torch.where(starts, count_T, 0).cummax(dim=1).values
    return count_T - began_BT
