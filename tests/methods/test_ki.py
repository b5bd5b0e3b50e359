"""Knowledge Inheritance: the schedule, the mix, and letting the teacher go."""

from itertools import pairwise

import pytest
import torch
from conftest import losses, make_model

from bequest.config import decode
from bequest.loss.combine import distil, next_token, weighted
from bequest.loss.schedule import linear
from bequest.methods.ki import KI
from bequest.report import metrics
from bequest.teach.live import Live
from bequest.types import Clock

ZERO = {"name": "ki", "start": 0.0}
METHOD = {"name": "ki", "until": 0.5}
NEEDS_TEACHER = True


def test_rate_is_the_papers():
    rate = linear(1.0, 0.0, 40 / 125)
    assert [rate(Clock(t * 1000, 125_000)) for t in (0, 20, 40, 41, 125)] == pytest.approx(
        [1.0, 0.5, 0.0, 0.0, 0.0], abs=1e-12
    )
    assert rate(Clock(40_000, 125_000)) == 0.0
    assert not rate.ended(Clock(39_999, 125_000))
    assert rate.ended(Clock(40_000, 125_000))


def test_no_hard_label_at_the_start(world, tmp_path):
    world.run(tmp_path / "run", METHOD)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert set(lines[0]["parts"]) == {"distil"}
    assert set(lines[-1]["parts"]) == {"next_token"}
    assert [line["rate"] for line in lines] == pytest.approx([max(0.0, 1 - t / 6) for t in range(12)])


def test_teacher_is_asked_once_per_step_and_released(world, tmp_path, monkeypatch):
    asked, loaded = [], []
    original = Live.__call__
    monkeypatch.setattr(
        Live, "__call__", lambda self, batch, temperature: asked.append(1) or original(self, batch, temperature)
    )
    released = Live.release
    monkeypatch.setattr(Live, "release", lambda self: loaded.append(self.loaded) or released(self))
    summary = world.run(tmp_path / "run", METHOD)
    assert len(asked) == 6
    assert loaded[0] is True
    assert not any(loaded[1:])
    assert 0 < summary["teacher_flops"] < summary["student_flops"]


def test_resumed_after_the_hand_over_never_loads_the_teacher(world, tmp_path, monkeypatch):
    import laws

    laws.stopped_at(world, tmp_path / "run", 9, METHOD, "causal")
    monkeypatch.setattr(Live, "model", property(lambda self: pytest.fail("the teacher was loaded")))
    world.run(tmp_path / "run", METHOD)


def test_stops_when_the_student_has_passed(world, tmp_path):
    """At one of the comparisons the rate falls to zero, and stays there."""
    method = {"name": "ki", "shape": "constant", "start": 0.5, "compare_every": 0.25}
    world.run(tmp_path / "run", method, teachers__teacher=world.weak_teacher())
    rates = [line["rate"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "rate" in line]
    assert rates[0] == 0.5
    assert rates[-1] == 0.0
    assert rates == sorted(rates, reverse=True)
    assert sum(a != b for a, b in pairwise(rates)) == 1
    assert rates.index(0.0) % 3 == 0


@pytest.mark.parametrize("shape", ["linear", "constant", "heaviside", "cosine", "wsd"])
def test_every_shape_trains(world, tmp_path, shape):
    world.run(tmp_path / "run", {"name": "ki", "shape": shape})
    assert len(losses(tmp_path / "run")) == 13


def test_mix_is_the_papers_formula(world, vocabulary):
    """At rate 1/2 and temperature 2 the loss and its gradient equal the formula on whole logits."""
    from test_language import batch_of

    teacher, student = make_model("llama", vocabulary, seed=1), make_model("gpt2", vocabulary, seed=2)
    batch = batch_of(vocabulary, 32)
    live = Live(lambda: teacher, vocabulary.size, 0, torch.no_grad)
    loss = weighted((0.5, distil(live, 2.0)), (0.5, next_token))(student, batch, Clock(0, 1))
    loss.total.backward()
    found = student.model.lm_head.weight.grad.clone()
    student.zero_grad()
    features = student.features(batch)
    z_L, z_S = student.head.logits(features), teacher.head.logits(teacher.features(batch)).detach()
    q, p = (z_L / 2).log_softmax(-1), (z_S / 2).log_softmax(-1)
    kl = 4 * (p.exp() * (p - q)).sum(-1)
    ce = torch.nn.functional.cross_entropy(z_L, batch.rows.target_N, reduction="none")
    expected = (0.5 * kl + 0.5 * ce).sum() / batch.rows_total
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(found, student.model.lm_head.weight.grad, atol=1e-6)
    assert loss.rate == 0.5
    assert set(loss.parts) == {"distil", "next_token"}


def test_defaults_decode():
    assert decode(KI, {}, "a test").until == 0.32
