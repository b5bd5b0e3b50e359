"""Optimisers whose state is a plain mapping of tensors by parameter name, and learning rates as functions of progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .recipe import OptimiserSettings, ScheduleSettings


class Optimiser:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest, behind one face.

    Norms, biases and embeddings have no weight decay. `state` names each tensor `<parameter>/<moment>`, so that growth can
    map moments with the weights and nothing has to be pickled.
    """

    def __init__(self, module: nn.Module, settings: OptimiserSettings) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        matrices = [(n, p) for n, p in named if p.dim() >= 2 and id(p) not in tables]
        hidden = (
            [(n, p) for n, p in matrices if p.dim() == 2 and not _is_head(module, p)] if settings.name == "muon" else []
        )
        moved = {id(p) for _, p in hidden}
        decayed = [(n, p) for n, p in matrices if id(p) not in moved]
        decaying = {id(p) for _, p in decayed}
        plain = [(n, p) for n, p in named if id(p) not in moved | decaying]
        self.settings = settings
        self.parameters = [p for _, p in named]
        self._inner: list[tuple[list[str], torch.optim.Optimizer]] = []
        if hidden:
            self._add(
                [(hidden, settings.weight_decay)],
                lambda groups: torch.optim.Muon(
                    groups, lr=settings.lr, momentum=settings.momentum, adjust_lr_fn="match_rms_adamw"
                ),
            )
        self._add(
            [(decayed, settings.weight_decay), (plain, 0.0)],
            lambda groups: torch.optim.AdamW(
                groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
            ),
        )

    def _add(
        self, parts: list[tuple[list[tuple[str, nn.Parameter]], float]], make: Callable[[Any], torch.optim.Optimizer]
    ) -> None:
        groups = [{"params": [p for _, p in part], "weight_decay": decay} for part, decay in parts if part]
        if groups:
            self._inner.append(([name for part, _ in parts for name, _ in part], make(groups)))

    def step(self, multiplier: float) -> None:
        """One update at `multiplier` times the peak rate; gradients are dropped after it."""
        for _, inner in self._inner:
            for group in inner.param_groups:
                group["lr"] = self.settings.lr * multiplier
            inner.step()
            inner.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every moment by parameter name."""
        found: dict[str, Tensor] = {}
        for names, inner in self._inner:
            for number, moments in inner.state_dict()["state"].items():
                found |= {f"{names[number]}/{moment}": value for moment, value in moments.items()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take moments over; a parameter without any starts fresh."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, moment = key.rpartition("/")
            by_name.setdefault(name, {})[moment] = value
        for names, inner in self._inner:
            known = {number: by_name[name] for number, name in enumerate(names) if name in by_name}
            inner.load_state_dict({**inner.state_dict(), "state": known})


def _is_head(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether a matrix is some language model's output (tied ones are embeddings already)."""
    models: list[Any] = [m for m in module.modules() if hasattr(m, "get_output_embeddings")]
    return any(getattr(m.get_output_embeddings(), "weight", None) is parameter for m in models)


@dataclass(frozen=True)
class Policy:
    """The learning rate's course, as a pure function of the tokens behind and the tokens in all."""

    settings: ScheduleSettings
    batch: int
    """Tokens per step."""
    planned: int
    """Tokens planned when the run (or stage) began: a warm-up given as a share stays as it was when a run is made longer."""

    def __call__(self, done: int, total: int) -> float:
        """Multiplier of the peak rate for a step that starts after `done` of `total` tokens."""
        warmup = _tokens(self.settings.warmup, self.planned)
        rise = min(1.0, (done + self.batch) / warmup) if warmup else 1.0
        way = min(1.0, max(0.0, (done - warmup) / max(1.0, total - warmup)))
        match self.settings.name:
            case "constant":
                fall = 1.0
            case "linear":
                fall = 1.0 - way
            case "cosine":
                fall = 0.5 * (1.0 + math.cos(math.pi * way))
            case "wsd":
                decay = _tokens(self.settings.decay, total)
                fall = min(1.0, (total - done) / decay) if decay else 1.0
        return rise * (self.settings.floor + (1.0 - self.settings.floor) * fall)


def _tokens(value: float, total: int) -> float:
    """Below 1 a share, from 1 on tokens."""
    return value if value >= 1.0 else value * total
