"""Attention on a CPU: matrix products over tiles of queries, with the keys that come later left out. On a GPU FlexAttention.

PyTorch's fused kernel takes 29 % of a step on a CPU for 6 % of its operations (LOG.md, "The step"); the products of
whole tiles run at the speed of any other. Probabilities are kept for the backward pass, T x T / 2 of each head.
Registered with transformers under `NAME`; what this is not made for (a GPU, dropout, a cache, values of
another width) goes to `sdpa`. A mask may hide more than causality does, not less.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "cpu_tiles"
TILE = 64
"""Queries at once."""


@cache
def compiled_flex() -> Any:
    """Not compiled, it would hold all T x T products. Made when first asked: the compiler takes a second to import."""
    return torch.compile(flex_attention, dynamic=False)


def attend(
    module: Any,
    query_BHTd: Tensor,
    key_BGTd: Tensor,
    value_BGTd: Tensor,
    attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: [B, H, T, d] and a mask (additive or of blocks) or none -> [B, T, H, d]."""
    if isinstance(attention_mask, BlockMask):
        assert not dropout, "FlexAttention has no dropout"
        query, key, value = (_cast(t) for t in (query_BHTd, key_BGTd, value_BGTd))
        grouped = query.shape[1] != key.shape[1]
        out_BHTd = compiled_flex()(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=grouped)
        return out_BHTd.transpose(1, 2), None
    unusual = dropout or query_BHTd.device.type != "cpu"
    if (
        unusual
        or query_BHTd.shape[2:] != key_BGTd.shape[2:]
        or key_BGTd.shape != value_BGTd.shape
        or (attention_mask is not None and not attention_mask.is_floating_point())
    ):
        return sdpa_attention_forward(
            module, query_BHTd, key_BGTd, value_BGTd, attention_mask, dropout, scaling, is_causal, **others
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scaling = query_BHTd.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (_cast(t).contiguous() for t in (query_BHTd * scaling, key_BGTd, value_BGTd))
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    out_BTHd, *_ = _tiled(query, key, value, attention_mask, bool(causal), learning)
    return out_BTHd, None


def _cast(tensor: Tensor) -> Tensor:
    """To the precision that autocast asks for: what it knows nothing of has to do it by itself."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


# Operators of their own: a compiler takes them as they are instead of unrolling their loops.


@torch.library.custom_op("bequest::tiled_attention", mutates_args=())
def _tiled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, keep: bool) -> list[Tensor]:
    """Out [B, T, H, d]; to keep for the backward pass the probabilities of each tile of queries [B G, H / G tile, keys].

    G key-value heads serve H / G query heads each.
    """
    B, H, T, d = query.shape
    G = key.shape[1]
    key, value, query = key.reshape(B * G, T, d), value.reshape(B * G, T, d), query.reshape(B * G, H // G, T, d)
    out_BTHd = query.new_empty(B, T, H, d)
    later = torch.full((TILE, TILE), -torch.inf, dtype=query.dtype).triu_(1)
    tiles = []
    for a, e, seen in _tiles(T, causal):
        score = torch.bmm(query[:, :, a:e].reshape(B * G, -1, d), key[:, :seen].transpose(1, 2))
        if mask is not None:
            score.view(B, H, e - a, seen).add_(mask[:, :, a:e, :seen])
        elif causal:
            score.view(B, H, e - a, seen)[..., a:e].add_(later[: e - a, : e - a])
        p = score.softmax(-1)
        out_BTHd[:, a:e] = torch.bmm(p, value[:, :seen]).view(B, H, e - a, d).transpose(1, 2)
        tiles += [p] if keep else []
    return [out_BTHd, *tiles]


@torch.library.custom_op("bequest::tiled_attention_slopes", mutates_args=())
def _slopes(
    slope_BTHd: Tensor, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tensor], causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to query, key and value."""
    B, H, T, d = query.shape
    G = key.shape[1]
    shapes = query.shape, key.shape, value.shape
    key, value, query = key.reshape(B * G, T, d), value.reshape(B * G, T, d), query.reshape(B * G, H // G, T, d)
    to_query, to_key, to_value = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)
    )
    for p, (a, e, seen) in reversed(list(zip(tiles, _tiles(T, causal), strict=True))):
        slope = slope_BTHd[:, a:e].transpose(1, 2).reshape(B * G, -1, d).to(p.dtype)
        tile = query[:, :, a:e].reshape(B * G, -1, d)
        through = torch.bmm(slope, value[:, :seen].transpose(1, 2))
        to_score = torch._softmax_backward_data(through, p, -1, p.dtype)
        to_query[:, :, a:e] = torch.bmm(to_score, key[:, :seen]).view(B * G, H // G, e - a, d)
        parts = torch.bmm(to_score.transpose(1, 2), tile), torch.bmm(p.transpose(1, 2), slope)
        for total, part in zip((to_key, to_value), parts, strict=True):  # the last tile sees every key: it comes first
            total[:, :seen].copy_(part) if e == T else total[:, :seen].add_(part)
    return to_query.view(shapes[0]), to_key.view(shapes[1]), to_value.view(shapes[2])


def _tiles(length: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """First and last + 1 of each tile of queries, and how many keys it sees."""
    for first in range(0, length, TILE):
        end = min(first + TILE, length)
        yield first, end, end if causal else length


@_tiled.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, keep: bool) -> list[Tensor]:
    B, H, T, d = query.shape
    G = key.shape[1]
    tiles = [query.new_empty(B * G, H // G * (e - a), seen) for a, e, seen in _tiles(T, causal)]
    return [query.new_empty(B, T, H, d), *(tiles if keep else [])]


@_slopes.register_fake
def _(
    slope_BTHd: Tensor, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tensor], causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    query, key, value, _, ctx.causal, _ = inputs
    ctx.save_for_backward(query, key, value, *output[1:])


def _backward(ctx: Any, slopes: list[Tensor]) -> tuple[Tensor | None, ...]:
    query, key, value, *tiles = ctx.saved_tensors
    return (*_slopes(slopes[0], query, key, value, tiles, ctx.causal), None, None, None)


_tiled.register_autograd(_backward, setup_context=_keep)
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
