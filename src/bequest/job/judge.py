"""What a recipe's predecessors make of its text: asked once, sequence by sequence, and kept for every run that asks again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import config
from ..data import tokenizer
from ..data.batches import Batches
from ..data.mix import Stream
from ..data.pack import Ints, Pack
from ..data.retell import lengths, retold, texts
from ..data.tokenizer import Vocabulary
from ..device import place_for
from ..files import locked, replace_bytes
from ..model import build
from ..model.flops import forward_flops
from ..model.language import LanguageModel
from ..recipe import Recipe, TeacherModel
from ..report.progress import Scoring
from ..teach.score import Floats, Judgement, Scores
from ..types import Batch, DataError, RecipeError
from .models import opener
from .stores import teacher_identity

FORMAT = 1
BLOCK = 512
"""Sequences between two writes: what a kill loses at most."""


@dataclass(frozen=True)
class Judge:
    """Asks predecessors about text, and keeps what they say in `folder` by the contents of model and text."""

    recipe: Recipe
    vocabulary: Vocabulary
    folder: Path

    def __call__(self, name: str, batches: Stream, judgement: Judgement) -> Scores:
        """What the predecessor `name` says about all the new text of some batches.

        Raises RecipeError when there is no one model of that name.
        """
        asked = _Asked(self, name, _spec(self.recipe, name, batches, judgement), batches.new, judgement)
        return Scores(batches.new.whole, lambda: asked.found[0], lambda: asked.found[1])


def _spec(recipe: Recipe, name: str, batches: Stream, judgement: Judgement) -> TeacherModel:
    spec = recipe.teachers[name]
    if not spec.load:
        several = "several teachers" if spec.route or spec.ensemble else "a store"
        raise RecipeError(
            f"{name} is to judge text, which takes one model and not {several}; give teachers.{name}.load"
        )
    if batches.new.objective.overlap == 0 and judgement.per == "byte":
        raise RecipeError("text is judged per byte by models of the next token alone; judge it per token")
    return spec


@dataclass(frozen=True)
class _Asked:
    """One question about all sequences of some batches."""

    judge: Judge
    name: str
    spec: TeacherModel
    batches: Batches
    judgement: Judgement

    @cached_property
    def found(self) -> tuple[Floats, float]:
        """The answers, and the floating-point operations that they took."""
        tables = [self._table(pack, numbers) for pack, numbers in self._packs() if len(numbers)]
        whole = np.concatenate(tables).astype(np.float64)
        return whole[:, :-1], float(whole[:, -1].sum())

    def _packs(self) -> Iterator[tuple[Pack, Ints]]:
        """Each source with the numbers of its sequences that are asked about."""
        before = 0
        for pack in self.batches.packs:
            chosen = self.batches.choice.numbers if self.batches.choice else np.arange(before, before + len(pack))
            yield pack, chosen[(chosen >= before) & (chosen < before + len(pack))] - before
            before += len(pack)

    def _table(self, pack: Pack, numbers: Ints) -> np.ndarray[Any, Any]:
        """A row of numbers for every sequence, the last one the operations that it took."""
        self.judge.folder.mkdir(parents=True, exist_ok=True)
        path = self.judge.folder / f"{self._key(pack, numbers)}.f32"
        with locked(path.with_suffix(".lock"), wait=True):
            if not (path.exists() and path.with_suffix(".b2").exists()):
                self._write(path, pack, numbers)
        content = path.read_bytes()
        if path.with_suffix(".b2").read_bytes() != hashlib.blake2b(content).digest():
            raise DataError(
                f"the scores in {path} are damaged; delete {path.with_suffix('.b2')} and {path.name}, and run again"
            )
        return np.frombuffer(content, np.float32).reshape(len(numbers), -1)

    def _key(self, pack: Pack, numbers: Ints) -> str:
        every = len(numbers) == len(pack)
        return config.fingerprint(
            {
                "format": FORMAT,
                "text": [pack.store.digest, pack.policy.decode(), pack.prompt, pack.prompt_drop],
                "sequences": "all" if every else hashlib.blake2b(numbers.tobytes()).hexdigest(),
                "objective": self.batches.objective.policy,
                "tokenizer": self.judge.vocabulary.identity,
                "model": teacher_identity(self.spec),
                "asked": [type(self.judgement).__name__, self.judgement.per, repr(self.judgement)],
                "precision": place_for(self.judge.recipe.train).precision,
            }
        )

    def _write(self, path: Path, pack: Pack, numbers: Ints) -> None:
        """Write what is missing, block by block."""
        ordered = Batches((pack,), self.batches.objective, 1, 0, ordered=True)
        reader = _Reader(self.judge, self.spec, self.judgement)
        with path.open("r+b" if path.exists() else "w+b") as file:
            row = 4 * (1 + reader.width)
            done = path.stat().st_size // row // BLOCK * BLOCK  # a kill may have cut a block short
            file.truncate(done * row)
            file.seek(done * row)
            progress = Scoring(f"{self.name} reads {pack.store.source}", len(numbers), done)
            for first in range(done, len(numbers), BLOCK):
                block = numbers[first : first + BLOCK]
                file.write(np.concatenate(list(reader(ordered.of(block)))).astype(np.float32).tobytes())
                file.flush()
                progress(len(block))
            file.seek(0)
            digest = hashlib.blake2b(file.read()).digest()
        replace_bytes(path.with_suffix(".b2"), digest)


class _Reader:
    """A predecessor that reads; in memory as long as this is."""

    def __init__(self, judge: Judge, spec: TeacherModel, judgement: Judgement) -> None:
        self.place = place_for(judge.recipe.train)
        self.model: LanguageModel = opener(judge.recipe, self.place.device)(spec).eval().requires_grad_(False)
        self.judgement, self.told_in = judgement, judge.vocabulary
        self.own = judge.vocabulary if judgement.per == "token" else tokenizer.load(spec.load)
        self.stranger = self.own.strings != judge.vocabulary.strings
        self.head = self.model.head.narrow(self.own.size)
        train = judge.recipe.train
        self.at_once = (train.micro_batch_tokens or train.batch_tokens) // judge.recipe.data.sequence

    @property
    def width(self) -> int:
        """Numbers per sequence."""
        return self.judgement.width(self.model)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Iterator[np.ndarray[Any, Any]]:
        """A row for every sequence, with its operations at the end."""
        for micro in batch.micro(self.at_once):
            found, flops = self._strange(micro) if self.stranger else self._known(micro)
            yield np.concatenate([found.numpy(), np.full((len(micro.keys), 1), flops / len(micro.keys))], 1)

    def _known(self, batch: Batch) -> tuple[torch.Tensor, float]:
        told = texts(batch, self.told_in) if self.judgement.per == "byte" else None
        tokens_B = torch.bincount(batch.rows.index_N // batch.tokens_BT.shape[1], minlength=len(batch.keys)).numpy()
        return self._ask(batch, lengths(told) if told else tokens_B)

    def _strange(self, batch: Batch) -> tuple[torch.Tensor, float]:
        """A model with another tokenizer gets the same text; its sums are over the same bytes."""
        told = texts(batch, self.told_in)
        pieces, sequence_P = retold(told, self.own, min(build.positions_of(self.model.model.config), 512))
        sums, flops = torch.zeros(len(batch.keys), self.width, dtype=torch.float64), 0.0
        for first in range(0, len(pieces.keys), self.at_once):
            some = list(range(first, min(first + self.at_once, len(pieces.keys))))
            found, more = self._ask(pieces.of(some), np.ones(len(some), np.int64))
            sums.index_add_(0, torch.from_numpy(sequence_P[some]), found.double())
            flops += more
        return sums / torch.from_numpy(lengths(told)).clamp_min(1)[:, None], flops

    def _ask(self, batch: Batch, sizes_B: Ints) -> tuple[torch.Tensor, float]:
        batch = batch.to(self.place.device)
        with self.place.autocast():
            return self.judgement(self.model, self.head, batch, sizes_B), forward_flops(self.model, batch)


@dataclass(frozen=True)
class Guess:
    """Takes a judge's place where nothing is to be read: all sequences are equal, and what judging costs is estimated."""

    recipe: Recipe

    def __call__(self, name: str, batches: Stream, judgement: Judgement) -> Scores:
        """Zeros, one for each sequence."""
        spec, objective = _spec(self.recipe, name, batches, judgement), self.recipe.data.objective
        one = replace(batches.new, choice=None, held=None).of(np.arange(1))
        each = forward_flops(build.outline(spec.load, objective, spec.remote_code), one)
        count = batches.new.whole
        return Scores(count, lambda: np.zeros((count, 1)), lambda: count * each)
