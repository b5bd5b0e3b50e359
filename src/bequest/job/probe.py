"""What a model is good for downstream: fine-tune it on a labelled task, with several seeds, and count right answers.

It is a stage on the spine like any other, whose loss owns the output matrix and whose rows are the ends of the texts.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import tokenizer
from ..data.batches import permuted, seed_of
from ..data.source import labelled
from ..data.tokenizer import Vocabulary
from ..device import Place, place
from ..model import build
from ..model.language import LanguageModel
from ..optim import Policy
from ..recipe import OptimiserSettings, ScheduleSettings
from ..train.plan import Stage
from ..train.run import Settings, State, run
from ..types import Batch, Clock, DataError, Loss, Rows
from .look import split

BATCH, WARMUP = 16, 0.06
"""Texts per step, and the share of the steps in which the rate rises, as ELLE fine-tunes."""


@dataclass(frozen=True)
class Task:
    """Labelled texts as token ids, padded to one length when they are batched."""

    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    """Of the labels, by number."""


@dataclass(frozen=True)
class Texts:
    """Batches of a task: every text once in an epoch, in an order of the seed's. A text's row is its last token, or its first
    where the model looks both ways; its target is its label."""

    task: Task
    causal: bool
    padding: int
    seed: int
    size: int = BATCH

    def at(self, clock: Clock) -> Batch:
        """The batch of a clock's step."""
        count = len(self.task.ids)
        places = torch.arange(clock.step * self.size, (clock.step + 1) * self.size).numpy()
        found = [
            int(permuted(places[i : i + 1] % count, count, seed_of(self.seed, int(place) // count))[0])
            for i, place in enumerate(places)
        ]
        return self.of(found)

    def settle(self) -> float:
        """There is nothing to choose."""
        return 0.0

    def once(self) -> Iterator[Batch]:
        """Every text once, in order."""
        for first in range(0, len(self.task.ids), 4 * self.size):
            yield self.of(range(first, min(first + 4 * self.size, len(self.task.ids))))

    def of(self, numbers: Sequence[int]) -> Batch:
        """Some texts."""
        ids = [self.task.ids[n] for n in numbers]
        length = max(map(len, ids))
        tokens_BT = torch.tensor([[*one, *[self.padding] * (length - len(one))] for one in ids])
        lengths_B = torch.tensor([len(one) for one in ids])
        segments_BT = -(torch.arange(length)[None] >= lengths_B[:, None]).long()
        row_B = lengths_B - 1 if self.causal else torch.zeros_like(lengths_B)
        index_N = torch.arange(len(ids)) * length + row_B
        targets = torch.tensor([self.task.labels[n] for n in numbers])
        whole = bool((lengths_B == length).all())
        keys = tuple(n.to_bytes(8, "little") for n in numbers)
        return Batch(tokens_BT, segments_BT, Rows(index_N, targets), len(ids), whole, ("task",) * len(ids), keys)


class Classify(nn.Module):
    """Cross-entropy with the label, through an output matrix of its own."""

    def __init__(self, hidden: int, labels: int) -> None:
        super().__init__()
        self.output = nn.Linear(hidden, labels)

    def forward(self, model: Any, batch: Batch, clock: Clock) -> Loss:
        """The mean over `batch.rows_total`."""
        logits = self.output(model.features(batch)).float()
        return Loss(nn.functional.cross_entropy(logits, batch.rows.target_N, reduction="sum") / batch.rows_total)


@dataclass(frozen=True)
class Score:
    """Of one seed, on the texts that were not trained on."""

    accuracy: float
    macro_f1: float
    """The mean over labels of 2 x right / (said + true)."""


def probe(checkpoint: str, training: str, held_out: str, seeds: int, epochs: int, rate: float) -> Iterator[Score]:
    """Fine-tune a model on a jsonl file of `text` and `label`, once per seed, and score it on another.

    `training` may begin with a source, `SOURCE=PATH`: if the model has a prompt for it, that stands in place of BOS. Raises
    DataError for files that are no task, ModelError for a folder without a model that we can train.
    """
    where = place("auto", "fp32")
    source, path = split(training)
    vocabulary = tokenizer.load(checkpoint)
    model = build.load(checkpoint, build.objective_of(build.config_of(checkpoint)))
    limit = min(512, build.positions_of(model.model.config))
    if source and source not in vocabulary.prompts:
        there = ", ".join(vocabulary.prompts) or "none at all"
        raise DataError(
            f"{checkpoint} has no prompt for the source {source!r} (there are: {there}); leave {source}= out"
        )
    first = vocabulary.prompts.get(source, vocabulary.begin)
    learned = _task(path, vocabulary, first, limit)
    other = _task(held_out, vocabulary, first, limit, learned.names)
    padding = vocabulary.tokenizer.pad_token_id or 0
    for seed in range(seeds):
        yield _score(copy.deepcopy(model), learned, other, padding, where, seed, epochs, rate)


def _score(
    model: LanguageModel, learned: Task, other: Task, padding: int, where: Place, seed: int, epochs: int, rate: float
) -> Score:
    steps = max(1, epochs * len(learned.ids) // BATCH)
    torch.manual_seed(seed_of(seed))
    loss = Classify(model.head.weight_VD.shape[1], len(learned.names))
    texts = Texts(learned, model.causal, padding, seed)
    stage = Stage("probe", texts, loss, steps)  # type: ignore[arg-type]
    policy = Policy(ScheduleSettings(name="linear", warmup=WARMUP), BATCH, steps * BATCH)
    optimiser = OptimiserSettings(lr=rate)
    settings = Settings(where, optimiser, policy, BATCH, BATCH, 1.0, seed, check_every=steps)
    state = run((stage,), State(model, planned=steps * BATCH), settings)
    return score(_said(state.model, loss, replace(texts, task=other), where), other.labels)


@torch.no_grad()
def _said(model: LanguageModel, loss: Classify, texts: Texts, where: Place) -> list[int]:
    model.eval()
    found: list[Tensor] = [loss.output(model.features(batch.to(where.device))).argmax(-1) for batch in texts.once()]
    return [int(n) for n in torch.cat(found)]


def score(said: Sequence[int], true: Sequence[int]) -> Score:
    """Right answers, and macro-F1 over the labels that are there."""
    right = Counter(a for a, b in zip(said, true, strict=True) if a == b)
    both = Counter(said) + Counter(true)
    each = [2 * right[label] / both[label] for label in set(true)]
    return Score(sum(right.values()) / len(true), math.fsum(each) / len(each))


def _task(path: str, vocabulary: Vocabulary, first: int, limit: int, names: tuple[str, ...] = ()) -> Task:
    """The task in a file; labels are numbered by their names' order, those of `names` if given."""
    found = list(labelled(Path(path)))
    if not found:
        raise DataError(f"there is no labelled text in {path}; give a jsonl file whose lines have text and label")
    labels = [label for _, label in found]
    names = names or tuple(sorted(set(labels)))
    if len(names) < 2:
        raise DataError(f"{path} has one label, {names[0]!r}, alone; there is nothing to tell apart")
    if unknown := sorted(set(labels) - set(names)):
        raise DataError(f"{path} has the label {unknown[0]!r}, which nothing was trained on; take it out")
    ids = vocabulary.encode([text for text, _ in found])
    cut = tuple((first, *one[: limit - 2], vocabulary.end) for one in ids)
    return Task(cut, tuple(names.index(label) for label in labels), names)


def mean(scores: Sequence[Score]) -> tuple[Score, Score]:
    """Mean and standard deviation over seeds, two at least."""
    each = [[getattr(one, name) for one in scores] for name in ("accuracy", "macro_f1")]
    return Score(*map(statistics.mean, each)), Score(*map(statistics.stdev, each))
