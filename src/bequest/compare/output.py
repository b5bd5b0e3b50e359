"""Where a sweep's results go: results.json and clock.json, one HTML page, and a fragment of markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import locked, replace_text
from .fragment import fragment
from .page import page


def write(results: Mapping[str, Any], clock: Mapping[str, Any], folder: Path) -> None:
    """Write a sweep's results into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=True):  # processes that share a sweep may end together
        for name, found in (("results.json", results), ("clock.json", clock)):
            replace_text(folder / name, json.dumps(found, indent=1, allow_nan=False) + "\n")
        replace_text(folder / "index.html", page(results, clock))
        replace_text(folder / "fragment.md", fragment(results, clock))
