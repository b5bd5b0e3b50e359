"""The program as a user meets it: help at once, one sentence and exit code 2 for what can be mended."""

import os
import subprocess
import sys

import pytest
from conftest import make_vocabulary, sentences

from bequest import cli, config


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["bequest", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy():
    program = "import sys; sys.argv = ['bequest', '--help']\nfrom bequest.cli import main\nmain()\n"
    program += (
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'datasets'} & set(sys.modules)\nassert not heavy, heavy"
    )
    times = []
    for _ in range(5):
        before = os.times()
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        after = os.times()  # the work of the child, not the waiting on a busy machine
        times.append(after.children_user - before.children_user + after.children_system - before.children_system)
        assert found.returncode == 0, found.stderr
        assert "train" in found.stdout
    assert min(times) < 0.3


def test_train_and_again(world, tmp_path, monkeypatch, capsys):
    config.write(world.raw({"name": "plain"}), tmp_path / "recipe.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bequest", "train", "recipe.yaml", "train.tokens=512"])
    cli.main()
    first = capsys.readouterr()
    assert "bits per byte" in first.out
    assert "tokens/s" in first.err
    assert (tmp_path / "runs" / "test" / "checkpoint" / "model.safetensors").exists()
    cli.main()
    assert "is finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("method.name=kii", "there is no method 'kii'; did you mean 'ki'?"),
        ("method.untill=0.5", "unknown key 'method.untill'; did you mean 'method.until'?"),
        ("method.until=1.5", "method.until must be less than or equal to 1"),
        ("method.shape=wave", "method.shape must be"),
        ("data.train.0.path=/nowhere", "no text at /nowhere"),
        ("teachers.teacher.load=/nowhere", "there is no model at /nowhere"),
        ("teachers={}", "there is no tokenizer to use"),
        ("train.device=cuda", "PyTorch sees no GPU"),
        ("student.vocab=10", "student.vocab 10 is less than"),
        ("seed=1e30", "seed must be less than"),
        ("student.hidden=400000", "not enough memory"),
    ],
)
def test_mistakes_are_one_sentence(world, tmp_path, monkeypatch, capsys, change, words):
    config.write(world.raw({"name": "ki"}), tmp_path / "recipe.yaml")
    code, error = run_main(monkeypatch, capsys, "train", tmp_path / "recipe.yaml", change, "--out", tmp_path / "run")
    assert code == 2
    assert words in error
    assert error.startswith("bequest: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command"),
        (["train"], "Missing argument"),
        (["train", "x.yaml", "--ou"], "No such option"),
        (["train", "x.yaml"], "cannot read the recipe"),
    ],
)
def test_usage_mistakes(monkeypatch, capsys, arguments, words):
    code, error = run_main(monkeypatch, capsys, *arguments)
    assert code == 2
    assert words in error


def test_places_that_cannot_be_written(world, tmp_path, monkeypatch, capsys):
    config.write(world.raw({"name": "plain"}), tmp_path / "recipe.yaml")
    (tmp_path / "file").write_text("")
    code, error = run_main(monkeypatch, capsys, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "file")
    assert (code, "cannot use" in error) == (2, True)
    code, error = run_main(monkeypatch, capsys, "train", tmp_path / "recipe.yaml", "--out", "/proc/run")
    assert (code, error.count("\n")) == (2, 1)


def test_bugs_are_tracebacks(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bequest", "--version"])
    monkeypatch.setattr(cli, "app", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_demo_in_small(tmp_path, world, monkeypatch, capsys):
    """The whole demo on a little text: three runs, the table, and one of the three sentences."""
    (tmp_path / "text").mkdir()
    for number, text in enumerate(sentences(8, 400)):
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bequest", "demo", "--text", "text", "--scale", "0.01", "--out", "demo"])
    cli.main()
    found = capsys.readouterr().out
    assert "What inheriting saved" in found
    assert "The inheriting run" in found or "The predecessor itself" in found
    for name in ("predecessor", "scratch", "inherit"):
        monkeypatch.setattr(sys, "argv", ["bequest", "train", f"demo/{name}.yaml", "--out", f"demo/{name}"])
        cli.main()
        assert "is finished already" in capsys.readouterr().out


def test_demo_text_is_the_standard_library(tmp_path):
    from bequest.cli.demo import _standard_library

    files = list(_standard_library())
    assert len(files) > 100
    assert any("class Thread" in text for text in files)
    assert make_vocabulary().encode([files[0]])
