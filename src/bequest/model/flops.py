"""What a pass through a model costs. The one formula of every ledger, comparison and report:

    forward FLOPs = 2 x (matrix parameters used per token) x tokens        the base model
                  + 4 x layers x heads x head width x T x tokens           attention's two products over T positions
                  + 2 x (head transform + V x D) x selected rows           the head

and three times that with the backward pass. Embedding look-ups cost nothing; of experts only the chosen ones count.
Attention is counted over all T positions of a sequence, whatever the mask leaves out.
"""

from __future__ import annotations

from typing import Any

from ..types import Batch
from .language import LanguageModel

TRAINING = 3


def forward_flops(model: LanguageModel, batch: Batch) -> float:
    """FLOPs of one forward pass over a batch, its head on the selected rows alone."""
    rows, tokens, length = len(batch.rows.index_N), batch.tokens_BT.numel(), batch.tokens_BT.shape[1]
    base, head = matrix_parameters(model)
    config = model.model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 4 * config.num_hidden_layers * heads * width * length
    return float((2 * base + attention) * tokens + 2 * head * rows)


def matrix_parameters(model: LanguageModel) -> tuple[float, int]:
    """Parameters in matrix products per token of the base model, and per row of the head."""
    config = model.model.config.get_text_config()
    embeddings = {
        id(p)
        for m in model.model.modules()
        if type(m).__name__.endswith("Embedding")
        for p in m.parameters(recurse=False)
    }
    base = sum(
        _used(p, config) for p in model.model.base_model.parameters() if p.dim() >= 2 and id(p) not in embeddings
    )
    inside = {id(p) for p in model.model.base_model.parameters()}
    head = sum(p.numel() for p in model.model.parameters() if p.dim() == 2 and id(p) not in inside)
    output = model.model.get_output_embeddings().weight
    return base, head + (output.numel() if id(output) in inside else 0)


def _used(parameter: Any, config: Any) -> float:
    """Of stacked experts [E, ...] only the chosen ones work on a token."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    size: int = parameter.numel()
    if parameter.dim() == 3 and experts and chosen and parameter.shape[0] == experts:
        used: float = size * chosen / experts
        return used
    return size
