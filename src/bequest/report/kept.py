"""What was kept of stored teachers, as a part of the report."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .record import Record

BAR, HEIGHT = 30, 60
"""Pixels."""


def section(records: Sequence[Record]) -> str:
    """A line and a histogram for every store that some runs learned from; nothing where there is none."""
    stores = {store["folder"]: store for record in records for store in record.stores.values()}
    return "<h2>Stored teachers</h2>" + "".join(map(_store, stores.values())) if stores else ""


def _store(store: Mapping[str, Any]) -> str:
    about = (
        f"{store['form']} of {store['teacher']}: {store['rows']:,} rows of {store['bytes_per_row']:.1f} bytes, "
        f"{store['kept_per_row']:.1f} ids each, mass of the rest {store['rest']:.3f}; "
        f"harvested for {store['flops']:.3g} FLOPs, once"
    )
    caption = "rows of a sample by how many ids they keep: so many, up to the next bar"
    picture = f"<figure>{_histogram(store['kept_from'], store['kept_rows'])}<figcaption>{caption}</figcaption></figure>"
    return f"<p>{html.escape(about)} <small>{html.escape(store['folder'])}</small></p>{picture}"


def _histogram(edges: Sequence[int], rows: Sequence[int]) -> str:
    scale, bars = HEIGHT / max([1, *rows]), []
    for place, (edge, count) in enumerate(zip(edges, rows, strict=True)):
        left, height = BAR * place, scale * count
        box = f'x="{left}" y="{HEIGHT - height:.1f}" width="{BAR - 4}" height="{height:.1f}"'
        bars.append(f"<rect {box}><title>{count:,} rows</title></rect>")
        bars.append(f'<text x="{left + BAR / 2 - 2}" y="{HEIGHT + 14}">{edge}</text>')
    width = BAR * len(edges)
    return f'<svg class="kept" viewBox="0 0 {width} {HEIGHT + 20}" width="{width}" role="img">{"".join(bars)}</svg>'
