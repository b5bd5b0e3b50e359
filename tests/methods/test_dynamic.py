"""Dynamic: uncertainty by hand, what is sent to whom, how it weighs, and what it costs."""

import laws
import pytest
import torch
from conftest import make_model, same_bits, weights
from test_language import batch_of

from bequest.job.check import plan
from bequest.loss.hidden import Layers
from bequest.loss.rows import CRITERIA
from bequest.loss.unsure import Steering, Unsure
from bequest.model.flops import forward_flops
from bequest.report import metrics
from bequest.teach.live import Live
from bequest.types import Clock, RecipeError

ZERO = {"name": "dynamic", "weight": 0.0}
METHOD = {"name": "dynamic", "share": 0.5, "adjust": "unsure", "hidden": 1.0}
NEEDS_TEACHER = True
ALONE = {
    "weight": 1.0,
    "temperature": 1.0,
    "criterion": "entropy",
    "share": 1.0,
    "reverse": False,
    "adopt": "one",
    "adjust": "none",
    "hidden": 0.0,
    "seed": 0,
}


def live(model, vocabulary) -> Live:
    return Live(lambda: model, vocabulary.size, 0, torch.no_grad)


def test_uncertainty_by_hand():
    rows = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    logits = rows.clamp_min(1e-30).log()
    assert CRITERIA["entropy"](logits).tolist() == pytest.approx([1, 0, 0.63093, 0.72985, 0.93723], abs=2e-5)
    assert CRITERIA["margin"](logits).tolist() == pytest.approx([1, 0, 1, 0.5, 0.8], abs=1e-5)
    assert CRITERIA["confidence"](logits).tolist() == pytest.approx([2 / 3, 0, 0.5, 0.3, 0.5], abs=1e-5)


def test_everything_sent_is_distillation(world, tmp_path):
    world.run(tmp_path / "one", {"name": "dynamic"})
    world.run(tmp_path / "other", {"name": "dwt", "soft": 1.0, "end": 1.0})
    assert same_bits(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_who_is_asked_about_what():
    keys, unsure = [bytes([n]) for n in range(6)], [0.1, 0.9, 0.5, 0.9, 0.3, 0.2]
    sent = lambda **changes: Steering(**{**ALONE, **changes}).teacher_of(keys, unsure)
    number = lambda found: {key[0]: teacher for key, teacher in found.items()}
    assert number(sent(share=0.5)) == {1: 0, 3: 0, 2: 0}  # the least sure; of equals the first
    assert number(sent(share=0.5, reverse=True)) == {0: 0, 5: 0, 4: 0}
    assert number(sent(share=0.01)) == {1: 0}  # never none
    assert number(sent(adopt="hard")) == {1: 0, 3: 0, 2: 0, 4: 1, 5: 1, 0: 1}
    assert len(sent(share=1.0)) == 6


def test_hard_assignment_follows_the_sequences(world, vocabulary):
    """In another order each sequence has the same teacher."""
    keys, unsure = [bytes([n]) for n in range(5)], [0.1, 0.9, 0.5, 0.8, 0.3]
    steering = Steering(**{**ALONE, "adopt": "hard"})
    order = [3, 1, 4, 0, 2]
    assert steering.teacher_of(keys, unsure) == steering.teacher_of(
        [keys[n] for n in order], [unsure[n] for n in order]
    )


def test_soft_adoption_of_equal_teachers_is_one_teacher(vocabulary):
    student, teacher = make_model("gpt2", vocabulary, seed=2), make_model("llama", vocabulary, seed=1)
    batch = batch_of(vocabulary, 32)
    soft = Unsure(Steering(**{**ALONE, "adopt": "soft"}), [live(teacher, vocabulary)] * 2, None)(
        student, batch, Clock(0, 1)
    )
    one = Unsure(Steering(**ALONE), [live(teacher, vocabulary)], None)(student, batch, Clock(0, 1))
    assert soft.total.item() == pytest.approx(one.total.item(), rel=1e-6)
    assert soft.teacher_flops == 2 * one.teacher_flops


def test_weights_are_numbers_without_gradient(vocabulary):
    """The gradient of the weighted sum is the weighted sum of gradients, against whole logits."""
    student, teacher = make_model("gpt2", vocabulary, seed=2), make_model("gpt2", vocabulary, seed=1)
    batch = batch_of(vocabulary, 32)
    for adjust in ("unsure", "swapped"):
        layers = Layers(lambda: teacher, ((2, 2),))
        steering = Steering(**{**ALONE, "adjust": adjust, "hidden": 2.0})
        loss = Unsure(steering, [live(teacher, vocabulary)], layers)
        loss.meet(student)
        found = loss(student, batch, Clock(0, 1))
        from bequest.model.states import watched

        with watched(student, [2]) as own, watched(teacher, [2]) as other:
            logits, told = (m.head.logits(m.features(batch)) for m in (student, teacher))
        u = CRITERIA["entropy"](logits).detach()
        p, q = told.log_softmax(-1).detach(), logits.log_softmax(-1)
        kl, ce = (p.exp() * (p - q)).sum(-1), torch.nn.functional.nll_loss(q, batch.rows.target_N, reduction="none")
        unit = lambda s: torch.nn.functional.normalize(s[2].flatten(0, 1)[batch.rows.index_N], dim=-1)
        apart = (unit(own) - unit(other).detach()).square().mean(-1)
        a, b = (1 - u, u) if adjust == "unsure" else (u, 1 - u)
        expected = (ce + a * kl + 2.0 * b * apart).sum() / batch.rows_total
        assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
        weight = student.model.transformer.h[0].mlp.c_fc.weight
        slopes = [torch.autograd.grad(one, weight)[0] for one in (found.total, expected)]
        assert torch.allclose(*slopes, atol=1e-6)


def test_only_what_is_sent_is_paid_for(world, tmp_path, monkeypatch):
    asked = []
    original = Live.__call__
    monkeypatch.setattr(
        Live,
        "__call__",
        lambda self, batch, temperature: asked.append(len(batch.keys)) or original(self, batch, temperature),
    )
    found = world.run(tmp_path / "run", {"name": "dynamic", "share": 0.5})
    assert asked == [2] * 12
    whole = world.run(tmp_path / "whole", {"name": "dynamic"})
    assert found["teacher_flops"] / whole["teacher_flops"] == pytest.approx(0.5, rel=0.05)
    plain = world.run(tmp_path / "plain", {"name": "plain"})
    assert plain["student_flops"] == whole["student_flops"] < found["student_flops"]  # the head is passed once more
    told = plan(world.recipe({"name": "dynamic", "share": 0.5}), tmp_path / "planned")
    assert found["teacher_flops"] == pytest.approx(told.teacher_flops, rel=0.05)
    assert found["student_flops"] == pytest.approx(told.student_flops, rel=1e-9)


def test_a_batch_in_parts_is_looked_at_once_more(world, tmp_path):
    whole = world.run(tmp_path / "whole", {"name": "dynamic", "share": 0.5})
    parts = world.run(tmp_path / "parts", {"name": "dynamic", "share": 0.5}, train__micro_batch_tokens=64)
    from bequest.job.prepare import new_student, prepare

    recipe = world.recipe({"name": "plain"})
    prepared = prepare(recipe)
    student = new_student(recipe, prepared.vocabulary)
    forward = sum(forward_flops(student, prepared.batches[step]) for step in range(12))
    assert parts["student_flops"] - whole["student_flops"] == pytest.approx(forward, rel=1e-6)
    assert parts["teacher_flops"] == pytest.approx(whole["teacher_flops"], rel=0.05)


@pytest.mark.parametrize("adopt", ["hard", "soft"])
def test_two_teachers(world, tmp_path, adopt):
    larger = {"teachers__larger": {"load": world.save("llama", "causal", hidden=32, heads=4)}}
    method = {"name": "dynamic", "adopt": adopt}
    world.run(tmp_path / "run", method, **larger)
    laws.micro_batches_change_nothing(world, tmp_path / "split", method, "causal", **larger)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert {"next_token", "distil"} <= set(lines[0]["parts"])


def test_by_chance_is_the_control(world, tmp_path):
    method = {"name": "dynamic", "share": 0.5, "criterion": "random"}
    found = world.run(tmp_path / "run", method)
    plain = world.run(tmp_path / "plain", {"name": "plain"})
    assert found["student_flops"] == plain["student_flops"]  # chance looks at no logits
    assert found["teacher_flops"] > 0
    laws.stop_and_resume_same_bits(world, tmp_path / "stop", method, "causal", (5,))


def test_it_learns(world, tmp_path):
    teacher = {"teachers__teacher": {"load": laws.learned(world, "causal")}}
    found = [
        world.run(tmp_path / name, method, **teacher, train__tokens=2560)["valid"]["one"]["loss"]
        for name, method in (("taught", {"name": "dynamic", "share": 0.5, "weight": 2.0}), ("alone", {"name": "plain"}))
    ]
    assert found[0] < found[1]


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"adopt": "hard"}, "give teachers.larger"),
        ({"criterion": "random", "adjust": "unsure"}, "says nothing about uncertainty"),
        ({"hidden": 1.0, "layers": [[7, 1]]}, "no layer 7"),
    ],
)
def test_settings_that_do_not_go_together(world, tmp_path, method, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan(world.recipe({"name": "dynamic", **method}), tmp_path / "run")


def test_hidden_states_of_several_teachers_are_refused(world, tmp_path):
    one = {"load": world.teacher["causal"]}
    several = {"teacher": {"ensemble": {"a": 1.0, "b": 1.0}}, "a": one, "b": one}
    with pytest.raises(RecipeError, match="one model as teacher"):
        plan(world.recipe({"name": "dynamic", "hidden": 1.0}, teachers=several), tmp_path / "run")
