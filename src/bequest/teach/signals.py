"""The two kinds of signal that are kept: the likeliest ids with the mass of the rest, and unbiased draws.

topk     log-probabilities at temperature 1 and, for every temperature that may be asked, the log-odds of the rest: with
         them the kept entries can be re-tempered exactly.
sampled  how often each id came in n draws from the distribution at one temperature (Sparse Logit Sampling, Anshumann et
         al. 2025, arXiv 2503.16870), and the distribution's entropy, so that the loss has the value of the dense one.

Either may be adaptive: of every row first the ids that make up `top_p`, then at most `keep` of them. Draws are then
draws from what was left, unbiased for that alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types as at
import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config, Count, Positive, Temperature
from ..model.tiled import draw, largest
from ..types import ModelError, Signal
from .codec import Codec, Entries
from .layout import Ints, Layout


class Form(Config):
    """What is kept of every row."""

    kind: Literal["topk", "sampled"]
    vocabulary: Positive
    keep: Count
    """At most so many ids; 0 is no limit."""
    top_p: Annotated[float, at.Gt(0.0), at.Le(1.0)]
    draws: Count
    temperatures: tuple[Temperature, ...]
    """topk: those that may be asked; sampled: the one that is drawn at."""
    values: Literal["6bit", "fp32"]

    def codec(self, layout: Layout) -> Codec:
        """How it becomes bytes. Scalars: the realised token, then the rests' log-odds or the entropy."""
        scalars = 1 + (1 if self.draws else len(self.temperatures))
        return Codec(self.vocabulary, self.draws, scalars, layout, self.values)

    def require(self, temperature: float) -> None:
        """Raises ModelError when it does not hold a temperature."""
        if temperature not in self.temperatures:
            held = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ModelError(
                f"the stored signals ({self.name}) hold temperature {held}, not {temperature:g}; harvest them again with "
                f"teach.temperatures: [{temperature:g}] into another store, or ask at {held}"
            )

    @property
    def name(self) -> str:
        """topk-32, sampled-50, adaptive topk-32."""
        count = self.draws or self.keep or self.vocabulary
        return f"{'adaptive ' if self.top_p < 1 or (self.draws and self.keep) else ''}{self.kind}-{count}"


@dataclass(frozen=True)
class _Ragged:
    """Kept ids of C rows on their device: a grid and which of its places hold one; draws come in ascending order."""

    ids_CK: Tensor
    values_CK: Tensor
    kept_CK: Tensor
    scalars_CS: Tensor


def entries(logits_CV: Tensor, target_C: Tensor, form: Form, uniform_Cn: Tensor | None) -> Entries:
    """What is kept of a chunk of fp32 logits and their realised tokens; `uniform_Cn` are the numbers to draw with."""
    found = (
        _likeliest(logits_CV, target_C, form) if uniform_Cn is None else _drawn(logits_CV, target_C, form, uniform_Cn)
    )
    if uniform_Cn is None:
        ids_CK, order = found.ids_CK.sort(-1)
        found = _Ragged(ids_CK, found.values_CK.gather(1, order), found.kept_CK.gather(1, order), found.scalars_CS)
    ids_E, values_E = (grid[found.kept_CK].cpu().numpy() for grid in (found.ids_CK, found.values_CK))
    sizes_C = found.kept_CK.sum(-1).cpu().numpy()
    return Entries(sizes_C, ids_E, values_E.astype(np.float32), found.scalars_CS.cpu().numpy())


def _masses(logits_CV: Tensor, peak_C1: Tensor, temperature: float) -> Tensor:
    """Each id's probability over that of the likeliest. Powers of two take PyTorch a third of the time of powers of e."""
    return (logits_CV - peak_C1).mul_(1.0 / (math.log(2.0) * temperature)).exp2_()


def _likeliest(logits_CV: Tensor, target_C: Tensor, form: Form) -> _Ragged:
    top_CK, ids_CK = largest(logits_CV, min(form.keep or form.vocabulary, form.vocabulary))
    peak_C1 = top_CK[:, :1]
    kept_CK, normaliser_C = torch.ones_like(ids_CK, dtype=torch.bool), peak_C1[:, 0]
    odds: dict[float, Tensor] = {}
    for temperature in dict.fromkeys((1.0, *form.temperatures)):
        mass_CV = _masses(logits_CV, peak_C1, temperature)
        mass_CK = mass_CV.gather(1, ids_CK)
        # Summed over what is left, not 1 - sum(kept): the difference would be rounding once the teacher is sure.
        rest_C = mass_CV.scatter_(1, ids_CK, 0.0).sum(-1)
        if temperature == 1.0:
            total_C = mass_CK.sum(-1) + rest_C
            normaliser_C = peak_C1[:, 0] + total_C.log()
            # An id stays while those before it fall short of top_p.
            kept_CK = mass_CK.cumsum(-1) - mass_CK < form.top_p * total_C[:, None] if form.top_p < 1 else kept_CK
        if temperature in form.temperatures:
            left_C = rest_C + (mass_CK * ~kept_CK).sum(-1)
            odds[temperature] = left_C.log() - (mass_CK * kept_CK).sum(-1).log()
    logp_target_C = logits_CV.gather(1, target_C[:, None])[:, 0] - normaliser_C
    scalars_CS = torch.stack([logp_target_C, *(odds[temperature] for temperature in form.temperatures)], 1)
    return _Ragged(ids_CK, top_CK - normaliser_C[:, None], kept_CK, scalars_CS)


def _drawn(logits_CV: Tensor, target_C: Tensor, form: Form, uniform_Cn: Tensor) -> _Ragged:
    from_some = _from_likeliest if form.keep else _from_all
    ids_Cn, entropy_C, normaliser_C = from_some(logits_CV, form, uniform_Cn)
    ids_Cn = ids_Cn.sort(-1).values
    last_Cn = torch.ones_like(ids_Cn, dtype=torch.bool)
    last_Cn[:, :-1] = ids_Cn[:, 1:] != ids_Cn[:, :-1]  # where the run of an id ends
    place_Cn = torch.arange(1, ids_Cn.shape[1] + 1, device=ids_Cn.device).expand_as(ids_Cn)
    before_Cn = torch.where(last_Cn, place_Cn, 0).cummax(-1).values.roll(1, -1)
    before_Cn[:, 0] = 0
    logp_target_C = logits_CV.gather(1, target_C[:, None])[:, 0] - normaliser_C
    return _Ragged(ids_Cn, place_Cn - before_Cn, last_Cn, torch.stack([logp_target_C, entropy_C], 1))


def _from_all(logits_CV: Tensor, form: Form, uniform_Cn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws, the distribution's entropy, and the normaliser at temperature 1."""
    (temperature,), peak_C1 = form.temperatures, logits_CV.amax(-1, keepdim=True)
    mass_CV = _masses(logits_CV, peak_C1, temperature)
    ids_Cn, total_C = draw(mass_CV, uniform_Cn), mass_CV.sum(-1)
    tempered_C = peak_C1[:, 0] / temperature + total_C.log()
    # Not a dot product: under autocast that would be one in bf16.
    entropy_C = tempered_C - mass_CV.mul_(logits_CV).sum(-1) / (temperature * total_C)
    return ids_Cn, entropy_C, tempered_C if temperature == 1.0 else logits_CV.logsumexp(-1)


def _from_likeliest(logits_CV: Tensor, form: Form, uniform_Cn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, drawn from the likeliest ids alone."""
    (temperature,), normaliser_C = form.temperatures, logits_CV.logsumexp(-1)
    top_CK, ids_CK = largest(logits_CV, min(form.keep, form.vocabulary))
    p_CK = (top_CK - normaliser_C[:, None]).exp()
    allowed_CK = p_CK.cumsum(-1) - p_CK < form.top_p
    drawn_CK = (top_CK / temperature).masked_fill(~allowed_CK, -torch.inf).softmax(-1)
    return ids_CK.gather(1, draw(drawn_CK, uniform_Cn)), torch.special.entr(drawn_CK).sum(-1), normaliser_C


def signal(found: Entries, form: Form, temperature: float, device: torch.device | str = "cpu") -> Signal:
    """The entries as what a predecessor says at a temperature.

    Raises ModelError for a temperature that they do not hold.
    """
    form.require(temperature)
    sizes_R, most = found.sizes_R, int(found.sizes_R.max(initial=1))
    row_E = np.repeat(np.arange(len(sizes_R)), sizes_R)
    first_R = np.cumsum(sizes_R) - sizes_R
    ids_RK = np.repeat(found.ids_E[np.minimum(first_R, len(found.ids_E) - 1)][:, None], most, 1)
    values_RK = np.full((len(sizes_R), most), -np.inf, np.float32)
    column_E = np.arange(len(row_E)) - first_R[row_E]
    ids_RK[row_E, column_E] = found.ids_E
    values_RK[row_E, column_E] = np.log(found.values_E / form.draws) if form.draws else found.values_E
    ids, values, scalars = (torch.from_numpy(a).to(device) for a in (ids_RK, values_RK, found.scalars_RS))
    if form.draws:
        return Signal(ids, values, None, whole_entropy_N=scalars[:, 1], logp_target_N=scalars[:, 0])
    odds_N = scalars[:, 1 + form.temperatures.index(temperature)]
    logp_NK = (values / temperature).log_softmax(-1) + nn.functional.logsigmoid(-odds_N)[:, None]
    return Signal(ids, logp_NK, nn.functional.logsigmoid(odds_N), logp_target_N=scalars[:, 0])


def joined(parts: Sequence[Entries]) -> Entries:
    """Entries of several blocks, one after another."""
    columns = ([getattr(part, name) for part in parts] for name in ("sizes_R", "ids_E", "values_E", "scalars_RS"))
    return Entries(*(np.concatenate(column) for column in columns))


def split(found: Entries, rows: Sequence[int]) -> list[Entries]:
    """Entries cut into blocks of so many rows."""
    edges: Ints = np.cumsum([0, *rows])
    at_entry = np.concatenate([[0], np.cumsum(found.sizes_R)])[edges]
    return [
        Entries(found.sizes_R[a:b], found.ids_E[e:f], found.values_E[e:f], found.scalars_RS[a:b])
        for a, b, e, f in zip(edges[:-1], edges[1:], at_entry[:-1], at_entry[1:], strict=True)
    ]
