"""Write the tables of `recipes.md` from the dataclasses that recipes decode into: `python docs/generate.py`.

What stands above the marker in the page is written by hand and kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bequest import config, methods
from bequest.compare.sweep import Sweep
from bequest.config import Config
from bequest.model.grow.growth import Growth
from bequest.recipe import MAY_CHANGE, Recipe

PAGE = Path(__file__).with_name("recipes.md")
MARKER = "<!-- Below this line everything is written by docs/generate.py. -->\n"


def page() -> str:
    """The page as it should be."""
    above, _, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    return above + MARKER + "\n" + "\n".join(_tables())


def _tables() -> Iterator[str]:
    for cls, places in _places(Recipe).items():
        yield "## " + (" and ".join(f"`{place}`" for place in places) if all(places) else "The whole") + "\n"
        yield from _table(cls)
    for name in methods._built_in():
        yield f"## `method`: `{name}`\n"
        yield from _table(methods.find(name))
    yield "## `bequest grow`\n"
    yield from _table(Growth)
    yield "## Sweeps\n\nThe files of `bequest compare`; see [](comparing.md).\n"
    for cls, places in _places(Sweep).items():
        yield "### " + (" and ".join(f"`{place}`" for place in places) if all(places) else "The whole sweep") + "\n"
        yield from _table(cls)
    yield "## What may change when a run is resumed\n"
    yield ", ".join(f"`{key}`" for key in MAY_CHANGE) + ". A change of any other key needs a new run folder."
    yield ""


def _places(cls: type[Config], place: str = "") -> dict[type[Config], list[str]]:
    """Every config inside another and where it stands, in the order of the recipe."""
    found = {cls: [place]}
    for key, hint in config._fields(cls).items():
        if inner := config._inner(hint):
            within = {"tuple": ".0", "dict": ".NAME"}.get(getattr(hint, "__name__", ""), "")
            for one, places in _places(inner, f"{place}.{key}{within}".removeprefix(".")).items():
                found.setdefault(one, []).extend(places)
    return found


def _table(cls: type[Config]) -> Iterator[str]:
    yield config.schema(cls)["description"] + "\n"
    keys = config.keys(cls)
    if not keys:
        yield "It has no keys of its own.\n"
        return
    inner = {key for key, hint in config._fields(cls).items() if config._inner(hint)}
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    for key in keys:
        default = f"`{key.default}`" if key.default else "*required*"
        if key.default in ('""', "null", "[]") or (key.name in inner and key.default):
            default = "none" if not key.default.startswith("{") else "see its table"
        meaning = key.meaning or ("See the table of this name." if key.name in inner else "")
        values = key.values.removesuffix(" or null")
        cells = [
            f"`{key.name}`",
            *(text.replace("|", "\\|").replace("<", "\\<") for text in (values, default, meaning)),
        ]
        yield "| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
