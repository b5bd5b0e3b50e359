"""Where tensors live, in which precision models run, and what the C library does with memory that they no longer need."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .recipe import Train
from .types import RecipeError

# Masked batches differ in their rows, and oneDNN keeps code and buffers for the last 1024 shapes: hundreds of megabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""Of x86-64 and of Arm, as torch.cpu.get_capabilities names them."""


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


def multiplies_bf16(device: str) -> bool:
    """Whether products of bf16 matrices are the fast ones there. Where a CPU has none, they take sixty times as long as fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(bool(torch.cpu.get_capabilities().get(name)) for name in BF16_INSTRUCTIONS)


def place(device: str, precision: str) -> Place:
    """A device and a precision; `auto` is the GPU when there is one, and bf16 where it is fast.

    Raises RecipeError when it asks for a GPU that is not there.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RecipeError("train.device is cuda, but PyTorch sees no GPU here; set it to auto or cpu")
    kind = "cuda" if available and device != "cpu" else "cpu"
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(kind) else "fp32"
    return Place(kind, precision)


def place_for(train: Train) -> Place:
    """The place that a recipe asks for.

    Raises RecipeError when it asks for a GPU that is not there, or for what only a GPU can do.
    """
    where = place(train.device, train.precision)
    if train.document_mask == "flex" and where.device == "cpu":
        raise RecipeError("train.document_mask is flex, which trains on a GPU alone; set it to dense")
    return where


def settle(train: Train) -> Place:
    """Make this process ready to run models as a recipe asks, and say where; raises as `place_for`."""
    where = place_for(train)
    if train.threads:
        torch.set_num_threads(train.threads)
    if where.device == "cpu":
        keep_freed_memory()
    return where


def keep_freed_memory() -> None:
    """Let the C library (glibc) keep what tensors free, so that the next step's find it without page faults.

    As it comes, it gives every block of 32 MB and more back to the system, and the top of its heap, too.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4
    for parameter, value in (
        (mmap_threshold, 32 << 20),
        (mmap_max, 0),
        (trim_threshold, 2**31 - 1),
        (top_pad, 64 << 20),
    ):
        mallopt(parameter, value)
