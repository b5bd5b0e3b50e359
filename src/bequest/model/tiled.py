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


def largest(logits_CV: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The K largest logits of each row, in descending order, and their ids; exact."""
    vocabulary = logits_CV.shape[1]
    block = min(BLOCK, 1 << max(0, (vocabulary // (4 * keep)).bit_length() - 1))
    if block == 1:
        found = logits_CV.topk(keep, dim=-1)
        return found.values, found.indices
    whole = vocabulary // block * block
    maxima = logits_CV[:, :whole].view(len(logits_CV), whole // block, block).amax(-1)
    ids = maxima.topk(keep, dim=-1).indices[..., None] * block + torch.arange(block, device=logits_CV.device)
    remaining = torch.arange(whole, vocabulary, device=logits_CV.device).expand(len(logits_CV), -1)
    ids = torch.cat([ids.flatten(1), remaining], 1)
    found = logits_CV.gather(1, ids).topk(keep, dim=-1)
    return found.values, ids.gather(1, found.indices)


def draw(mass_CV: Tensor, uniform_Cn: Tensor) -> Tensor:
    """Ids drawn with probabilities in proportion to `mass_CV`, one for each uniform number (0 to 1, float64)."""
    vocabulary = mass_CV.shape[1]
    padded_CV = torch.nn.functional.pad(mass_CV, (0, -vocabulary % BLOCK)) if vocabulary % BLOCK else mass_CV
    blocks = padded_CV.view(len(mass_CV), padded_CV.shape[1] // BLOCK, BLOCK)
    ends = blocks.sum(-1, dtype=torch.float32).double().cumsum(-1)
    wanted_Cn = uniform_Cn * ends[:, -1:]
    block_Cn = torch.searchsorted(ends, wanted_Cn, right=True).clamp_max(ends.shape[1] - 1)
    begun_Cn = torch.where(block_Cn > 0, ends.gather(1, (block_Cn - 1).clamp_min(0)), 0.0)
    rows = torch.arange(len(mass_CV), device=mass_CV.device)[:, None]
    inside = blocks[rows, block_Cn].double().cumsum(-1)
    place_Cn = (inside <= (wanted_Cn - begun_Cn)[..., None]).sum(-1)
    # Rounding may leave a number behind its block's end: the block's last id that has mass.
    last_Cn = (inside < inside[..., -1:]).sum(-1)
    return block_Cn * BLOCK + torch.minimum(place_Cn, last_Cn)
