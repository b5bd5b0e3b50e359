"""What is in a store: its manifest, what was kept of a row, and whether it still is what the teacher says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.mix import Stream
from ..device import settle
from ..model.tiled import rows_at_once
from ..recipe import Recipe
from ..teach.live import Live
from ..teach.signals import signal
from ..teach.store import Store
from ..types import RecipeError, Signal
from .asked import questions
from .models import opener
from .prepare import find_method, prepare

SAMPLE = 64
"""Sequences that are looked at."""
BARS = 12


def describe(store: Store) -> dict[str, Any]:
    """What a store holds, in plain values; the histogram of ids kept per row is that of a sample."""
    manifest = store.manifest
    rows = max(1.0, manifest.total("rows"))
    lineage = manifest.teacher.lineage
    disk = sum(file.stat().st_size for file in store.folder.iterdir() if file.is_file())
    edges, counts = _histogram(store)
    return {
        "folder": str(store.folder),
        "teacher": f"{lineage['name']}, {lineage['parameters']:,} parameters, weights {manifest.teacher.weights}",
        "form": manifest.form.name,
        "temperatures": list(manifest.form.temperatures),
        "sequence": manifest.packing.sequence,
        "objective": manifest.packing.objective,
        "shards": len(manifest.shards),
        "sequences": int(manifest.total("sequences")),
        "rows": int(manifest.total("rows")),
        "bytes_per_row": disk / rows,
        "kept_per_row": manifest.total("kept") / rows,
        "rest": manifest.total("rest") / rows,
        "teacher_loss": manifest.total("nats") / rows,
        "flops": manifest.total("flops"),
        "kept_from": edges,
        "kept_rows": counts,
    }


def _histogram(store: Store) -> tuple[list[int], list[int]]:
    """How many sampled rows keep how many ids: the bars' lower edges and their rows."""
    found = [store.entries(key).sizes_R for key in store.sample(SAMPLE)]
    sizes_R = np.concatenate([*found, np.zeros(0, np.int64)])
    least, most = int(sizes_R.min(initial=1 << 20)), int(sizes_R.max(initial=1))
    edges = np.unique(np.linspace(min(least, most), most + 1, min(BARS, max(1, most + 1 - least)) + 1).astype(int))
    return edges[:-1].tolist(), np.histogram(sizes_R, edges)[0].tolist()


def against_teacher(store: Store, recipe: Recipe) -> dict[str, float]:
    """The store against its teacher, asked again about a sample of what the recipe asks.

    kl: extra KL(live || stored) over the kept ids and the rest, in nats (topk), or the cross-entropy of the draws against
    the live distribution less its entropy, zero but for chance (sampled), with its standard error. target: the mean
    difference of the realised tokens' log-probabilities.
    """
    name = next(
        (
            n
            for n, t in recipe.teachers.items()
            if t.load and t.store and Path(t.store).resolve() == store.folder.resolve()
        ),
        None,
    )
    if name is None:
        raise RecipeError(
            f"no teacher of the recipe has load and store: {store.folder}; name the recipe it was made with"
        )
    spec, where = recipe.teachers[name], settle(recipe.train)
    asking = replace(recipe, teachers=recipe.teachers | {name: replace(spec, store="")})
    prepared = prepare(asking)
    asked = questions(asking, prepared, find_method(recipe))[name].asked
    teacher = Live(partial(opener(recipe, where.device), spec), prepared.vocabulary.size, 0, where.autocast)
    held = [
        (one.batches, p) for one in asked for p, k in zip(one.places, one.keys, strict=True) if not store.missing([k])
    ]
    chosen = held[:: max(1, len(held) // SAMPLE)][:SAMPLE]
    if not chosen:
        raise RecipeError(
            f"the store {store.folder} holds nothing of what the recipe asks; name the recipe it was made with"
        )
    found = [_difference(store, teacher, batches, int(at), where.device) for batches, at in chosen]
    extra_N, target_N = (torch.cat(column) for column in zip(*found, strict=True))
    error = float(extra_N.std() / len(extra_N) ** 0.5)
    return {"rows": len(extra_N), "kl": float(extra_N.mean()), "kl_error": error, "target": float(target_N.mean())}


def _difference(store: Store, teacher: Live, batches: Stream, at: int, device: str) -> tuple[Tensor, Tensor]:
    """Of each row of a sequence: what storing lost, and how far the realised token's log-probability is off."""
    form, batch = store.manifest.form, batches.of(np.array([at]))
    held = signal(store.entries(batch.keys[0]), form, form.temperatures[0])
    assert held.logp_target_N is not None
    batch = batch.to(device)
    answer, plain = teacher(batch, form.temperatures[0]), teacher(batch, 1.0)
    extra, target = [], []
    for first in range(0, len(held.logp_NK), rows_at_once(form.vocabulary, device)):
        rows = slice(first, first + rows_at_once(form.vocabulary, device))
        extra.append(_lost(answer[rows].logp_NK.cpu(), held[rows]))
        logp_CV, target_C = plain[rows].logp_NK.cpu(), batch.rows.target_N[rows].cpu()
        target.append((logp_CV.gather(1, target_C[:, None])[:, 0] - held.logp_target_N[rows]).abs())
    return torch.cat(extra), torch.cat(target)


def _lost(logp_CV: Tensor, held: Signal) -> Tensor:
    assert held.ids_NK is not None
    live_CK, p_CK = logp_CV.gather(1, held.ids_NK), held.logp_NK.exp()
    if held.logrest_N is None:  # draws: their cross-entropy is the entropy but for chance
        drawn_C: Tensor = -(p_CK * live_CK).sum(-1) - torch.special.entr(logp_CV.exp()).sum(-1)
        return drawn_C
    kept_CK = live_CK.exp() * (held.logp_NK > -torch.inf)
    rest_C = (1.0 - kept_CK.sum(-1)).clamp_min(0.0)
    stored_CK = held.logp_NK.masked_fill(held.logp_NK == -torch.inf, 0.0)
    lost_C: Tensor = torch.special.xlogy(kept_CK, kept_CK).sum(-1) - (kept_CK * stored_CK).sum(-1)
    rest_loss_C: Tensor = torch.special.xlogy(rest_C, rest_C) - rest_C * held.logrest_N.clamp_min(-100.0)
    return lost_C + rest_loss_C
