"""`bequest grow`: a larger model from a saved one."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from ..job import grow, look
from ..report import table


def command(source: str, out: Path, assignments: Sequence[str], exact: bool, data: Sequence[str]) -> None:
    """Grow, and print what it did."""
    out = Path(os.path.normpath(out))
    texts = [look.text_entry(argument) for argument in data]
    growth = grow.read(assignments)
    found = grow.grow(source, out, growth, exact, texts, shlex.join(["bequest", *sys.argv[1:]]))
    table.show(_table(found))
    print(f"not exact: {found.inexact}" if found.inexact else "exact: it computes what its predecessor computes")
    print(f"largest difference of logits over the largest logit: {found.difference:.2g}")
    rounded = "" if found.precision == "float32" else " (measured in fp32: saving rounds)"
    print(f"grown in {found.seconds:.2f} s; saved as {found.precision}, like its predecessor{rounded}: {out}")


def _table(found: grow.Grown) -> Table:
    shown = Table()
    for column in ("", "before", "after"):
        shown.add_column(column, justify="left" if not column else "right")
    old, new = (asdict(sizes) for sizes in found.sizes)
    for name in old:
        shown.add_row(name.replace("_", " "), f"{old[name]:,}", f"{new[name]:,}")
    shown.add_row("parameters", *(f"{count:,}" for count in found.parameters))
    for source in found.valid[0]:
        shown.add_row(f"loss on {source}", *(f"{valid[source]['loss']:.4f}" for valid in found.valid))
    return shown
