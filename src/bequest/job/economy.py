"""Live or stored: what a teacher costs each way in a recipe, as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..model import build
from ..model.flops import forward_flops
from ..recipe import Recipe, TeacherModel
from ..teach.layout import Layout
from ..teach.store import open_store
from ..train.plan import Method
from .asked import Asking, questions
from .prepare import Prepared
from .teach import form_of

SEQUENCE_BYTES = 32
"""Of a shard's index."""


def sentences(recipe: Recipe, prepared: Prepared, method: Method, runs_ask: float) -> Iterator[str]:
    """One for each teacher that is asked. `runs_ask` is how many sequences one run asks about, repetitions counted."""
    asking = {name: found for name, found in questions(recipe, prepared, method).items() if found.sequences}
    times = runs_ask / max(1, sum(found.sequences for found in asking.values()))
    for name, found in asking.items():
        spec = recipe.teachers[name]
        yield _stored(name, spec, found, times) if spec.store else _live(name, recipe, prepared, found, times)


def _stored(name: str, spec: TeacherModel, found: Asking, times: float) -> str:
    manifest = open_store(Path(spec.store)).manifest
    flops = manifest.total("flops")
    live = times * found.sequences * flops / max(1.0, manifest.total("sequences"))
    return (
        f"{name}: stored; its store took {flops:.3g} FLOPs once and {manifest.total('bytes') / 1e6:,.1f} MB; "
        f"live it would cost this run {live:.3g} FLOPs (the text is asked about {_repeated(times)})"
    )


def _live(name: str, recipe: Recipe, prepared: Prepared, found: Asking, times: float) -> str:
    spec, one = recipe.teachers[name], found.asked[0]
    batch = one.batches.of(np.sort(one.places)[:1])
    rows = len(batch.rows.index_N)
    each = forward_flops(build.outline(spec.load, recipe.data.objective, spec.remote_code), batch)
    form = form_of(name, recipe, prepared.vocabulary, found.temperatures)
    kept = min(form.keep or form.vocabulary, form.draws or form.vocabulary)
    size = found.sequences * (rows * form.codec(Layout(form.vocabulary, 0)).row_bytes(kept) + SEQUENCE_BYTES)
    once, every = found.sequences * each, times * found.sequences * each
    # A store pays as soon as the runs that read it would together have asked more often than once.
    first = math.floor(1 / times) + 1
    when = "in this run already" if first == 1 else f"with run {first} that learns from it"
    return (
        f"{name}: live, {every:.3g} FLOPs in every run (the text is asked about {_repeated(times)}); bequest teach would store "
        f"it ({form.name}) for {once:.3g} FLOPs once and at most {size / 1e6:,.1f} MB, and pay {when}"
    )


def _repeated(times: float) -> str:
    return "once" if times < 1.05 else f"{times:.1f} times"
