"""`bequest check`: the plan's cost is the run's cost, and every problem is said at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CAUSAL, MASKED
from test_cli import run_main

from bequest import config, recipe
from bequest.cli.check import schema_text
from bequest.job import check, heap
from bequest.job.calibrate import calibrate

ROOT = Path(__file__).parents[1]
KI = {"name": "ki", "until": 0.5}


def recipe_of(world, *arguments, **changes):
    return config.decode(recipe.Recipe, world.raw(*arguments, **changes), "test")


@pytest.mark.parametrize("family", [*CAUSAL, *MASKED])
def test_flops_are_those_of_the_run(world, tmp_path, family):
    objective = "causal" if family in CAUSAL else "masked"
    changes = {"student__family": family, "train__micro_batch_tokens": 64}
    plan = check.plan(recipe_of(world, KI, objective, **changes), tmp_path / "run")
    found = world.run(tmp_path / "run", KI, objective, **changes)
    assert plan.student_flops == pytest.approx(found["student_flops"], rel=1e-12)
    assert plan.teacher_flops == pytest.approx(found["teacher_flops"], rel=1e-12)
    assert plan.parameters["student"] == found["student_parameters"]
    assert plan.stages[0].tokens == found["tokens"]
    assert 0.4 < plan.stages[0].taught < 0.6


def test_long_stages_are_sampled(world, tmp_path, monkeypatch):
    whole = check.plan(recipe_of(world, KI), tmp_path)
    monkeypatch.setattr(check, "MOST_SEQUENCES", 10)
    sampled = check.plan(recipe_of(world, KI), tmp_path)
    assert whole.stages[0].exact
    assert not sampled.stages[0].exact
    assert sampled.student_flops == pytest.approx(whole.student_flops, rel=0.05)


def test_memory_counts_weights_moments_and_teachers(world, tmp_path):
    plan = check.plan(recipe_of(world, KI), tmp_path)
    memory, student = plan.stages[0].memory, plan.parameters["student"]
    assert student * 4 <= memory["weights"] < student * 4 + 1000
    assert memory["optimiser"] == pytest.approx(2 * memory["weights"], rel=0.02)
    assert plan.parameters["teacher"] * 4 <= memory["teachers"]
    wider = check.plan(recipe_of(world, KI, train__batch_tokens=512, train__tokens=2048), tmp_path)
    assert wider.stages[0].memory["activations"] > 1.5 * memory["activations"]
    split = {"train__batch_tokens": 512, "train__tokens": 2048, "train__micro_batch_tokens": 128}
    assert check.plan(recipe_of(world, KI, **split), tmp_path).memory < wider.memory
    again = recipe_of(
        world, KI, train__batch_tokens=512, train__tokens=2048, student__layers=8, train__activation_checkpointing=True
    )
    kept = replace(again, train=replace(again.train, activation_checkpointing=False))
    computed_again, kept_at_once = (check.plan(r, tmp_path).stages[0].memory["activations"] for r in (again, kept))
    assert computed_again < 0.8 * kept_at_once


def test_placebos_can_be_planned(world, tmp_path):
    for control in ("shuffle", "smooth", "uniform", "untrained", "renormalise"):
        teacher = {"load": world.teacher["causal"], "control": control}
        plan = check.plan(recipe_of(world, KI, teachers={"teacher": teacher}), tmp_path)
        assert (plan.teacher_flops > 0) == (control != "uniform")


def test_heap_reuses_what_fits(monkeypatch):
    monkeypatch.setattr(heap, "TAKEN", 0.0)
    events = [(1, 1 << 20), (2, 1 << 20), (1, -1), (3, 1 << 19), (2, -1), (4, 3 << 19)]
    assert 2 << 20 <= heap.high_water(events) < (2 << 20) + 1024
    assert heap.high_water([(1, 64 << 20), (1, -1), (2, 64 << 20)]) < 65 << 20
    monkeypatch.setattr(heap, "TAKEN", 1.0)
    again = [event for turn in range(50) for event in ((turn, 1 << 20), (turn, -1))]
    assert heap.high_water(again) > 2 << 20  # a hole beside a taken gap fits no more


def test_every_problem_at_once(world, tmp_path):
    found = check.problems(
        recipe_of(
            world,
            {"name": "kii"},
            teachers={"teacher": {"load": "/nowhere"}, "other": {"load": world.teacher["masked"]}},
            student__vocab=3,
        ),
        tmp_path / "run",
    )
    for words in ("no method 'kii'", "no model at /nowhere", "does not fit data.objective causal"):
        assert any(words in sentence for sentence in found), (words, found)
    raw = world.raw(KI, student__vocab=3, train__device="cuda")
    raw["data"]["train"][0]["path"] = str(tmp_path)
    found = check.problems(config.decode(recipe.Recipe, raw, "test"), world.train / "run")
    raw["data"]["valid"][0]["field"] = "body"
    found = [*found, *check.outside(config.decode(recipe.Recipe, raw, "test"), world.train / "run")]
    for words in ("sees no GPU", "no text at", "may not be written", "no text under the key 'body'"):
        assert any(words in sentence for sentence in found), (words, found)


def test_the_command(world, tmp_path, monkeypatch, capsys):
    config.write(world.raw(KI), tmp_path / "recipe.yaml")
    monkeypatch.setattr("sys.argv", ["bequest", "check", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")])
    from bequest import cli

    cli.main()
    shown = capsys.readouterr().out
    for words in ("steps with a teacher", "parameters: student", "FLOPs", "memory:", "disk:"):
        assert words in shown
    assert not (tmp_path / "run").exists()
    code, error = run_main(
        monkeypatch, capsys, "check", tmp_path / "recipe.yaml", "seed=-1", "train.tokenz=3", "teachers.teacher=/nope"
    )
    assert code == 2
    assert error.count("bequest: ") == 3
    assert "Traceback" not in error


def test_time_is_measured(world, tmp_path):
    found = calibrate(recipe_of(world, KI), tmp_path, budget=1.0)
    assert 0 < found.training < 60
    assert 0 < found.validation < 60


def test_the_schema_is_the_shipped_one_and_the_recipes_point_to_it():
    assert json.loads((ROOT / "recipes" / "schema.json").read_text()) == json.loads(schema_text())
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), path


def test_the_schema_accepts_the_recipes_and_refuses_mistakes():
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json.loads(schema_text()))
    for path in (ROOT / "recipes").glob("*.yaml"):
        raw = config.read(path)
        assert not list(validator.iter_errors(raw)), path
        assert list(validator.iter_errors(raw | {"sed": 1}))
        assert list(validator.iter_errors(raw | {"method": {"name": "ki", "untill": 1}}))
