"""Optimisers whose state is a plain mapping of tensors by parameter name, and learning rates as functions of progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .device import multiplies_bf16
from .recipe import OptimiserSettings, ScheduleSettings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that five times over takes singular values to about 1 (Jordan et al. 2024)."""
TOGETHER = 1 << 22
"""Numbers in the matrices that are made orthogonal at once: larger ones keep any device busy by themselves."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum, its updates as large as AdamW's (Liu et al. 2025, section 2.2).

    torch.optim.Muon takes one matrix after the other, always in bf16: half of a small model's step on a CPU that has no bf16
    products (LOG.md, 2026-12-01). Here matrices of one shape go together, in the precision that their device multiplies.
    """

    def __init__(self, groups: Any, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, matrices in shapes.items():
                many = max(1, TOGETHER // shape.numel())
                for first in range(0, len(matrices), many):
                    self._update(matrices[first : first + many], shape, group)

    def _update(self, matrices: list[Tensor], shape: torch.Size, group: Mapping[str, Any]) -> None:
        update_NRC = orthogonal(torch.stack(self._momenta(matrices, group["momentum"])))
        torch._foreach_mul_(matrices, 1.0 - group["lr"] * group["weight_decay"])
        size = 0.2 * math.sqrt(max(shape))
        torch._foreach_add_(matrices, list(update_NRC.to(matrices[0].dtype)), alpha=-group["lr"] * size)

    def _momenta(self, matrices: list[Tensor], momentum: float) -> list[Tensor]:
        """Running means of the gradients, one look ahead (Nesterov)."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        means = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(means, gradients, 1.0 - momentum)
        return list(torch._foreach_lerp(gradients, means, momentum))


def orthogonal(matrices_NRC: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T, by five Newton-Schulz steps; singular values come out between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    x = x.to(torch.bfloat16 if multiplies_bf16(x.device.type) else torch.float32)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
                lambda groups: Muon(groups, settings.lr, settings.momentum),
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
