"""YAML as recipes speak it, and nothing that only PyYAML would make of it.

YAML 1.2 in the points where people stumble: `3e-3` is a number, `no` is text, a key that stands twice is an error. No tags,
no dates, no values that stand for millions of others.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import yaml

from .types import RecipeError

DEEPEST, MOST_VALUES = 50, 100_000
"""More levels or values are no recipe."""


def load(text: str, where: str) -> Any:
    """The value that a text stands for.

    Raises RecipeError that says what is wrong and in which line; `where` names the text.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{line}: not valid YAML ({problem}); mend that place") from None
    except (ValueError, OverflowError) as error:  # "\\U00110000", or a number of thousands of digits
        raise RecipeError(f"{where}: not valid YAML ({error}); mend that place") from None
    except RecursionError:
        raise RecipeError(f"{where}: too many brackets inside one another; a recipe is a mapping of keys") from None


def dump(value: Any) -> str:
    """Plain values as a text that `load` gives back unchanged."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """Refuses what goes too deep or stands for too much."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.values = 0
        self.sizes: dict[Any, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        fault = partial(yaml.composer.ComposerError, None, None, problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise fault("tags such as !!binary have no meaning here")
        if self.depth == DEEPEST:
            raise RecursionError
        before, self.depth = self.values, self.depth + 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self.sizes:
                raise fault("an alias inside what it stands for")
            self.values += self.sizes[node]
        else:
            self.values += 1
            self.sizes[node] = self.values - before
        if self.values > MOST_VALUES:
            raise fault(f"more than {MOST_VALUES} values, with those that aliases stand for")
        return node

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise yaml.constructor.ConstructorError(None, None, "half a surrogate pair is not text", node.start_mark)
        return text


def _number(loader: Any, node: Any) -> int | float:
    text = node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
    try:
        number = float(text)
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not a number", node.start_mark) from None
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    return int(number) if "e" in text and number.is_integer() else number  # 4e6 tokens is a count


def _mapping(loader: Any, node: Any) -> dict[str, Any]:
    loader.flatten_mapping(node)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if not key.isprintable():
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is no key", key_node.start_mark)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in rules if tag.rsplit(":", 1)[1] not in ("float", "int", "bool", "timestamp")
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
NUMBER = re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
