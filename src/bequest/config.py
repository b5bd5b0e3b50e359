"""Read a recipe, override it, decode it into frozen dataclasses: the only file that knows pydantic.

Decoding is strict: text is not a number, 1 is not a boolean. How recipes speak YAML is in dialect.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
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


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Config:
    """Base of everything that a recipe decodes into: subclasses are frozen dataclasses that refuse unknown keys."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False, "use_attribute_docstrings": True}

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)


C = TypeVar("C", bound=Config)


def read(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The mapping in a YAML file; `what` it is said to be in errors.

    Raises RecipeError when the file is missing or is not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read the {what} {path}: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"the {what} {path} is not UTF-8 text; give the path of a YAML file") from None
    found = parse(text, str(path))
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: a {what} is a YAML mapping of keys to values, but this is {_kind(found)}")
    return found


def parse(text: str, where: str) -> Any:
    """The value that a piece of YAML stands for; `where` names it in errors."""
    from .dialect import load

    return load(text, where)


def write(value: Mapping[str, Any], path: Path) -> None:
    """Write a mapping as YAML that `read` gives back unchanged."""
    path.write_text(text_of(value), encoding="utf-8")


def text_of(value: Mapping[str, Any]) -> str:
    """A mapping as YAML text."""
    from .dialect import dump

    return dump(json.loads(json.dumps(value)))


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


def chosen(config: Config) -> dict[str, Any]:
    """A decoded config as plain values without those that are its defaults: the same when keys are added later."""
    found = {}
    for one in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, one.name)
        made = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        if value != made:
            found[one.name] = _chosen(value)
    return found


def _chosen(value: Any) -> Any:
    if isinstance(value, Config):
        return chosen(value)
    if isinstance(value, dict):
        return {key: _chosen(inner) for key, inner in value.items()}
    return [_chosen(inner) for inner in value] if isinstance(value, list | tuple) else value


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
