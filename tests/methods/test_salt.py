"""SALT: a teacher up to a step, and the text that is learned from meanwhile."""

from dataclasses import replace

import laws
import numpy as np
import pytest
import torch
from conftest import losses, make_model, same_bits, weights

from bequest.device import Place
from bequest.job.check import plan
from bequest.job.models import opener
from bequest.job.prepare import find_method, inputs, prepare
from bequest.job.stages import stages_of
from bequest.loss.combine import Part, next_token, weighted
from bequest.loss.terms import Divergence
from bequest.report import metrics
from bequest.teach.live import Live
from bequest.types import Clock, RecipeError

ZERO = {"name": "salt", "omega": 0.0}
METHOD = {"name": "salt", "until": 0.5}
NEEDS_TEACHER = True


def same(world, tmp_path, one: dict, other: dict) -> bool:
    world.run(tmp_path / "one", one)
    world.run(tmp_path / "other", other)
    return same_bits(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_no_steps_with_a_teacher_is_plain(world, tmp_path):
    assert same(world, tmp_path, {"name": "salt", "until": 0.0}, {"name": "plain"})


def test_a_teacher_to_the_end_is_distillation_with_a_constant_weight(world, tmp_path):
    whole = {"name": "salt", "until": 1.0, "omega": 0.5, "rho": 1.0}
    assert same(world, tmp_path, whole, {"name": "ki", "shape": "constant", "start": 0.5})


def test_falling_in_a_line_is_knowledge_inheritance(world, tmp_path):
    line = {"name": "salt", "until": 0.5, "omega": 1.0, "rho": 1.0, "transition": "linear"}
    assert same(world, tmp_path, line, {"name": "ki", "until": 0.5})


def test_the_switch_is_exact(world, tmp_path, monkeypatch):
    asked = []
    original = Live.__call__
    monkeypatch.setattr(
        Live,
        "__call__",
        lambda self, batch, temperature: asked.append(temperature) or original(self, batch, temperature),
    )
    found = world.run(tmp_path / "run", {"name": "salt", "until": 0.25})
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["stage"] for line in lines] == ["taught"] * 3 + ["alone"] * 9
    assert [line["rate"] for line in lines] == [0.667] * 3 + [0.0] * 9
    assert asked == [0.25] * 3
    assert found["teacher_flops"] == pytest.approx(lines[2]["teacher_flops"])


def test_resumed_after_the_switch_never_loads_the_teacher(world, tmp_path, monkeypatch):
    laws.stopped_at(world, tmp_path / "run", 8, METHOD, "causal")
    with monkeypatch.context() as patched:
        patched.setattr(Live, "__call__", lambda *_: pytest.fail("the teacher was asked"))
        world.run(tmp_path / "run", METHOD)


def test_the_ledger_says_what_the_plan_said(world, tmp_path):
    """The teacher's share of the cost is n_KD / n x N_T / (3 N_S), as the paper has it."""
    recipe = world.recipe(METHOD)
    found = world.run(tmp_path / "run", METHOD)
    told = plan(recipe, tmp_path / "planned")
    assert found["teacher_flops"] == pytest.approx(told.teacher_flops, rel=1e-9)
    assert found["student_flops"] == pytest.approx(told.student_flops, rel=1e-9)
    whole = world.run(tmp_path / "whole", {"name": "salt", "until": 1.0})
    assert found["teacher_flops"] / whole["teacher_flops"] == pytest.approx(0.5, rel=0.02)


def test_the_teacher_is_made_surer(world, vocabulary):
    """At rho 1/4 probabilities go with their fourth power; the student keeps its own temperature."""
    from test_language import batch_of

    p = torch.tensor([0.5, 0.3, 0.2]).log()
    assert (p / 0.25).softmax(-1).tolist() == pytest.approx([0.866, 0.112, 0.022], abs=5e-4)
    teacher, student = make_model("llama", vocabulary, seed=1), make_model("gpt2", vocabulary, seed=2)
    batch, live = batch_of(vocabulary, 32), Live(lambda: teacher, vocabulary.size, 0, torch.no_grad)
    part = Part("distil", Divergence(), live, 0.25)
    loss = weighted((0.6, part), (0.4, next_token))(student, batch, Clock(0, 1))
    (slope,) = torch.autograd.grad(loss.total, student.model.lm_head.weight)
    features = student.features(batch)
    logits = student.head.logits(features)
    told = (4 * teacher.head.logits(teacher.features(batch))).softmax(-1).detach()
    gold = torch.nn.functional.one_hot(batch.rows.target_N, logits.shape[1])
    row = logits.softmax(-1) - (0.4 * gold + 0.6 * told)  # the gradient of each row's logits
    through = (logits * row.detach()).sum() / batch.rows_total
    assert torch.allclose(slope, torch.autograd.grad(through, student.model.lm_head.weight)[0], atol=1e-6)


@pytest.mark.parametrize("select", ["median", "random"])
def test_chosen_text_is_for_the_first_stage_alone(world, tmp_path, select):
    method = {"name": "salt", "until": 0.25, "select": select}
    found = world.run(tmp_path / "run", method)
    assert (found["scoring_flops"] > 0) == (select == "median")
    recipe = world.recipe(method)
    prepared = prepare(recipe)
    given = inputs(recipe, prepared, Place(), tmp_path, opener(recipe, "cpu"))
    taught, alone = stages_of(recipe, find_method(recipe), given)
    pool = taught.batches.choice.numbers
    assert len(pool) == 3 * 4  # as many sequences as the stage takes
    assert (np.diff(pool) > 0).all()
    assert alone.batches == prepared.batches  # nothing is skipped
    seen = {key for step in range(3) for key in taught.batches[step].keys}
    assert seen == set(replace(prepared.batches, ordered=True).of(pool).keys)


def test_resume_inside_the_first_stage_on_chosen_text(world, tmp_path):
    method = {"name": "salt", "until": 0.5, "select": "median"}
    laws.stop_and_resume_same_bits(world, tmp_path, method, "causal", (2, 8))


def test_it_learns(world, tmp_path):
    """From a teacher that has learned, more than alone in as many steps."""
    teacher = {"load": laws.learned(world, "causal")}
    found = [
        world.run(tmp_path / name, {**method, "name": "salt"}, teachers__teacher=teacher, train__tokens=2560)
        for name, method in (("taught", {"until": 0.5, "rho": 1.0}), ("alone", {"until": 0.0}))
    ]
    assert found[0]["valid"]["one"]["loss"] < found[1]["valid"]["one"]["loss"]


def test_a_judge_that_is_not_there(world):
    with pytest.raises(RecipeError, match=r"needs teachers\.judge"):
        plan(world.recipe({"name": "salt", "select": "median", "judge": "judge"}), world.folder / "none")


def test_several_teachers_cannot_judge(world, tmp_path):
    several = {"ensemble": {"a": 1.0, "b": 1.0}}
    one = {"load": world.teacher["causal"]}
    recipe = world.recipe({"name": "salt", "select": "median"}, teachers={"teacher": several, "a": one, "b": one})
    with pytest.raises(RecipeError, match="takes one model and not several teachers"):
        plan(recipe, tmp_path / "run")


def test_every_transition_trains(world, tmp_path):
    world.run(tmp_path / "run", {"name": "salt", "transition": "linear", "until": 0.5})
    assert len(losses(tmp_path / "run")) == 13
