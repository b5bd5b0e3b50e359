"""`bequest teach`."""

from __future__ import annotations

from pathlib import Path

from .. import recipe as recipes


def command(path: Path, overrides: tuple[str, ...]) -> None:
    """Harvest, and say what came out."""
    recipe = recipes.load(path, overrides)
    from ..job.teach import teach  # a mistake in the recipe should not wait for torch

    with recipes.named(path):
        found = teach(recipe)
    for name, store in found.items():
        print(f"{name}: {store.folder}")
