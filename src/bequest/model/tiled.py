"""What is wanted of a chunk of logits over a large vocabulary, without sorting or summing up all of it one by one.

The vocabulary is cut into blocks: the K largest logits lie in the K blocks with the largest maxima, and a draw first
chooses a block by its mass and then an id in it. N x V numbers are never held: callers come with chunks of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64


def rows_at_once(vocabulary: int, device: str) -> int:
    """Rows of a chunk: on a CPU small enough that the allocator gives the same pages again, on a GPU large."""
    budget = 16 << 20 if device == "cpu" else 256 << 20
    return max(16, budget // (4 * vocabulary))


def rows_in_cache(vocabulary: int, device: str) -> int:
    """Rows that several element-wise passes go over at once: on a CPU they stay in its cache."""
    return max(4, (4 << 20) // (4 * vocabulary)) if device == "cpu" else rows_at_once(vocabulary, device)


def largest(logits_CV: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The K largest logits of each row, in descending order, and their ids; exact."""
    vocabulary = logits_CV.shape[1]
    block = min(BLOCK, 1 << max(0, (vocabulary // (4 * keep)).bit_length() - 1))
    if block == 1:
        found = logits_CV.topk(keep, dim=-1)
        return found.values, found.indices
    whole = vocabulary // block * block
    maxima = logits_CV[:, :whole].view(len(logits_CV), -1, block).amax(-1)
    ids = maxima.topk(keep, dim=-1).indices[..., None] * block + torch.arange(block, device=logits_CV.device)
    remaining = torch.arange(whole, vocabulary, device=logits_CV.device).expand(len(logits_CV), -1)
    ids = torch.cat([ids.flatten(1), remaining], 1)
    found = logits_CV.gather(1, ids).topk(keep, dim=-1)
    return found.values, ids.gather(1, found.indices)


def draw(mass_CV: Tensor, uniform_Cn: Tensor) -> Tensor:
    """Ids drawn with probabilities in proportion to `mass_CV`, one for each uniform number (0 to 1, float64)."""
    vocabulary = mass_CV.shape[1]
    if vocabulary <= BLOCK * uniform_Cn.shape[1]:  # the blocks drawn from would be larger than the whole
        return _place(mass_CV.double().cumsum(-1), uniform_Cn)
    whole = vocabulary // BLOCK * BLOCK
    blocks, tail = mass_CV[:, :whole].view(len(mass_CV), -1, BLOCK), mass_CV[:, None, whole:]
    tail = torch.nn.functional.pad(tail, (0, whole + BLOCK - vocabulary))
    ends = torch.cat([blocks.sum(-1, dtype=torch.float32), tail.sum(-1, dtype=torch.float32)], 1).double().cumsum(-1)
    wanted_Cn = uniform_Cn * ends[:, -1:]
    block_Cn = torch.searchsorted(ends, wanted_Cn, right=True).clamp_max(ends.shape[1] - 1)
    begun_Cn = torch.where(block_Cn > 0, ends.gather(1, (block_Cn - 1).clamp_min(0)), 0.0)
    rows = torch.arange(len(mass_CV), device=mass_CV.device)[:, None]
    last = len(blocks[0])
    drawn = torch.where((block_Cn == last)[..., None], tail, blocks[rows, block_Cn.clamp_max(last - 1)])
    inside = drawn.double().cumsum(-1)
    place_Cn = (inside <= (wanted_Cn - begun_Cn)[..., None]).sum(-1)
    # Rounding may leave a number behind its block's end: the block's last id that has mass.
    last_Cn = (inside < inside[..., -1:]).sum(-1)
    return block_Cn * BLOCK + torch.minimum(place_Cn, last_Cn)


def _place(ends_CV: Tensor, uniform_Cn: Tensor) -> Tensor:
    """The first id whose end lies beyond its share of the whole; never one without mass."""
    found_Cn = torch.searchsorted(ends_CV, uniform_Cn * ends_CV[:, -1:], right=True)
    return torch.minimum(found_Cn, (ends_CV < ends_CV[:, -1:]).sum(-1, keepdim=True))
