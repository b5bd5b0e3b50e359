"""Read a recipe, override it, decode it into frozen dataclasses: the only file that knows YAML and pydantic.

Recipes are YAML 1.2 in the points where people stumble over PyYAML: `3e-3` is a number, `no` is text, a key that
stands twice is an error. Decoding is strict: text is not a number, 1 is not a boolean.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_args, get_type_hints

import annotated_types as at

from .types import RecipeError

Positive = Annotated[int, at.Gt(0), at.Lt(1 << 50)]
Count = Annotated[int, at.Ge(0), at.Lt(1 << 50)]
BelowOne = Annotated[float, at.Ge(0.0), at.Lt(1.0)]
Share = Annotated[float, at.Ge(0.0), at.Le(1.0)]
# Floats whose square is still a number in fp32.
NotNegative = Annotated[float, at.Ge(0.0), at.Le(1e15)]
AboveZero = Annotated[float, at.Gt(0.0), at.Le(1e15)]
Temperature = Annotated[float, at.Ge(0.01), at.Le(100.0)]

DEEPEST, MOST_VALUES = 50, 100_000
"""More levels or values of YAML are no recipe."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Config:
    """Base of everything that a recipe decodes into: subclasses are frozen dataclasses that refuse unknown keys."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False, "use_attribute_docstrings": True}

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)


C = TypeVar("C", bound=Config)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises RecipeError when the file is missing or is not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"the recipe {path} is not UTF-8 text; give the path of a YAML file") from None
    found = parse(text, str(path))
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping of keys to values, but this is {_kind(found)}")
    return found


def parse(text: str, where: str) -> Any:
    """The value that a piece of YAML stands for; `where` names it in errors."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{line}: not valid YAML ({problem}); mend that place") from None
    except (ValueError, OverflowError) as error:  # "\\U00110000", or a number of thousands of digits
        raise RecipeError(f"{where}: not valid YAML ({error}); mend that place") from None
    except RecursionError:
        raise RecipeError(f"{where}: too many brackets inside one another; a recipe is a mapping of keys") from None


def write(value: Mapping[str, Any], path: Path) -> None:
    """Write a mapping as YAML that `read` gives back unchanged."""
    path.write_text(text_of(value), encoding="utf-8")


def text_of(value: Mapping[str, Any]) -> str:
    """A mapping as YAML text."""
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True, width=120)


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2 numbers and booleans, no dates, no repeated keys, no tags, and aliases that stand for little."""

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
                raise yaml.constructor.ConstructorError(
                    None, None, "half a surrogate pair is not text", node.start_mark
                )
            return text

    Loader.yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in rules
            if tag.rsplit(":", 1)[1] not in ("float", "int", "bool", "timestamp")
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = re.compile(
        r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    )
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )

    def construct_number(loader: Any, node: Any) -> int | float:
        text = node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
        try:
            number = float(text)
        except ValueError:
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not a number", node.start_mark) from None
        if re.fullmatch(r"[-+]?\d+", text):
            return int(text)
        return int(number) if "e" in text and number.is_integer() else number  # 4e6 tokens is a count

    def construct_mapping(loader: Any, node: Any) -> dict[str, Any]:
        loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            if not key.isprintable():
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is no key", key_node.start_mark)
            if key in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            found[key] = loader.construct_object(value_node, deep=True)
        return found

    Loader.add_constructor("tag:yaml.org,2002:float", construct_number)
    Loader.add_constructor("tag:yaml.org,2002:map", construct_mapping)
    return Loader


def override(recipe: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The recipe with `key.inner=value` assignments applied; values are YAML, list elements go by number."""
    result: dict[str, Any] = json.loads(json.dumps(recipe))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key or not key.isprintable():
            raise RecipeError(f"override {assignment!r} is not of the form key=value, for example data.sequence=512")
        _assign(result, key.split("."), parse(text, f"override {key}"), assignment)
    return result


def _assign(target: Any, path: list[str], value: Any, assignment: str) -> None:
    for step, inner in enumerate(path):
        last = step == len(path) - 1
        if isinstance(target, list):
            if not inner.isdecimal() or int(inner) >= len(target):
                raise RecipeError(
                    f"override {assignment!r}: {'.'.join(path[:step])} is a list of {len(target)}; "
                    "name an element by its number, from 0"
                )
            if last:
                target[int(inner)] = value
            else:
                target = target[int(inner)]
        elif isinstance(target, dict):
            if last:
                target[inner] = value
            else:
                if target.get(inner) is None:
                    target[inner] = {}
                target = target[inner]
        else:
            raise RecipeError(f"override {assignment!r}: {'.'.join(path[:step])} is {_kind(target)}, it has no keys")


def decode(cls: type[C], raw: Mapping[str, Any], where: str, prefix: str = "") -> C:
    """`raw` as an instance of `cls`.

    `where` (a file) and `prefix` (the key under which `raw` stands) name the place in errors.
    Raises RecipeError: for each mistake one sentence with the key, the place and, for an unknown key, the nearest valid one.
    """
    found, mistakes = salvage(cls, raw, where, prefix)
    if found is None or mistakes:
        raise RecipeError(*mistakes.values())
    return found


def salvage(cls: type[C], raw: Mapping[str, Any], where: str, prefix: str = "") -> tuple[C | None, dict[str, str]]:
    """What can be decoded when the keys with mistakes are left out (None: too little), and for each such key a sentence.

    Whoever wants to name every mistake at once goes on with what is left.
    """
    from pydantic import ValidationError

    rest: Any = json.loads(json.dumps(raw))
    mistakes: dict[str, str] = {}
    while True:
        try:
            return _adapter(cls).validate_json(json.dumps(rest), strict=True), mistakes  # type: ignore[arg-type]
        except ValidationError as error:
            fresh = {".".join(map(str, e["loc"])): e for e in error.errors(include_url=False)}
            fresh = {key: e for key, e in fresh.items() if key not in mistakes}  # what was left out is not missing
            place = f"{where}: " if where else ""
            mistakes |= {key: place + _sentence(cls, e, prefix) for key, e in fresh.items()}
            if not fresh or not all(_leave_out(rest, e["loc"]) for e in reversed(fresh.values())):
                return None, mistakes


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _leave_out(target: Any, path: tuple[int | str, ...]) -> bool:
    """Remove what stands at a path; False when there is nothing."""
    try:
        for part in path[:-1]:
            target = target[part]
        del target[path[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Key:
    """What a user should know of a key."""

    name: str
    values: str
    default: str
    """As YAML; empty when there is none."""
    meaning: str


def keys(cls: type[Config]) -> list[Key]:
    """The keys of a config that hold values, in order."""
    found = schema(cls)
    needed = found.get("required", ())
    return [
        Key(name, _values(key), "" if name in needed else json.dumps(key.get("default")), key.get("description", ""))
        for name, key in found.get("properties", {}).items()
    ]


def _values(key: Mapping[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "anyOf" in key:
        return " or ".join(_values(one) for one in key["anyOf"])
    if "enum" in key:
        return ", ".join(value or "''" for value in key["enum"])
    kind = {"string": "text", "boolean": "true or false", "array": "a list", "null": "null", "object": "a mapping"}
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    limits = [f"{word} {key[bound]:g}" for bound, word in bounds.items() if abs(key.get(bound, 1e18)) < 1e15]
    name = kind.get(key.get("type", ""), key.get("type", "a mapping"))
    return " ".join([name, *limits])


def schema(cls: type[Config]) -> dict[str, Any]:
    """The JSON schema of a config: types, bounds, defaults and, from the docstrings, meanings."""
    found: dict[str, Any] = _adapter(cls).json_schema()  # type: ignore[arg-type]
    return found


def _sentence(cls: type[Config], error: Any, prefix: str) -> str:
    loc = [str(part) for part in error["loc"]]
    key = ".".join([prefix, *loc] if prefix else loc)
    match error["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown key {key!r}; {_nearest(cls, loc, prefix)}"
        case "missing":
            return f"the key {key!r} is missing"
        case "dataclass_type":
            return f"{key or 'the recipe'} must be a mapping of keys to values, not {_kind(error['input'])}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key} {message[0].lower()}{message[1:]}, not {_kind(error['input'])}"


def _nearest(cls: type[Config], loc: list[str], prefix: str) -> str:
    """Which key was meant: one beside it, the same one elsewhere, or the list of what there is."""
    beside = sorted(_fields_at(cls, loc[:-1]))
    if close := difflib.get_close_matches(loc[-1], beside, 1, 0.6):
        return f"did you mean {'.'.join(filter(None, [prefix, *loc[:-1], close[0]]))!r}?"
    elsewhere = [path for path in _all_keys(cls) if path.split(".")[-1] == loc[-1]]
    if elsewhere:
        return f"did you mean {'.'.join(filter(None, [prefix, elsewhere[0]]))!r}?"
    return f"the keys here are {', '.join(beside)}" if beside else "there are no keys here"


def _inner(hint: Any) -> type[Config] | None:
    """The Config inside a type such as `tuple[Text, ...]` or `Tokenizer | None`."""
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint
    return next((found for arg in get_args(hint) if (found := _inner(arg))), None)


def _fields(cls: type[Config]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def _fields_at(cls: type[Config], loc: Iterable[str]) -> dict[str, Any]:
    at: type[Config] | None = cls
    for part in loc:
        if at is None:
            return {}
        fields = _fields(at)
        at = _inner(fields[part]) if part in fields else at  # a list's number, a teacher's name
    return _fields(at) if at else {}


def _all_keys(cls: type[Config], prefix: str = "") -> list[str]:
    keys = []
    for name, hint in _fields(cls).items():
        keys.append(prefix + name)
        if inner := _inner(hint):
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def encode(config: Config) -> dict[str, Any]:
    """A decoded config as plain values, every default spelled out."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]
    return found


def fingerprint(value: Any) -> str:
    """A short hash of plain values (numbers, text, lists, mappings), equal for equal values."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=10).hexdigest()


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two plain values differ, with both values."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*old, *new]):
            found |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if old == new else {prefix: (old, new)}


def _kind(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool() | int() | float():
            return json.dumps(value)
        case str():
            return f"the text {value!r}" if len(value) < 60 else "text"
        case list():
            return "a list"
    return "a mapping" if isinstance(value, dict) else type(value).__name__
