"""One file per paper; the file's name is the method's name.

Nothing is registered: `find("ki")` imports `methods/ki.py`, and only it. Packages elsewhere offer more under the
entry-point group `bequest.methods`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points

from ..train.plan import Method
from ..types import RecipeError

GROUP = "bequest.methods"


def names() -> list[str]:
    """Every method that can be used here."""
    return sorted({*_built_in(), *(e.name for e in entry_points(group=GROUP))})


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises RecipeError with the nearest name when there is none.
    """
    if name in _built_in():
        module = importlib.import_module(f"{__name__}.{name}")
        (found,) = (
            v
            for v in vars(module).values()
            if isinstance(v, type) and issubclass(v, Method) and v.__module__ == module.__name__
        )
        return found
    for entry in entry_points(group=GROUP, name=name):
        loaded: type[Method] = entry.load()
        return loaded
    close = difflib.get_close_matches(name, names(), 1)
    raise RecipeError(
        f"there is no method {name!r}; "
        + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names())}")
    )


def _built_in() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__)]
