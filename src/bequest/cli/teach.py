"""`bequest teach`: harvest, or look into a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import sense
from ..types import ModelError

FAR = 0.05
"""Nats by which bf16 and another machine do not change a token's log-probability on average."""


def command(path: Path, overrides: tuple[str, ...]) -> None:
    """Harvest, and say what came out."""
    recipe = sense.load(path, overrides)
    from ..job.inspect import describe  # a mistake in the recipe should not wait for torch
    from ..job.teach import teach

    with sense.named(path):
        found = teach(recipe)
    for name, store in found.items():
        _show(f"{name}: {store.folder}", describe(store))


def inspect(folder: Path, path: Path | None, overrides: tuple[str, ...]) -> None:
    """Print what a store holds after reading every byte, and with a recipe how far it is from its teacher."""
    recipe = sense.load(path, overrides) if path else None
    from ..job import inspect
    from ..model import build
    from ..teach.store import open_store

    build.quiet()
    store = open_store(folder)
    store.verify()
    _show(str(folder), inspect.describe(store))
    print("every byte is what was written")
    if recipe:
        found = inspect.against_teacher(store, recipe)
        kind = store.manifest.form.kind
        what = {"topk": "KL(live || stored)", "sampled": "cross-entropy of the draws less entropy, 0 but for chance:"}[
            kind
        ]
        print(
            f"against the live teacher, {found['rows']:,} rows: {what} {found['kl']:.5f} +- {found['kl_error']:.5f} nats;"
        )
        print(f"log-probabilities of the text differ by {found['target']:.5f} nats on average")
        if found["target"] > FAR:
            raise ModelError(f"{folder} does not hold what this teacher says; harvest it again into another store")


def _show(title: str, found: Mapping[str, Any]) -> None:
    temperatures = ", ".join(f"{t:g}" for t in found["temperatures"])
    print(title)
    print(f"  teacher    {found['teacher']}")
    print(f"  signal     {found['form']} at temperature {temperatures}; {found['objective']}")
    print(f"  text       {found['sequences']:,} sequences of {found['sequence']} positions, {found['rows']:,} rows")
    print(f"  disk       {found['bytes_per_row']:.1f} bytes per row, {found['shards']:,} shards")
    rest = f"mass of the rest {found['rest']:.3f} at temperature {found['temperatures'][0]:g}"
    print(f"  kept       {found['kept_per_row']:.1f} ids per row; {rest}")
    print(f"  the teacher's own loss on it: {found['teacher_loss']:.4f}; harvested for {found['flops']:.4g} FLOPs")
    if not found["rows"]:
        print("  nothing is harvested yet")
        return
    print("  ids kept   rows (of a sample)")
    edges, most = found["kept_from"], max([1, *found["kept_rows"]])
    for edge, rows in zip(edges, found["kept_rows"], strict=True):
        print(f"  {edge:>6} on  {'#' * round(40 * rows / most):<40} {rows:,}")
