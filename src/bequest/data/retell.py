"""The text of a batch, for a model with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..types import Batch, Rows
from .pack import Ints
from .tokenizer import Vocabulary


def texts(batch: Batch, vocabulary: Vocabulary) -> list[list[str]]:
    """The text that is predicted in each sequence, document by document. A character that a window cuts is lost on both sides."""
    found: list[list[str]] = [[] for _ in batch.keys]
    length = batch.tokens_BT.shape[1]
    sequence_N = (batch.rows.index_N // length).tolist()
    segment_N = batch.segments_BT.flatten()[batch.rows.index_N].tolist()
    target_N = batch.rows.target_N.tolist()
    documents: dict[tuple[int, int], list[int]] = {}
    for place, target in zip(zip(sequence_N, segment_N, strict=True), target_N, strict=True):
        documents.setdefault(place, []).append(target)
    for (sequence, _), ids in documents.items():
        found[sequence].append(vocabulary.tokenizer.decode(ids, skip_special_tokens=True))
    return found


def lengths(told: list[list[str]]) -> Ints:
    """Bytes of each sequence's text."""
    return np.array([sum(len(text.encode()) for text in one) for one in told])


def retold(told: list[list[str]], vocabulary: Vocabulary, positions: int) -> tuple[Batch, Ints]:
    """The same text as another tokenizer has it, one document after the other, and the sequence that each piece belongs to.

    Every token of it is predicted once: a document that is longer than `positions` goes on in a piece that begins with the
    last token of the one before.
    """
    pieces = [(number, piece) for number, one in enumerate(told) for piece in _pieces(one, vocabulary, positions)]
    length = max((len(piece) - 1 for _, piece in pieces), default=1)
    tokens_BT = torch.full((len(pieces), length), vocabulary.begin)
    segments_BT = torch.full((len(pieces), length), -1)
    index, target = [], []
    for n, (_, piece) in enumerate(pieces):
        inside = len(piece) - 1
        tokens_BT[n, :inside], segments_BT[n, :inside] = torch.tensor(piece[:-1]), 0
        index.append(n * length + torch.arange(inside))
        target.append(torch.tensor(piece[1:]))
    rows = Rows(torch.cat([*index, torch.arange(0)]), torch.cat([*target, torch.arange(0)]))
    whole = not bool((segments_BT < 0).any())
    batch = Batch(
        tokens_BT, segments_BT, rows, max(1, len(rows.index_N)), whole, ("",) * len(pieces), (b"",) * len(pieces)
    )
    return batch, np.array([number for number, _ in pieces], np.int64)


def _pieces(documents: list[str], vocabulary: Vocabulary, positions: int) -> Iterator[list[int]]:
    for ids in vocabulary.encode(documents):
        whole = [vocabulary.begin, *ids]
        for first in range(0, len(ids), positions):
            yield whole[first : first + positions + 1]
