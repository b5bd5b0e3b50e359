"""Attention on a CPU: matrix products over tiles of queries, with the keys that come later left out.

PyTorch's fused kernel takes 29 % of a step on a CPU for 6 % of its operations (LOG.md, "The step"); the products of
whole tiles run at the speed of any other. Probabilities are kept for the backward pass, T x T / 2 of each head.
Registered with transformers under `NAME`; what this is not made for (a GPU, dropout, a cache, sinks) goes to `sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "tiled"
TILE = 64
"""Queries at once."""


def attend(
    module: Any,
    query_BHTd: Tensor,
    key_BGTd: Tensor,
    value_BGTd: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: [B, H, T, d] and an additive mask or none -> [B, T, H, d]."""
    unusual = dropout or query_BHTd.shape[2] != key_BGTd.shape[2] or query_BHTd.device.type != "cpu"
    if unusual or (attention_mask is not None and not attention_mask.is_floating_point()):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query_BHTd, key_BGTd, value_BGTd, attention_mask, dropout, scaling, is_causal, **others
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query_BHTd.dtype
    scaling = query_BHTd.shape[-1] ** -0.5 if scaling is None else scaling
    out_BTHd: Tensor = _Tiled.apply(  # type: ignore[no-untyped-call]
        (query_BHTd * scaling).to(dtype), key_BGTd.to(dtype), value_BGTd.to(dtype), attention_mask, bool(causal)
    )
    return out_BTHd, None


class _Tiled(torch.autograd.Function):
    """Softmax of products, tile by tile; G key-value heads serve H / G query heads each."""

    @staticmethod
    def forward(
        ctx: Any, query_BHTd: Tensor, key_BGTd: Tensor, value_BGTd: Tensor, mask_B1TT: Tensor | None, causal: bool
    ) -> Tensor:
        B, H, T, d = query_BHTd.shape
        G = key_BGTd.shape[1]
        key, value = key_BGTd.reshape(B * G, T, d), value_BGTd.reshape(B * G, T, d)
        query = query_BHTd.reshape(B * G, H // G, T, d)
        out_BTHd = query.new_empty(B, T, H, d)
        later = torch.full((TILE, TILE), -torch.inf, dtype=query.dtype).triu_(1)
        tiles = []
        for a in range(0, T, TILE):
            e = min(a + TILE, T)
            seen = e if causal else T
            score = torch.bmm(query[:, :, a:e].reshape(B * G, -1, d), key[:, :seen].transpose(1, 2))
            if mask_B1TT is not None:
                score.view(B, H, e - a, seen).add_(mask_B1TT[:, :, a:e, :seen])
            elif causal:
                score.view(B, H, e - a, seen)[..., a:e].add_(later[: e - a, : e - a])
            p = score.softmax(-1)
            out_BTHd[:, a:e] = torch.bmm(p, value[:, :seen]).view(B, H, e - a, d).transpose(1, 2)
            tiles.append(p)
        ctx.save_for_backward(query, key, value, *tiles)
        ctx.shape = B, H, G
        return out_BTHd

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope_BTHd: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *tiles = ctx.saved_tensors
        B, H, G = ctx.shape
        T, d = key.shape[1:]
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        last = len(tiles) - 1
        for number in range(last, -1, -1):  # the last tile sees every key: it begins the sums
            p, a = tiles[number], number * TILE
            e, seen = min(a + TILE, T), p.shape[2]
            slope = slope_BTHd[:, a:e].transpose(1, 2).reshape(B * G, -1, d).to(p.dtype)
            tile = query[:, :, a:e].reshape(B * G, -1, d)
            through = torch.bmm(slope, value[:, :seen].transpose(1, 2))
            to_score = torch._softmax_backward_data(through, p, -1, p.dtype)
            to_query[:, :, a:e] = torch.bmm(to_score, key[:, :seen]).view(B * G, H // G, e - a, d)
            parts = torch.bmm(to_score.transpose(1, 2), tile), torch.bmm(p.transpose(1, 2), slope)
            for total, part in zip((to_key, to_value), parts, strict=True):
                total[:, :seen].copy_(part) if number == last else total[:, :seen].add_(part)
        shape = B, -1, T, d
        return to_query.view(shape), to_key.view(shape), to_value.view(shape), None, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
