"""How one axis of a tensor grows, and a tensor along all of its axes.

Grown weights are linear in the old ones, plus slots that are new: along an axis each slot is a copy of an old one times a number.
An optimiser's moments follow from the same copies, because gradients obey g = A^T g' where the weights obey w' = A w.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import torch
from torch import Tensor

NEW, ZERO = -1, -2
"""Instead of an old slot: one that is filled as the axis says, and one that is zero."""
SAMPLE = 1 << 14
"""Numbers of a tensor that tell how far they are spread."""
NewSlots = Literal["free", "zero", "mean"]


@dataclass(frozen=True)
class Run:
    """Slots one after the other that are copies of old ones one after the other, or all NEW, or all ZERO."""

    start: int
    length: int
    source: int
    """The first old slot, NEW or ZERO."""

    @property
    def here(self) -> slice:
        """Where they are."""
        return slice(self.start, self.start + self.length)

    @property
    def there(self) -> slice:
        """Where they were."""
        return slice(self.source, self.source + self.length)


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

    @property
    def freed(self) -> Axis:
        """The same axis where nothing has to be zero: in a block that says nothing yet."""
        return replace(self, source_I=self.source_I.clamp_min(NEW))

    @cached_property
    def runs(self) -> list[Run]:
        """All slots, in as few runs as there are."""
        source_I = self.source_I
        follows = torch.where(source_I[1:] < 0, source_I[1:] == source_I[:-1], source_I[1:] == source_I[:-1] + 1)
        follows &= (source_I[:-1] < 0) == (source_I[1:] < 0)
        starts = [0, *(1 + (~follows).nonzero()[:, 0]).tolist()]
        ends = [*starts[1:], len(source_I)]
        return [Run(a, e - a, int(source_I[a])) for a, e in zip(starts, ends, strict=True)]


def axis(
    old: int, source_I: Tensor, times_I: Tensor | float = 1.0, moment_I: Tensor | float = 1.0, new: NewSlots = "free"
) -> Axis:
    """An axis; one number stands for all slots."""
    ones_I = torch.ones(len(source_I), dtype=torch.float64)
    return Axis(old, source_I, ones_I * times_I, ones_I * moment_I, new)


@cache
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


class Noise:
    """Normal numbers for new slots, from anywhere in a supply that is drawn once: drawing each would take most of a growth."""

    SUPPLY = 1 << 19

    def __init__(self, like: Tensor, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.supply = torch.randn(self.SUPPLY, generator=draw, dtype=torch.float32).to(like.device, like.dtype)
        self.places = random.Random(seed)

    def __call__(self, part: Tensor, spread: Tensor) -> None:
        """Fill rows and columns [R, C]."""
        many = max(1, self.SUPPLY // 2 // part.shape[1])
        for first in range(0, len(part), many):
            rows = part[first : first + many]
            place = self.places.randrange(self.SUPPLY - rows.numel() + 1)
            torch.mul(self.supply[place : place + rows.numel()].view(rows.shape), spread, out=rows)


def weights(old: Tensor, axes: Sequence[Axis], noise: Noise) -> Tensor:
    """A tensor grown along its axes; in its own precision, which should be fp32 at least."""

    @cache
    def spread() -> Tensor:  # stays a tensor: growth is also tried on tensors without numbers
        return old.flatten()[:: 1 + old.numel() // SAMPLE].std(correction=0)

    def fill(part: Tensor, axis: Axis, rows: Tensor, factor_R1: Tensor) -> None:
        match axis.new:
            case "zero":
                part.zero_()
            case "mean":
                part.copy_((rows.mean(1, keepdim=True) * factor_R1 * _size(axis.times_I)).expand_as(part))
            case "free":
                noise(part, spread() * _size(axis.times_I))

    return _grown(old, axes, [axis.times_I for axis in axes], fill)


def first_moment(old: Tensor, axes: Sequence[Axis]) -> Tensor:
    """A running mean of gradients, as if the grown model had had them; nothing for new slots."""
    return _grown(old, axes, [axis.moment_I for axis in axes], lambda part, *_: part.zero_())


def second_moment(old: Tensor, axes: Sequence[Axis]) -> Tensor:
    """A running mean of squared gradients. New slots get the mean of the old: with nothing, Adam's first steps would be far too long."""
    squares = [axis.moment_I.square() for axis in axes]
    return _grown(old, axes, squares, lambda part, *_: part.fill_(old.mean()))


def _grown(
    old: Tensor, axes: Sequence[Axis], factors: Sequence[Tensor], fill: Callable[[Tensor, Axis, Tensor, Tensor], object]
) -> Tensor:
    """Every number is written once. `fill` gets new slots, their axis, the old rows that they stand beside, and the rows' factors."""
    if old.dim() == 1:
        return _grown(old[None], [kept(1), *axes], [torch.ones(1), *factors], fill)[0]
    rows, columns = axes
    factor_R1, factor_C = factors[0].to(old.device, old.dtype)[:, None], factors[1].to(old.device, old.dtype)
    uneven_R, uneven_C = (bool((factor != 1).any()) for factor in factors)
    found = old.new_empty(len(rows.source_I), len(columns.source_I))
    for row in rows.runs:
        if row.source < 0:
            whole = found[row.here]
            whole.zero_() if row.source == ZERO else fill(whole, rows, old, factor_R1)
            continue
        for column in columns.runs:
            part, source = found[row.here, column.here], old[row.there]
            if column.source >= 0:
                used = [factor_R1[row.here]] * uneven_R + [factor_C[column.here]] * uneven_C
                _copy(source[:, column.there], used, part)
            elif column.source == ZERO:
                part.zero_()
            else:
                fill(part, columns, source, factor_R1[row.here])
    return found


def _copy(old: Tensor, factors: Sequence[Tensor], out: Tensor) -> None:
    """Old numbers times their factors, in no more passes than there are factors."""
    if not factors:
        out.copy_(old)
    for n, factor in enumerate(factors):
        torch.mul(out if n else old, factor, out=out)


def _size(factor_I: Tensor) -> float:
    """How much larger copies are than what they are copied from."""
    return factor_I.square().mean().sqrt().item()
