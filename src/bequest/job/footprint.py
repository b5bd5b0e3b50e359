"""How much memory a run will need, found without using it: two steps on fake tensors, every allocation counted.

PyTorch's fake tensors run the very code of a training step and hold no numbers, so nothing has to be known here of any
architecture, loss or optimiser. What a live process adds to that (code, allocators, mapped files) is the caller's part.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..model.language import LanguageModel
from ..optim import Optimiser
from ..train.run import Settings, Trained
from ..types import Batch, Clock, LossFn, Rows


@dataclass(frozen=True)
class Footprint:
    """Bytes of tensors. `peak` is everything at the worst moment of a step, the other parts included."""

    weights: int
    moments: int
    teachers: int
    peak: int

    @property
    def activations(self) -> int:
        """What a step needs beside weights and moments: activations, gradients, chunks of logits, temporaries."""
        return self.peak - self.weights - self.moments - self.teachers


class _Counting(TorchDispatchMode):
    """Bytes of the storages that live; each is counted once, whatever number of views it has."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return found

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def footprint(model: LanguageModel, loss: LossFn, teachers: Sequence[LanguageModel], batch: Batch, settings: Settings) -> Footprint:
    """The tensors of two steps of `loss` on a batch. The models are on the device `meta` and are used up."""
    micros = list(batch.micro(settings.micro_batch))[:2]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _Counting() as counting:
        for teacher in teachers:
            _made_fake(teacher)
        teachers_bytes = counting.now
        trained = Trained(_made_fake(model), loss).train()
        weights = counting.now - teachers_bytes
        optimiser = Optimiser(trained, settings.optimiser)
        for step in range(2):
            counting.peak = counting.now
            for micro in micros:
                with settings.place.autocast():
                    found = trained(_fake(micro, fake), Clock(0, 1))
                found.total.backward()
                del found
            nn.utils.clip_grad_norm_(optimiser.parameters, settings.clip or torch.inf)
            optimiser.step(1.0)
        return Footprint(weights, counting.now - weights - teachers_bytes, teachers_bytes, counting.peak)


def _made_fake(model: LanguageModel) -> LanguageModel:
    model.to_empty(device="cpu")
    model.model.tie_weights()
    return model


def _fake(batch: Batch, mode: FakeTensorMode) -> Batch:
    tokens_BT, segments_BT, index_N, target_N = (
        mode.from_tensor(t) for t in (batch.tokens_BT, batch.segments_BT, batch.rows.index_N, batch.rows.target_N)
    )
    return replace(batch, tokens_BT=tokens_BT, segments_BT=segments_BT, rows=Rows(index_N, target_N))
