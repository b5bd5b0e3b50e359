"""Which old block each block of a deeper model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Depth = Literal["identity", "stack", "interpolate", "repeat", "copies"]


@dataclass(frozen=True)
class Block:
    """A block of the deeper model."""

    source: int
    """The old block that it is a copy of."""
    silent: bool = False
    """Whether it adds nothing yet to the stream."""


def blocks(old: int, new: int, depth: Depth, draw: torch.Generator) -> list[Block]:
    """The blocks of a model that is to have `new` of them.

    identity     new ones add nothing yet; they are spread evenly (LLaMA Pro, 2401.02415)
    stack        the whole once more on top of itself (StackBERT; G_stack, 2405.15319)
    interpolate  each once more behind itself
    repeat       the last one again and again (Lee et al. 2023)
    copies       random ones once more behind themselves, each once before any twice (ELLE's)
    """
    match depth:
        case "stack":
            return [Block(n % old) for n in range(new)]
        case "interpolate":
            return [Block(n * old // new) for n in range(new)]
        case "repeat":
            return [Block(min(n, old - 1)) for n in range(new)]
        case "copies":
            rounds = -(-(new - old) // old)
            drawn = torch.cat([torch.randperm(old, generator=draw) for _ in range(rounds)] or [torch.arange(0)])
            return [Block(n) for n in sorted([*range(old), *drawn[: new - old].tolist()])]
    found: list[Block] = []
    for n in range(old):
        more = (n + 1) * (new - old) // old - n * (new - old) // old
        found += [Block(n), *[Block(n, silent=True)] * more]
    return found
