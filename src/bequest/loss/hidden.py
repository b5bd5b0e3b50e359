"""Hidden states of student and teacher side by side: which layers, the learned map between their widths, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..model.language import LanguageModel
from ..model.states import blocks_of, watched
from ..types import Batch, RecipeError
from .rows import sequence_of

States = Mapping[int, Tensor]
"""[B, T, D] by layer."""


class Layers(nn.Module):
    """Pairs of a student's and a teacher's layer, and one learned map from the student's width to the teacher's.

    Without pairs every layer of the student has one: of layer l the teacher's l x L_T / L_S, rounded down (0 is before the
    first block). The map begins as the identity, as far as there is one.
    """

    def __init__(self, teacher: Callable[[], LanguageModel], pairs: tuple[tuple[int, int], ...] = ()) -> None:
        super().__init__()
        self.teacher, self.pairs = teacher, pairs
        self.map_SD: nn.Parameter | None = None

    def meet(self, model: LanguageModel) -> None:
        """Learn the sizes of a student.

        Raises RecipeError for a layer that one of the models does not have.
        """
        own, other = len(blocks_of(model)), len(blocks_of(self.teacher()))
        self.pairs = self.pairs or tuple((layer, layer * other // own) for layer in range(own + 1))
        for which, depth, layers in zip(
            ("student", "teacher"), (own, other), zip(*self.pairs, strict=True), strict=True
        ):
            if max(layers) > depth:
                raise RecipeError(f"the {which} has {depth} layers and no layer {max(layers)}; change method.layers")
        self.map_SD = between(model, self.teacher())

    def of_student(self, model: LanguageModel) -> AbstractContextManager[dict[int, Tensor]]:
        """The student's states of passes within the block."""
        return watched(model, [own for own, _ in self.pairs])

    def of_teacher(self) -> AbstractContextManager[dict[int, Tensor]]:
        """The teacher's."""
        return watched(self.teacher(), [other for _, other in self.pairs])

    def match(self, own: States, other: States, batch: Batch) -> Tensor:
        """How far the states are apart at each of the batch's rows, [N]: both of length 1, mean of squares over the
        channels, summed over the pairs (patient distillation; Li et al. 2021, arXiv 2109.11295)."""
        found = [(a - b).square().mean(-1) for a, b in self._rows(own, other, batch)]
        return torch.stack(found).sum(0)

    def relation(self, own: States, other: States, batch: Batch) -> Tensor:
        """How far the products of neighbouring layers' states are apart, of each row its sequence's, [N].

        The mean over a sequence's rows of h_a h_b^T is D x D (FSP); mean of squared differences, summed over neighbours.
        """
        rows = self._rows(own, other, batch)
        if len(rows) < 2:
            raise RecipeError("a relation is one between layers; give method.layers two pairs or more")
        sizes = torch.bincount(sequence_of(batch), minlength=len(batch.keys))
        total_B = torch.stack([_apart(a, b, sizes.tolist()) for a, b in pairwise(rows)]).sum(0)
        return total_B.repeat_interleave(sizes)

    def _rows(self, own: States, other: States, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Of each pair the student's states at the rows, mapped, and the teacher's; both of length 1."""
        assert self.map_SD is not None
        found = []
        for a, b in self.pairs:
            states = (own[a].flatten(0, 1)[batch.rows.index_N], other[b].flatten(0, 1)[batch.rows.index_N])
            mapped = nn.functional.linear(states[0].float(), self.map_SD.float())
            found.append((nn.functional.normalize(mapped, dim=-1), nn.functional.normalize(states[1].float(), dim=-1)))
        return found


def _apart(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], sizes: list[int]) -> Tensor:
    """Mean of squared differences of student's and teacher's products between two layers, [B]; 0 for a sequence without rows."""
    own, other = (
        zip(torch.split(a, sizes), torch.split(b, sizes), strict=True) for a, b in zip(first, second, strict=True)
    )
    products = zip(own, other, strict=True)
    return torch.stack([(a.T @ b - c.T @ d).div(max(1, len(a))).square().mean() for (a, b), (c, d) in products])


def between(student: LanguageModel, teacher: LanguageModel) -> nn.Parameter:
    """A map from the student's width to the teacher's, the identity at first, as far as there is one."""
    widths = [model.model.config.get_text_config().hidden_size for model in (teacher, student)]
    like = next(student.parameters())
    return nn.Parameter(torch.eye(*widths, dtype=like.dtype, device=like.device))
