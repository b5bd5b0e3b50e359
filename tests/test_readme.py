"""What the README shows is run: its recipes train, its commands exist, its table names every method."""

import re
from pathlib import Path

import pytest
from conftest import sentences, write_jsonl

from bequest import methods, recipe
from bequest.job.train import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RECIPES = dict(re.findall(r"```yaml\n# (\w+)\.yaml\n(.*?)```", README, re.S))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]


def test_recipes_train_one_after_the_other(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "corpus.jsonl", sentences(11, 300))
    small = ("train.tokens=4096", "data.train.0.path=corpus.jsonl", "data.valid_fraction=0.1")
    assert list(RECIPES) == ["first", "second"]
    for name, text in RECIPES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        sizes = ("tokenizer.train.vocab=300",) if name == "first" else ("student.layers=2",)
        found = train(recipe.load(tmp_path / f"{name}.yaml", (*small, *sizes)), tmp_path / "runs" / name)
        assert found["valid"]["mine"]["bits_per_byte"] > 0
    assert found["teacher_flops"] > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command):
    words = command.split("#")[0].split()
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    else:
        assert words[:2] == [".venv/bin/bequest", "train"]
        assert words[2].removesuffix(".yaml") in RECIPES


def test_every_method_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)` \|", README, re.M)
    assert sorted(rows) == [n for n in methods.names() if n in methods._built_in()]


def test_ci_calls_the_test_command():
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()
