"""How well a model predicts text that it has not seen: mean loss in nats, perplexity, bits per byte of raw text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..data.batches import Batches
from ..device import Place
from ..loss.project import Addend, project
from ..loss.terms import next_token
from ..model.language import LanguageModel
from ..types import Batch, Clock


@dataclass(frozen=True)
class HeldOut:
    """One source's validation sequences and the bytes of raw text that they hold."""

    batches: Batches
    text_bytes: int


@torch.no_grad()
def total_loss(model: LanguageModel, batches: Iterable[Batch], place: Place) -> tuple[float, int]:
    """Cross-entropy in nats summed over all rows, and the number of rows. The model's mode is restored afterwards."""
    training = model.training
    model.eval()
    nats, count = 0.0, 0
    for batch in batches:
        batch = batch.to(place.device)
        target_N = batch.rows.target_N
        if not len(target_N):
            continue
        with place.autocast():
            addends = [Addend(next_token, 1.0)]
            nats += project(model.features(batch), model.head, target_N, addends, Clock(0, 1))[0].item()
        count += len(target_N)
    model.train(training)
    return nats, count


def mean_loss(model: LanguageModel, batches: Iterable[Batch], place: Place) -> float:
    """Mean cross-entropy per row, in nats."""
    nats, rows = total_loss(model, batches, place)
    return nats / max(1, rows)


def validate(model: LanguageModel, held_out: Mapping[str, HeldOut], place: Place) -> dict[str, dict[str, float]]:
    """Loss (nats per row), perplexity and, for causal models, bits per byte of raw text, for every source."""
    return {source: _measures(model, held, place) for source, held in held_out.items()}


def _measures(model: LanguageModel, held: HeldOut, place: Place) -> dict[str, float]:
    nats, rows = total_loss(model, held.batches.once(), place)
    loss = nats / max(1, rows)
    found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return found | ({"bits_per_byte": nats / math.log(2) / held.text_bytes} if model.causal else {})
