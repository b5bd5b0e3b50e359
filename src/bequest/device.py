"""Where tensors live and in which precision models run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .types import RecipeError

# Masked batches differ in their rows, and oneDNN keeps code and buffers for the last 1024 shapes: hundreds of megabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@dataclass(frozen=True)
class Place:
    """A device and a precision: `bf16` runs models under autocast (weights and sums stay fp32), `fp32` as they are."""

    device: str = "cpu"
    precision: str = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which models run."""
        return torch.autocast(self.device, self.dtype) if self.precision == "bf16" else nullcontext()


def place(device: str, precision: str) -> Place:
    """The place that a recipe asks for; `auto` is the GPU when there is one.

    Raises RecipeError when it asks for a GPU that is not there.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RecipeError("train.device is cuda, but PyTorch sees no GPU here; set it to auto or cpu")
    return Place("cuda" if available and device != "cpu" else "cpu", precision)
