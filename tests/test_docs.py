"""What the README and the pages show is run: recipes train, commands run line by line, Python runs in order, the pages build.

Every page begins in a folder that holds `corpus.jsonl.gz` and nothing else. Sizes are made small on the way.
"""

import contextlib
import gzip
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import laws
import pytest
from conftest import sentences, write_jsonl

from bequest import cli, config, methods, recipe, sense
from bequest.job import calibrate
from bequest.job.prepare import find_method

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
FILE = re.compile(r"# ([\w/.-]+\.(?:yaml|py|toml))\n")
NOT_RUN = {
    "pip install 'bequest[tensorboard]'": "needs a package index",
    "tensorboard --logdir runs": "a server that does not end",
    "bequest train second.yaml --push USER/REPO": "needs an account of the Hub",
    "bequest --install-completion": "changes the user's shell",
    "pytest tests/methods/test_stairs.py tests/test_laws.py": "needs the method in src; the laws are held over it below",
}
FRAGMENT = {
    "name": "fragment",
    "data": {"train": [{"path": "corpus.jsonl.gz"}], "valid_fraction": 0.01},
    "student": {"family": "llama"},
    "teachers": {"teacher": "runs/first/checkpoint"},
    "method": "plain",
    "train": {"tokens": 1_000_000},
}
"""What a piece of YAML without a file's name is a part of."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def lines(page: Path) -> list[str]:
    """The commands of a page, without comments."""
    found = [line for kind, text in blocks(page) if kind == "bash" for line in text.splitlines()]
    return [line.partition("  #")[0].strip() for line in found if line and not line.startswith("#")]


def small(words: list[str]) -> list[str]:
    """A command with what makes it quick."""
    match words[0]:
        case "train" | "check" | "teach" if len(words) > 1 and words[1].endswith(".yaml"):
            assignments = tuple(word for word in words[2:] if re.match(r"[\w.]+=", word))
            found, mistakes = sense.examine(Path(words[1]), assignments)
            return words if found is None or mistakes else [*words, *_sizes(found)]
        case "compare":
            _small_sweep(Path(words[1]))
        case "generate":
            return [*words, "--tokens", "3"]
        case "eval":
            return [*words, "--sequence", "32"]
    return words


def _small_sweep(path: Path) -> None:
    """One seed and one learning rate of a sweep's first two arms over a small recipe, in place."""
    sweep = config.read(path)
    sweep["arms"] = dict(list(sweep["arms"].items())[:2])
    base = config.read(Path(sweep["recipe"]))
    made = config.override(base, _sizes(sense.load(Path(sweep["recipe"]))))
    config.write(made, Path(sweep["recipe"]))
    for arm in [*sweep["arms"].values(), *sweep.get("predecessors", {}).values()]:
        for key in ("budgets", "rates", "seeds"):
            arm.pop(key, None)
        if "set" in arm:
            arm["set"] = {k: v for k, v in arm["set"].items() if not k.startswith(("student", "train"))}
    config.write(sweep | {"seeds": [0], "confidence": None, "rates": [0.01]}, path)


def _sizes(found: recipe.Recipe) -> list[str]:
    tokens = 128 * max(8, found.train.tokens // 500_000)
    changes = {"data.sequence": 32, "train.batch_tokens": 128, "train.tokens": tokens}
    if found.train.micro_batch_tokens:
        changes["train.micro_batch_tokens"] = 64
    if found.train.save_every_tokens:
        changes["train.save_every_tokens"] = 512
    if found.eval.tokens:
        changes["eval.tokens"] = 1000
    if found.eval.every_tokens:
        changes["eval.every_tokens"] = 512
    if found.data.valid_fraction:
        changes["data.valid_fraction"] = 0.1
    if found.tokenizer and found.tokenizer.train:
        changes["tokenizer.train.vocab"] = 300
    if found.student.family:
        changes |= {"student.hidden": 16, "student.layers": 2, "student.heads": 2}
    return [f"{key}={value}" for key, value in changes.items()]


class Reader:
    """Someone who types a page from top to bottom."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.python: dict = {}
        self.said = ""

    def do(self, kind: str, text: str, subtests) -> None:
        """One block."""
        named = FILE.match(text)
        if named and kind in ("yaml", "python", "toml"):
            path = Path(named[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if kind == "toml":
                _install(path)
        elif kind == "bash":
            for line in text.splitlines():
                if line and not line.startswith("#"):
                    with subtests.test(line):
                        self.type(line)
        elif kind == "text" and text.startswith("bequest: "):
            with subtests.test(text.splitlines()[0]):
                assert text.strip() in self.said
        elif kind == "python":
            with subtests.test(text.splitlines()[0]):
                exec(compile(text, "the page", "exec"), self.python)
        elif kind == "yaml":
            with subtests.test(text.splitlines()[0]):
                self.decode(text)

    def type(self, line: str) -> None:
        """One command."""
        bare, _, comment = line.partition("  #")
        if bare.strip() in NOT_RUN:
            return
        words = shlex.split(bare)
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
            return
        assert words[0].removeprefix(".venv/bin/") == "bequest", "only our own commands can be run"
        words, into = (words[:-2], Path(words[-1])) if words[-2] == ">" else (words, None)
        expected = re.search(r"exit code (\d+)", comment)
        self.monkeypatch.setattr(sys, "argv", ["bequest", *small(words[1:])])
        with pytest.raises(SystemExit) if expected else contextlib.nullcontext() as left:
            cli.main()
        out, err = self.capsys.readouterr()
        self.said = out + err
        if expected:
            assert left.value.code == int(expected[1])
        if into:
            into.write_text(out)

    def decode(self, text: str) -> None:
        """A piece of a recipe has no mistakes, its method's keys included."""
        path = Path("fragment.yaml")
        config.write(FRAGMENT | config.parse(text, "the page"), path)
        find_method(sense.load(path))


def _install(path: Path) -> None:
    """Make a project's entry points known as an installation would."""
    project = tomllib.loads(path.read_text())["project"]
    folder = Path(f"{project['name']}-{project['version']}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = [f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in e.items()) for g, e in project["entry-points"].items()]
    (folder / "entry_points.txt").write_text("\n".join(points))


@pytest.fixture
def desk(tmp_path, world, monkeypatch):
    """The folder in which a page is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = write_jsonl(tmp_path / "corpus.jsonl", sentences(11, 300)).read_bytes()
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(text, mtime=0))
    monkeypatch.setattr(calibrate, "calibrate", partial(calibrate.calibrate, budget=0.5))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_can_be_followed(desk, page, monkeypatch, capsys, subtests):
    reader = Reader(monkeypatch, capsys)
    for kind, text in blocks(page):
        reader.do(kind, text, subtests)


def test_what_is_not_run_is_still_shown():
    shown = [line for page in PAGES for line in lines(page)]
    assert set(NOT_RUN) <= set(shown)


def test_every_block_says_what_it_is():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)
        assert set(fences[::2]) <= {"bash", "yaml", "python", "toml", "json", "text", "{toctree}"}, page.name
        assert not any(fences[1::2]), page.name


def test_the_example_method_keeps_the_laws(desk, world, tmp_path):
    """What `adding-a-method` shows is a method like those of the house, and its tests pass."""
    page = next(page for page in PAGES if page.stem == "adding-a-method")
    files = {found[1]: text for _, text in blocks(page) if (found := FILE.match(text))}
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    _install(Path("pyproject.toml"))
    spec = importlib.util.spec_from_file_location("test_stairs", "tests/methods/test_stairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "stairs" in methods.names()
    given = {"world": world, "tmp_path": tmp_path}
    for name, test in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("test_"):
            test(**{key: given[key] for key in inspect.signature(test).parameters})
    laws.weight_zero_equals_plain(world, tmp_path / "zero", module.ZERO, "masked")
    laws.stop_and_resume_same_bits(world, tmp_path / "resumed", module.METHOD, "causal", (5,))


def test_the_tables_of_keys_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), "run python docs/generate.py"
    rows = [line for line in generate.page().splitlines() if line.startswith("| `")]
    assert not [row for row in rows if row.endswith("|  |")], "a key without a docstring"


def test_every_method_is_in_the_readme():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert sorted(rows) == methods._built_in()


def test_ci_calls_the_test_command():
    assert "make test" in lines(ROOT / "README.md")
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_pages_build(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs")]
    found = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "first-hour.html").exists()


def test_json_on_the_pages_is_json():
    for page in PAGES:
        for kind, text in blocks(page):
            if kind == "json":
                assert [json.loads(line) for line in text.splitlines()]
