"""`bequest grow`: from one folder to another, measured, or one sentence and nothing written."""

import json

import pytest
from test_cli import run_main
from test_look import output

from bequest.job import look
from bequest.model import build


def test_a_folder_grows_and_is_measured(world, tmp_path, monkeypatch, capsys):
    out = tmp_path / "grown"
    arguments = ("grow", world.teacher["causal"], out, "hidden=24", "heads=3", "layers=3", "feed_forward=96")
    shown = output(monkeypatch, capsys, *arguments, "--exact", "--data", f"one={world.valid}")
    assert "exact: it computes what its predecessor computes" in shown
    before, after = (look.evaluate(str(f), [look.text_entry(f"one={world.valid}")], 32) for f in (arguments[1], out))
    assert before["one"]["loss"] == pytest.approx(after["one"]["loss"], rel=1e-6)
    assert f"{look.evaluate(str(out), [look.text_entry(str(world.valid))], 0)['valid']['loss']:.4f}" in shown
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["method"] == "grow"
    assert lineage["predecessors"][0]["load"] == world.teacher["causal"]
    assert "hidden 16 to 24" in (out / "README.md").read_text()
    assert look.generate(str(out), "the house", 5, 0.0, 0) == look.generate(arguments[1], "the house", 5, 0.0, 0)


def test_a_student_may_begin_with_it(world, tmp_path, monkeypatch, capsys):
    out = tmp_path / "grown"
    output(monkeypatch, capsys, "grow", world.teacher["masked"], out, "feed_forward=80", "hidden=32", "width=tile")
    world.run(tmp_path / "run", {"name": "plain"}, "masked", student={"load": str(out)}, teachers={}, train__tokens=256)
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    assert [one["name"] for one in lineage["predecessors"]] == ["grown"]
    assert lineage["predecessors"][0]["predecessors"][0]["load"] == world.teacher["masked"]


def test_it_is_saved_in_its_sources_precision(world, tmp_path, monkeypatch, capsys):
    model = build.load(world.teacher["causal"], "causal").model.bfloat16()
    model.save_pretrained(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "half" / name).write_bytes((tmp_path.__class__(world.teacher["causal"]) / name).read_bytes())
    shown = output(monkeypatch, capsys, "grow", tmp_path / "half", tmp_path / "grown", "layers=4")
    assert "saved as bfloat16" in shown
    assert build.config_of(str(tmp_path / "grown")).dtype == model.dtype


WRONG = [
    (("hidden=8",), "models grow, they do not shrink"),
    (("layers=4", "depth=stack", "--exact"), "this growth is not exact: depth: stack"),
    (("vocab=400",), "a vocabulary does not grow"),
    (("hiden=24",), "did you mean 'hidden'?"),
    (("hidden=wide",), "hidden must be a valid integer"),
    (("hidden=17",), "hidden 17 must be a multiple of heads 2"),
    (("head_dim=12",), "head_dim 12 is no multiple of 8"),
    (("width=wider",), "width must be"),
    (("layers=1000000000",), "layers must be"),
    ((), "say what is to grow"),
    (("layers=3", "--data", "/nowhere.txt"), "no text at /nowhere.txt"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_what_is_wrong_is_one_sentence_and_writes_nothing(world, tmp_path, monkeypatch, capsys, arguments, words):
    code, error = run_main(monkeypatch, capsys, "grow", world.teacher["causal"], str(tmp_path / "out"), *arguments)
    assert (code, words in error) == (2, True), error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_places_are_checked(world, tmp_path, monkeypatch, capsys):
    code, error = run_main(monkeypatch, capsys, "grow", "/nowhere", str(tmp_path / "out"), "layers=3")
    assert (code, "no model at /nowhere" in error) == (2, True)
    code, error = run_main(monkeypatch, capsys, "grow", world.teacher["causal"], str(tmp_path), "layers=3")
    assert (code, "is there already" in error) == (2, True)
    code, error = run_main(
        monkeypatch, capsys, "grow", world.teacher["masked"], str(tmp_path / "out"), "hidden=24", "heads=3"
    )
    assert (code, "take width: tile and a multiple of hidden 16" in error) == (2, True)


def test_a_configuration_that_leaves_weights_out_is_damaged(world, tmp_path, monkeypatch, capsys):
    import shutil

    shutil.copytree(world.teacher["causal"], tmp_path / "cut")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    code, error = run_main(monkeypatch, capsys, "grow", str(tmp_path / "cut"), str(tmp_path / "out"), "layers=3")
    assert (code, "that its configuration knows nothing of (model.layers.1." in error) == (2, True), error
    assert not (tmp_path / "out").exists()


def test_what_should_be_exact_and_is_not_is_not_written(world, tmp_path, monkeypatch, capsys):
    from bequest.job import grow

    monkeypatch.setattr(grow, "_difference", lambda before, after: 0.5)
    arguments = ("grow", world.teacher["causal"], str(tmp_path / "out"), "layers=3")
    code, error = run_main(monkeypatch, capsys, *arguments, "--exact")
    assert (code, "a growth that should be exact" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_place_with_dots(world, tmp_path, monkeypatch, capsys):
    code, error = run_main(monkeypatch, capsys, "grow", world.teacher["causal"], f"{tmp_path}/none/..", "layers=3")
    assert (code, "is there already" in error) == (2, True)
