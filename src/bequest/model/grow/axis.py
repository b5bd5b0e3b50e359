"""How one axis of a tensor grows, and a tensor along all of its axes.

Grown weights are linear in the old ones, plus slots that are new: along an axis each slot is a copy of an old one times a number.
An optimiser's moments follow from the same copies, because gradients obey g = A^T g' where the weights obey w' = A w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

NEW, ZERO = -1, -2
"""Instead of an old slot: one that is filled as the axis says, and one that is zero."""

NewSlots = Literal["free", "zero", "mean"]


@dataclass(frozen=True)
class Axis:
    """Where each slot of a grown axis comes from.

    Over the copies of one old slot the sum of `times_I * moment_I` is 1: what g = A^T g' leaves of a gradient that the
    copies share.
    """

    old: int
    """How many slots there were."""
    source_I: Tensor
    """The old slot, NEW or ZERO."""
    times_I: Tensor
    """What a copied weight is multiplied by."""
    moment_I: Tensor
    """What a copied first moment is multiplied by; the second by its square."""
    new: NewSlots = "free"
    """What new slots hold: numbers as spread as the tensor's, nothing, or the mean of the old slots."""

    @cached_property
    def same(self) -> bool:
        """Whether every slot is the old one, if not in size."""
        return torch.equal(self.source_I, torch.arange(self.old))

    @property
    def freed(self) -> Axis:
        """The same axis where nothing has to be zero: in a block that says nothing yet."""
        return replace(self, source_I=self.source_I.clamp_min(NEW))

    @cached_property
    def kept_I(self) -> Tensor:
        """An old slot for each one, whatever it is worth."""
        return self.source_I.clamp_min(0)

    @cached_property
    def fresh(self) -> Tensor:
        """The new slots."""
        return (self.source_I == NEW).nonzero()[:, 0]

    @cached_property
    def silent(self) -> Tensor:
        """The slots that are zero."""
        return (self.source_I == ZERO).nonzero()[:, 0]


def axis(
    old: int, source_I: Tensor, times_I: Tensor | float = 1.0, moment_I: Tensor | float = 1.0, new: NewSlots = "free"
) -> Axis:
    """An axis; one number stands for all slots."""
    ones_I = torch.ones(len(source_I), dtype=torch.float64)
    return Axis(old, source_I, ones_I * times_I, ones_I * moment_I, new)


def kept(size: int) -> Axis:
    """An axis that stays as it is."""
    return axis(size, torch.arange(size))


def joined(axes: Sequence[Axis]) -> Axis:
    """Axes one after the other along one dimension."""
    if len(axes) == 1:
        return axes[0]
    sources, before = [], 0
    for one in axes:
        sources.append(torch.where(one.source_I < 0, one.source_I, one.source_I + before))
        before += one.old
    times_I, moment_I = (torch.cat([getattr(one, name) for one in axes]) for name in ("times_I", "moment_I"))
    return Axis(before, torch.cat(sources), times_I, moment_I, axes[0].new)


def weights(old: Tensor, axes: Sequence[Axis], generator: torch.Generator) -> Tensor:
    """A tensor grown along its axes; in its own precision, which should be fp32 at least."""
    spread = old.std().item() if old.numel() > 1 else 0.0

    def fill(part: Tensor, axis: Axis, mean: Tensor) -> Tensor:
        match axis.new:
            case "zero":
                return part.zero_()
            case "mean":
                return part.copy_(mean.expand_as(part))
        return part.normal_(0.0, spread * _size(axis.times_I), generator=generator)

    return _grown(old, axes, [axis.times_I for axis in axes], fill)


def first_moment(old: Tensor, axes: Sequence[Axis]) -> Tensor:
    """A running mean of gradients, as if the grown model had had them; nothing for new slots."""
    return _grown(old, axes, [axis.moment_I for axis in axes], lambda part, axis, mean: part.zero_())


def second_moment(old: Tensor, axes: Sequence[Axis]) -> Tensor:
    """A running mean of squared gradients. New slots get the mean of the old: with nothing, Adam's first steps would be far too long."""
    squares = [axis.moment_I.square() for axis in axes]
    return _grown(old, axes, squares, lambda part, axis, mean: part.fill_(old.mean().item()))


Fill = Callable[[Tensor, Axis, Tensor], Tensor]
"""Fills new slots, given the mean of the old ones along the axis."""


def _grown(old: Tensor, axes: Sequence[Axis], factors: Sequence[Tensor], fill: Fill) -> Tensor:
    assert old.dim() == len(axes)
    found = old
    for dim in reversed(range(old.dim())):  # the last one first: rows are then copied whole
        found = _along(found, dim, axes[dim], factors[dim], fill)
    return found.clone() if found is old else found


def _along(old: Tensor, dim: int, axis: Axis, factor_I: Tensor, fill: Fill) -> Tensor:
    if axis.same and not bool((factor_I != 1).any()):
        return old
    found = old.index_select(dim, axis.kept_I.to(old.device))
    shape = [-1 if d == dim else 1 for d in range(old.dim())]
    if bool((factor_I != 1).any()):
        found *= factor_I.to(old.device, old.dtype).view(shape)
    if len(axis.silent):
        found.index_fill_(dim, axis.silent.to(old.device), 0.0)
    if len(axis.fresh):
        mean = old.mean(dim, keepdim=True) * _size(factor_I)
        part = found.index_select(dim, axis.fresh.to(old.device))
        found.index_copy_(dim, axis.fresh.to(old.device), fill(part, axis, mean))
    return found


def _size(factor_I: Tensor) -> float:
    """How much larger copies are than what they are copied from."""
    return factor_I.square().mean().sqrt().item()
