"""New channels that fade in: Masked Structural Growth (Yao et al. 2023, arXiv 2305.02869, section 3) for norms on the stream.

A norm counts each new channel m times in its statistics and multiplies what it gives by m. At m = 0 the grown model computes
what the smaller one computed, at any width; at m = 1 the norm is an ordinary one again. Nothing is added to the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..language import LanguageModel

FROM = "faded_from"
"""In the configuration: how many channels of the stream are old."""


class FadingNorm(nn.LayerNorm):
    """A layer norm to which channels may count in part."""

    counts_D: Tensor | None
    """How much each channel counts; None is all alike."""

    def forward(self, input: Tensor) -> Tensor:
        """As a layer norm; [..., D]."""
        if self.counts_D is None:
            return super().forward(input)
        m_D = self.counts_D
        whole = m_D.sum()
        centred = input - (input * m_D).sum(-1, keepdim=True) / whole
        variance = (centred.square() * m_D).sum(-1, keepdim=True) / whole
        normed: Tensor = centred * torch.rsqrt(variance + self.eps)
        return (normed * self.weight + self.bias) * m_D


@torch.no_grad()
def fade(model: LanguageModel, share: float) -> None:
    """Let new channels count by this share in every norm of a model that was grown with width: fade; others stay as they are."""
    old = getattr(model.model.config, FROM, None)
    if old is None:
        return
    for module in model.model.modules():
        if isinstance(module, nn.LayerNorm):
            fading: Any = module
            fading.__class__ = FadingNorm  # the very parameters under their very names
            fading.counts_D = None
            if share < 1.0:
                fading.counts_D = torch.ones_like(fading.weight)
                fading.counts_D[old:] = share
