"""The axes of a grown model, by the rule after which it grows wider.

pad      every old unit stays and new ones say nothing yet: their numbers are free on one side and nothing on the other
tile     every unit is copied as often as fits, and what reads it is shared out among the copies, unequally
copies   each new unit is a copy of a random old one, shared out equally: bert2BERT's FPI (2110.07143) as ELLE uses it
random   every old unit stays and new ones are random on both sides
fade     pad, but new channels of the stream are random on both sides, and norms learn of them little by little (fade.py)

The first two keep the function, fade does while it trains. Norms over a wider stream see other statistics; with k copies of
D channels among D' the writers are divided and the norms' gains multiplied by sqrt(k D / D'), so that norms keep the epsilon
that they share.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .axis import NEW, ZERO, Axis, NewSlots, axis
from .family import Family, Sizes

Width = Literal["pad", "tile", "copies", "random", "fade"]
DRAWN = ("tile", "copies")
"""Where each block's axes are drawn anew; elsewhere all blocks grow alike."""
UNEVEN = 0.2
"""How far the shares of copies are apart: equal ones would get equal gradients and stay equal for ever."""


def stream_axes(
    old: Sizes, new: Sizes, width: Width, family: Family, tied: bool, draw: torch.Generator
) -> dict[str, Axis]:
    """The axes along the residual stream. They are one and the same in all blocks."""
    whole = new.hidden // old.hidden * old.hidden if width == "tile" else new.hidden
    source_I = torch.full((new.hidden,), NEW)
    source_I[:whole] = _units(old.hidden, whole, width, draw)
    share_I = _shares(source_I, width, draw)
    exact = width in ("pad", "tile")
    kept = whole if width == "tile" else old.hidden
    eta = math.sqrt(kept / new.hidden) if exact else 1.0
    rest: NewSlots = (
        "free" if width in ("random", "fade") else "mean" if family.layer_norm and not family.post else "zero"
    )
    of = partial(axis, old.hidden, source_I)
    return {
        "hidden": of(1 / eta, eta * share_I, rest),
        "stream": of(share_I, 1.0, "free"),
        "gain": of(eta, share_I / eta, "mean"),
        "shift": of(1.0, share_I, "zero"),
        "features": of(1.0, share_I, "free"),
        # A tied output matrix is the embeddings: what it would have to be divided by, the norm before it is.
        "final": of(share_I * eta**2, 1 / eta**2, "mean") if tied else of(eta, share_I / eta, "mean"),
        "final_shift": of(share_I * eta, 1 / eta, "zero") if tied else of(1.0, share_I, "zero"),
        "readout": of(share_I, 1.0, "free"),
    }


def block_axes(old: Sizes, new: Sizes, width: Width, rotary: bool, draw: torch.Generator) -> dict[str, Axis]:
    """The axes inside one block: heads and feed-forward."""
    silent: NewSlots = "free" if width == "random" else "zero"
    units_F = _units(old.feed_forward, new.feed_forward, width, draw)
    share_F = _shares(units_F, width, draw)
    inside = {
        "inner": axis(old.feed_forward, units_F, 1.0, share_F),
        "outer": axis(old.feed_forward, units_F, share_F, 1.0, silent),
    }
    return inside | _attention(old, new, width, rotary, draw, silent)


def _attention(
    old: Sizes, new: Sizes, width: Width, rotary: bool, draw: torch.Generator, silent: NewSlots
) -> dict[str, Axis]:
    """New query heads go inside the groups that share a key-value head, new groups behind the old ones."""
    inside, inside_new = old.heads // old.kv_heads, new.heads // new.kv_heads
    group_G, head_g = (_units(a, e, width, draw) for a, e in ((old.kv_heads, new.kv_heads), (inside, inside_new)))
    share_G, share_g = _shares(group_G, width, draw), _shares(head_g, width, draw)
    channel_h = _channels(old.head_dim, new.head_dim, rotary)
    share_H = (share_G[:, None] * share_g).flatten()
    share_HI, share_GI = share_H.repeat_interleave(new.head_dim), share_G.repeat_interleave(new.head_dim)
    query_H = torch.where((group_G[:, None] < 0) | (head_g < 0), NEW, group_G[:, None] * inside + head_g).flatten()
    query_I, value_I = (_with_channels(units, channel_h, old.head_dim, NEW) for units in (query_H, group_G))
    key_I = _with_channels(group_G, channel_h, old.head_dim, ZERO)
    scale = math.sqrt(new.head_dim / old.head_dim)  # scores are divided by the root of a head's channels
    queries, groups = old.heads * old.head_dim, old.kv_heads * old.head_dim
    return {
        "query": axis(queries, query_I, 1.0, share_HI),
        "key": axis(groups, key_I, scale, share_GI / scale),
        "value": axis(groups, value_I, 1.0, share_GI),
        "mixed": axis(queries, query_I, share_HI, 1.0, silent),
    }


def _units(old: int, new: int, width: Width, draw: torch.Generator) -> Tensor:
    """Which old unit each new one is."""
    own = torch.arange(new)
    match width:
        case "tile":
            return own % old
        case "copies":
            return torch.where(own < old, own, torch.randint(old, (new,), generator=draw))
    return torch.where(own < old, own, NEW)


def _shares(source_I: Tensor, width: Width, draw: torch.Generator) -> Tensor:
    """What each copy counts for whoever reads it; together the copies of one unit count 1."""
    raw_I = torch.ones(len(source_I), dtype=torch.float64)
    if width == "tile":
        raw_I += UNEVEN * (2 * torch.rand(len(source_I), generator=draw, dtype=torch.float64) - 1)
    copied_I = source_I >= 0
    whole = torch.zeros(int(source_I.max()) + 1, dtype=torch.float64)
    whole.index_add_(0, source_I[copied_I], raw_I[copied_I])
    raw_I[copied_I] /= whole[source_I[copied_I]]
    return torch.where(copied_I, raw_I, 1.0)


def _channels(old: int, new: int, rotary: bool) -> Tensor:
    """Which old channel of a head each new one is. Rotary positions turn channel i with i + half, at a speed that i sets."""
    found = torch.full((new,), NEW)
    if rotary:
        times, half = new // old, old // 2
        found[0 : times * half : times] = torch.arange(half)
        found[new // 2 : new // 2 + times * half : times] = torch.arange(half, old)
    else:
        found[:old] = torch.arange(old)
    return found


def _with_channels(unit_U: Tensor, channel_h: Tensor, old: int, absent: int) -> Tensor:
    """The old slot of each unit's each channel; `absent` where an old unit has got a new channel."""
    found_Uh = torch.where(channel_h < 0, absent, unit_U[:, None] * old + channel_h)
    return torch.where(unit_U[:, None] < 0, NEW, found_Uh).flatten()
