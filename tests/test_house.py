"""The house rules that a test can hold: imports point one way, nothing heavy on the way, shipped recipes are right."""

import ast
from pathlib import Path

import pytest

from bequest import config, methods, sense
from bequest.compare import fair, sweep
from bequest.job.prepare import find_method

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bequest"
LAYERS = [
    {"types"},
    {"dialect", "files"},
    {"config"},
    {"recipe"},
    {"sense"},
    {"device"},
    {"data"},
    {"model"},
    {"loss", "teach"},
    {"optim", "eval"},
    {"train"},
    {"methods", "report"},
    {"job"},
    {"compare"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN = {"utils", "helpers", "manager", "common", "misc"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, lazily and for type checking too."""
    parts = ("bequest", *path.relative_to(SOURCE).with_suffix("").parts)
    package = parts if path.name == "__init__.py" else parts[:-1]
    package = tuple(p for p in package if p != "__init__")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join((*package[: len(package) - node.level + 1], *([node.module] if node.module else [])))
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "bequest" else {base}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bequest"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("bequest")}
    return {room(module) for module in found} - {"", "__version__"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for other in imports(path) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{own} must not see {other}"


def test_every_room_has_a_layer():
    rooms = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert rooms - {"__init__", "__main__", "__pycache__"} == set(LEVEL)
    assert not {p.stem for p in SOURCE.rglob("*.py")} & FORBIDDEN


def test_the_spine_imports_no_method_and_methods_not_each_other():
    for path in (SOURCE / "methods").glob("*.py"):
        assert "methods" not in imports(path) - {"methods"} or path.name == "__init__.py"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                raise AssertionError(f"{path.name} imports another method")


def test_yaml_and_pydantic_are_known_to_one_file_each():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "import yaml" not in text or path.name == "dialect.py"
        if path.name != "config.py":
            assert "pydantic" not in text.replace("__pydantic_config__", "")


def test_nothing_is_unpickled():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "torch.load(" not in text
        assert "pickle" not in text.replace("Nothing is pickled", "").replace("nothing has to be pickled", "")


YAML = sorted([*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "bench").rglob("*.yaml")])
SWEEPS = [path for path in YAML if "\narms:" in path.read_text()]
SHIPPED = [path for path in YAML if path not in SWEEPS]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_recipes_decode(path):
    found = sense.load(path)
    fields = {k: v for k, v in found.method.items() if k != "name"}
    config.decode(methods.find(found.method["name"]), fields, str(path), "method")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.name)
def test_shipped_sweeps_decode(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = sweep.load(path)
    for name in found.needed(found.arms):
        find_method(fair.draft(found, name))


def test_recipes_are_shipped():
    assert len(SHIPPED) >= 8
