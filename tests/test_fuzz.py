"""Random damage to recipes: whatever stands in one, the answer is a recipe or one line per mistake, never a traceback."""

import copy
import os
from pathlib import Path

import pytest
import yaml
from conftest import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bequest import recipe as recipes
from bequest import sense
from bequest.job import check
from bequest.job.prepare import find_method, resolved
from bequest.types import BequestError

WORDS = [
    "name", "seed", "data", "train", "valid", "path", "hub", "source", "field", "format", "sequence", "objective",
    "mask_rate", "valid_fraction", "tokenizer", "vocab", "load", "student", "family", "hidden", "layers", "heads",
    "kv_heads", "feed_forward", "dropout", "tied", "teachers", "teacher", "keep", "control", "method", "ki", "dwt",
    "plain", "start", "until", "shape", "temperature", "compare_every", "tokens", "batch_tokens", "optimiser", "lr",
    "betas", "schedule", "warmup", "eval", "every_tokens", "llama", "gpt2", "bert", "causal", "masked", "uniform",
    "", "0", "a.b", "..", "../ki", "\u2028", "a\nb", "none", "None", "true", "~",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 7, 16, 32, 64, 128, 1536, 10**6, 2**31, 2**62, 2**63, 2**64, 10**30, 10**400]
NUMBERS += [0.0, 0.5, 1.0, 1e-300, 1e15, 1e16, 1e300, float("inf"), float("-inf"), float("nan"), -0.0]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=12), st.floats()
)
KEYS = st.one_of(st.sampled_from(WORDS), st.text(max_size=6), st.sampled_from([1, None, True, 2.5]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def places(value, path=()):
    """Every place in a nested value."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def at(value, path):
    for part in path:
        value = value[part]
    return value


def misspelt(draw, word: str) -> str:
    where = draw(st.integers(0, max(0, len(word) - 1)))
    return draw(st.sampled_from([word[:where] + word[where + 1 :], word + "s", word[:where] + "x" + word[where:]]))


@st.composite
def spoiled(draw, raw, values=VALUES, most=4):
    """A recipe with some things set, deleted, misspelt, moved or exchanged."""
    raw = copy.deepcopy(raw)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(raw))
        if not found:
            break
        path = draw(st.sampled_from(found))
        inside = at(raw, path[:-1])
        match draw(st.sampled_from(["set", "add", "delete", "misspell", "move", "exchange"])):
            case "set":
                inside[path[-1]] = draw(values)
            case "add" if isinstance(inside, dict):
                inside[draw(KEYS)] = draw(values)
            case "delete":
                del inside[path[-1]]
            case "misspell" if isinstance(path[-1], str):
                inside[misspelt(draw, path[-1])] = inside.pop(path[-1])
            case "move":
                moved = inside.pop(path[-1])
                targets = [p for p in places(raw) if isinstance(at(raw, p), dict)]
                (at(raw, draw(st.sampled_from(targets))) if targets else raw)[str(path[-1])] = moved
            case "exchange":
                other = draw(st.sampled_from(found))
                if path[: len(other)] != other and other[: len(path)] != path:
                    there = at(raw, other[:-1])
                    inside[path[-1]], there[other[-1]] = there[other[-1]], inside[path[-1]]
    return raw


def valid() -> dict:
    """Nothing of it exists; decoding asks for no file."""
    return {
        "name": "test",
        "seed": 3,
        "data": {
            "train": [{"path": "a.txt", "source": "one"}, {"hub": "b", "field": "text"}],
            "valid": [{"path": "c.txt"}],
            "sequence": 32,
            "objective": "causal",
        },
        "tokenizer": {"train": {"vocab": 300}},
        "student": {"family": "llama", "hidden": 16, "layers": 2, "heads": 2},
        "teachers": {"teacher": {"load": "somewhere", "keep": 8}},
        "method": {"name": "ki", "until": 0.5, "compare_every": 0.1},
        "train": {
            "tokens": 1536,
            "batch_tokens": 128,
            "optimiser": {"name": "muon", "lr": 0.01, "betas": [0.9, 0.95]},
            "schedule": {"name": "wsd", "warmup": 0.1},
        },
        "eval": {"every_tokens": 512},
    }


def examined(path: Path) -> recipes.Recipe | None:
    """The recipe, if there is nothing against it; every mistake is a line."""
    try:
        found, mistakes = sense.examine(path)
        if found:
            resolved(found, find_method(found))
    except BequestError as error:
        found, mistakes = None, list(error.problems)
    for sentence in mistakes:
        assert sentence
        assert len(sentence.splitlines()) == 1, sentence
        assert sentence.isprintable(), sentence
    assert found or mistakes
    return None if mistakes else found


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "recipe.yaml"


FUZZ = settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@FUZZ
@given(raw=spoiled(valid()))
def test_spoiled_recipes(file, raw):
    file.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8", errors="replace")
    examined(file)


PIECES = st.sampled_from([
    "{", "}", "[", "]", ":", ": ", "- ", "\n", "  ", "\t", "&a ", "*a", "<<: ", "!!", "!!float ", "!x ", "|\n", ">\n",
    "'", '"', "#", "---\n", "...\n", "%YAML 1.1\n", "? ", ", ", "\\", '"\\ud800"', '"\\U00110000"', "=", "~", ".nan",
    "0x1", "1e9", "1_", "\ufeff", "\x85", "\x00", *WORDS,
])  # fmt: skip


@settings(FUZZ, max_examples=1000)
@given(text=st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=60), st.binary(max_size=40)))
def test_garbage(file, text):
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
    examined(file)


@settings(FUZZ, max_examples=500)
@given(
    key=st.lists(KEYS.map(str), min_size=1, max_size=4).map(".".join),
    text=st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=20)),
)
def test_overrides(file, key, text):
    file.write_text(yaml.safe_dump(valid()))
    try:
        _, mistakes = sense.examine(file, (f"{key}={text}",))
    except BequestError as error:
        mistakes = list(error.problems)
    assert all(sentence.isprintable() for sentence in mistakes), mistakes


SMALL = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 64), st.sampled_from([0.0, 0.1, 1.0, 128, 256]), st.sampled_from(WORDS)
)


def test_on_to_the_plan(world: World, file: Path):
    """What decodes goes on: every problem is a sentence, and without any there is a plan."""
    planned = []

    @settings(FUZZ, max_examples=100)
    @given(raw=spoiled(world.raw({"name": "ki", "until": 0.5}), SMALL, 2))
    def on(raw):
        file.write_text(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), encoding="utf-8", errors="replace")
        clean = examined(file)
        try:
            found, _ = sense.examine(file)
        except BequestError:
            return
        if found:
            problems = check.problems(found, file.parent / "run")
            assert all(sentence.isprintable() for sentence in problems), problems
            planned.append(problems or (clean and check.plan(clean, file.parent / "run")))

    before = os.getcwd()
    os.chdir(file.parent)
    try:
        on()
    finally:
        os.chdir(before)
    assert sum(isinstance(p, check.Plan) for p in planned) > 5
