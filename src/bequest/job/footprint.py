"""How much memory a run will need, found without using it: two steps on fake tensors, every allocation counted.

PyTorch's fake tensors run the very code of a training step and hold no numbers, so nothing has to be known here of any
architecture, loss or optimiser. What a live process adds to that (code, allocators, mapped files) is the caller's part.
"""

from __future__ import annotations

import resource
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..device import Place
from ..loss.combine import next_token, weighted
from ..model.language import LanguageModel
from ..optim import Optimiser
from ..recipe import OptimiserSettings
from ..train.run import Settings, Trained
from ..types import Batch, Clock, LossFn, Rows
from .heap import Event, high_water

MICROS = 4
"""Looked at of each batch."""


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that live; each is counted once, whatever number of views it has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.events: list[Event] = []
        self._known: dict[int, tuple[int, int]] = {}  # by storage: number and size
        self._number = 0

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
            self._number += 1
            self._known[key] = (self._number, size)
            self.events.append((self._number, size))
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        number, size = self._known.pop(key)
        self.events.append((number, -1))
        self.now -= size


def made_fake(model: LanguageModel, mode: FakeTensorMode) -> LanguageModel:
    """Give a model on the device `meta` fake weights on the CPU."""
    with mode:
        model.to_empty(device="cpu")
        model.model.tie_weights()
    return model


def twin(model: LanguageModel, mode: FakeTensorMode) -> LanguageModel:
    """Another model of the same kind and sizes, fake as well."""
    with torch.device("meta"):
        other = type(model.model)(model.model.config)
        return made_fake(LanguageModel(other), mode)


def footprint(
    model: LanguageModel,
    loss: LossFn,
    teachers: Iterable[LanguageModel],
    batches: Sequence[Batch],
    clock: Clock,
    settings: Settings,
    mode: FakeTensorMode,
) -> dict[str, int]:
    """Bytes at the worst moment of some steps, by what they are for. The models are made fake in `mode`.

    The first step has no moments yet, and the heap is nearly steady after some. Batches of different numbers of rows
    (masked ones) leave holes of different sizes.
    """
    steps = [list(islice(batch.micro(settings.micro_batch), MICROS)) for batch in batches]
    with mode, Counting() as counting:
        weights, taught = _hold(counting, [model]), _hold(counting, teachers)
        if settings.activation_checkpointing:
            model.checkpoint_activations()
        trained = Trained(model, loss).train()
        optimiser = Optimiser(trained, settings.optimiser)
        for micros in steps:
            counting.peak = counting.now
            for micro in micros:
                with settings.place.autocast():
                    found = trained(_fake(micro, mode), clock)
                found.total.backward()
                del found
            nn.utils.clip_grad_norm_(optimiser.parameters, settings.clip or torch.inf)
            optimiser.step(1.0)
        moments = sum(value.untyped_storage().nbytes() for value in optimiser.state().values())
        parts = {"weights": weights, "optimiser": moments, "teachers": taught}
        parts["activations"] = counting.peak - sum(parts.values())
        return parts | {"gaps": high_water(counting.events) - counting.peak}


def _hold(counting: Counting, models: Iterable[LanguageModel]) -> int:
    before = counting.now
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            counting.count(tensor)
    return counting.now - before


def _fake(batch: Batch, mode: FakeTensorMode) -> Batch:
    tokens_BT, segments_BT, index_N, target_N = (
        mode.from_tensor(t) for t in (batch.tokens_BT, batch.segments_BT, batch.rows.index_N, batch.rows.target_N)
    )
    return replace(batch, tokens_BT=tokens_BT, segments_BT=segments_BT, rows=Rows(index_N, target_N))


def process_bytes(place: Place, settings: OptimiserSettings) -> int:
    """Memory of this process once everything that training runs has been loaded: after one step of almost nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    trained = Trained(LanguageModel(LlamaForCausalLM(config)), weighted((1.0, next_token)))
    tokens_BT = torch.ones(1, 16, dtype=torch.long)
    rows = Rows(torch.arange(15), tokens_BT[0, 1:])
    optimiser = Optimiser(trained, settings)
    with place.autocast():
        trained(Batch(tokens_BT, tokens_BT * 0, rows, 15, False, ("",), (b"",)), Clock(0, 1)).total.backward()
    optimiser.step(1.0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
