"""Write the tables of `recipes.md` from the dataclasses that recipes decode into: `python docs/generate.py`.

What stands above the marker in the page is written by hand and kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bequest import config, methods
from bequest.recipe import MAY_CHANGE, Recipe

PAGE = Path(__file__).with_name("recipes.md")
MARKER = "<!-- Below this line everything is written by docs/generate.py. -->\n"
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
LARGEST = 1e15
"""Bounds from here on only keep numbers representable and are left out."""

Schema = Mapping[str, Any]


def page() -> str:
    """The page as it should be."""
    above, _, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    return above + MARKER + "\n" + "\n".join(_tables())


def _tables() -> Iterator[str]:
    root = config.schema(Recipe)
    definitions = root["$defs"]
    yield "## The whole\n"
    yield from _table(root)
    for name, places in _places(root, definitions).items():
        yield "## " + " and ".join(f"`{place}`" for place in places) + "\n"
        yield definitions[name]["description"] + "\n"
        yield from _table(definitions[name])
    for name in methods._built_in():
        own = config.schema(methods.find(name))
        yield f"## `method`: `{name}`\n"
        yield own["description"] + "\n"
        yield from _table(own) if own["properties"] else ["It has no keys of its own.\n"]
    yield "## What may change when a run is resumed\n"
    yield ", ".join(f"`{key}`" for key in MAY_CHANGE) + ". A change of any other key needs a new run folder."
    yield ""


def _places(schema: Schema, definitions: Schema, prefix: str = "") -> dict[str, list[str]]:
    """Where each inner mapping stands in a recipe, in the order of the recipe."""
    found: dict[str, list[str]] = {}
    for key, value in schema["properties"].items():
        for name in dict.fromkeys(re.findall(r"#/\$defs/(\w+)", json.dumps(value))):
            place = prefix + key + {"array": ".0", "object": ".NAME"}.get(value.get("type"), "")
            deeper = {name: [place]}
            deeper |= _places(definitions[name], definitions, place + ".")
            for inner, places in deeper.items():
                found.setdefault(inner, []).extend(places)
    return found


def _table(schema: Schema) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    needed = schema.get("required", [])
    for key, value in schema["properties"].items():
        default = "*required*" if key in needed else _default(value)
        meaning = value.get("description", "").replace("\n", " ") or _reference(value)
        cells = (f"`{key}`", _type(value), default, meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |"
    yield ""


def _reference(value: Schema) -> str:
    return "See the table of this name." if "$ref" in json.dumps(value) else ""


def _type(value: Schema) -> str:
    if "anyOf" in value:
        return " or ".join(_type(one) for one in value["anyOf"] if one.get("type") != "null")
    if "enum" in value:
        return ", ".join(f"`{one or json.dumps('')}`" for one in value["enum"])
    match value.get("type"):
        case "array" if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])}: {_type(value['prefixItems'][0])}"
        case "array":
            return "list of mappings"
        case "object":
            return "mapping"
        case None:
            return "mapping"
    return WORDS[value["type"]] + _bounds(value)


def _bounds(value: Schema) -> str:
    low, high = value.get("minimum"), value.get("maximum", value.get("exclusiveMaximum", LARGEST))
    above = value.get("exclusiveMinimum")
    if value["type"] == "integer" and above is not None:
        low, above = above + 1, None
    start = f" above {_number(above)}" if above is not None else f" from {_number(low)}" if low is not None else ""
    return start + (f" to {_number(high)}" if high < LARGEST else "")


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(value: Schema) -> str:
    default = value.get("default")
    if default is None or default in ("", []):
        return "none"
    if isinstance(default, dict):
        return "see its table"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
