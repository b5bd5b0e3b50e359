"""What a model's blocks put out on the way, taken from a pass that is made anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..types import RecipeError
from .language import LanguageModel


def blocks_of(model: LanguageModel) -> list[nn.Module]:
    """The model's blocks, in order."""
    return [m for m in model.model.base_model.modules() if isinstance(m, GradientCheckpointingLayer)]


@contextmanager
def watched(model: LanguageModel, layers: Iterable[int], learning: bool = False) -> Iterator[dict[int, Tensor]]:
    """Hidden states [B, T, D] of passes within the block, by layer: 0 is what the first block gets, n what block n puts out.

    `learning` lets gradients be asked for at layer 0 where no parameter before it wants one. Raises RecipeError for a layer
    that is not there.
    """
    blocks, found = blocks_of(model), dict[int, Tensor]()

    def into(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state_BTD = args[0] if args else kwargs["hidden_states"]
        found[0] = state_BTD.requires_grad_() if learning and not state_BTD.requires_grad else state_BTD

    with ExitStack() as stack:
        for layer in set(layers):
            if not 0 <= layer <= len(blocks):
                raise RecipeError(
                    f"there is no layer {layer} in a model of {len(blocks)} blocks; 0 is before the first one"
                )
            if layer == 0:
                handle = blocks[0].register_forward_pre_hook(into, with_kwargs=True)
            else:
                handle = blocks[layer - 1].register_forward_hook(_keeping(found, layer))
            stack.callback(handle.remove)
        yield found


def _keeping(found: dict[int, Tensor], layer: int) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found[layer] = output[0] if isinstance(output, tuple) else output

    return keep
