"""`bequest methods`, `generate` and `eval`: quick looks at what there is."""

import pytest
from test_cli import run_main

from bequest import cli, config, methods, sense
from bequest.cli.methods import start
from bequest.job import look


def output(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["bequest", *map(str, arguments)])
    cli.main()
    return capsys.readouterr().out


def test_methods_are_listed_with_paper_needs_and_keys(monkeypatch, capsys):
    shown = output(monkeypatch, capsys, "methods")
    for words in ("ki", "Qin et al.", "teacher", "compare_every", "plain", "dwt"):
        assert words in shown
    one = output(monkeypatch, capsys, "methods", "ki")
    for words in ("method.until", "number from 0 to 1", "0.32", "inheritance rate at step 0", "teachers.teacher"):
        assert words in one


@pytest.mark.parametrize("name", methods.names())
def test_a_methods_recipe_can_be_used(name, tmp_path):
    (tmp_path / "start.yaml").write_text(start(name))
    found = sense.load(tmp_path / "start.yaml")
    own = {key: value for key, value in found.method.items() if key != "name"}
    assert config.decode(methods.find(name), own, "start") == methods.find(name)()
    assert bool(found.teachers) == bool(methods.find(name).needs)


def test_an_unknown_method_is_one_sentence(monkeypatch, capsys):
    code, error = run_main(monkeypatch, capsys, "methods", "kii")
    assert (code, "did you mean 'ki'?" in error) == (2, True)
    assert run_main(monkeypatch, capsys, "methods", "--recipe")[0] == 2


def test_a_causal_model_goes_on(world, monkeypatch, capsys):
    teacher = world.teacher["causal"]
    shown = output(monkeypatch, capsys, "generate", teacher, "the house", "--tokens", 5)
    assert shown.startswith("the house")
    assert len(shown) > len("the house\n")
    again = look.generate(teacher, "the house", 5, 0.8, 0)
    assert again + "\n" == shown  # the same seed, the same words
    assert look.generate(teacher, "the house", 5, 0.0, 0) == look.generate(teacher, "the house", 5, 0.0, 1)


def test_a_masked_model_fills_in(world, monkeypatch, capsys):
    shown = output(monkeypatch, capsys, "generate", world.teacher["masked"], "the <mask> sees the <mask>")
    assert "<mask>" not in shown.splitlines()[0]
    assert "mask 1:" in shown
    assert "mask 2:" in shown
    code, error = run_main(monkeypatch, capsys, "generate", world.teacher["masked"], "no gap")
    assert (code, "put <mask> where" in error) == (2, True)


def test_too_long_a_text_is_one_sentence(world, monkeypatch, capsys):
    for objective in ("causal", "masked"):
        text = "the house <mask> " * 200
        code, error = run_main(monkeypatch, capsys, "generate", world.teacher[objective], text)
        assert (code, "shorter text" in error) == (2, True)


def test_eval_equals_the_runs_own_validation(world, tmp_path, monkeypatch, capsys):
    for objective in ("causal", "masked"):
        out = tmp_path / objective
        found = world.run(out, {"name": "plain"}, objective, train__precision="fp32", eval__tokens=0)
        again = look.evaluate(str(out / "checkpoint"), [look.text_entry(f"one={world.valid}")], 32)
        assert again["one"] == pytest.approx(found["valid"]["one"], rel=1e-5)
    shown = output(monkeypatch, capsys, "eval", out / "checkpoint", "--data", world.valid, "--data", f"b={world.other}")
    assert "valid" in shown
    assert "perplexity" in shown


def test_eval_names_what_is_missing(world, monkeypatch, capsys):
    code, error = run_main(monkeypatch, capsys, "eval", world.teacher["causal"], "--data", "/nowhere")
    assert (code, "no text at /nowhere" in error) == (2, True)
    code, error = run_main(monkeypatch, capsys, "eval", "/nowhere", "--data", world.valid)
    assert (code, "no model at /nowhere" in error) == (2, True)
    code, error = run_main(
        monkeypatch, capsys, "eval", world.teacher["causal"], "--data", world.valid, "--sequence", 999
    )
    assert (code, "at most 64 positions" in error) == (2, True)
