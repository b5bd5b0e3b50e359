"""Selective: which tokens are learned from, and what that costs."""

import laws
import pytest
import torch
from conftest import make_model, same_bits, weights
from test_language import batch_of

from bequest.job.check import plan
from bequest.loss.excess import Excess, highest
from bequest.loss.rows import sequence_of
from bequest.report import metrics
from bequest.teach.live import Live
from bequest.types import Clock

ZERO = {"name": "selective", "keep": 1.0}
METHOD = {"name": "selective", "keep": 0.5}
NEEDS_TEACHER = False


def CHANGES(world, objective: str) -> dict:
    return {"teachers": {"reference": {"load": world.teacher[objective]}}}


ZERO_CHANGES = CHANGES


def test_the_highest_of_each_sequence(vocabulary):
    batch = batch_of(vocabulary, 32)
    value_N = torch.randn(len(batch.rows.target_N), generator=torch.Generator().manual_seed(0))
    rows, sequence_N = highest(value_N, batch, 0.3), sequence_of(batch)
    assert (rows.diff() > 0).all()
    for sequence in sequence_N.unique():
        own = (sequence_N == sequence).nonzero()[:, 0]
        kept = rows[sequence_N[rows] == sequence]
        assert len(kept) == -(-len(own) * 3 // 10)
        dropped = own[~torch.isin(own, kept)]
        assert value_N[kept].min() >= value_N[dropped].max()
    assert (highest(torch.zeros(len(value_N)), batch, 1.0) == torch.arange(len(value_N))).all()


def test_the_loss_is_the_papers(vocabulary):
    """1 / (N k) times the sum over the tokens with the highest excess, against whole logits."""
    student, reference = make_model("gpt2", vocabulary, seed=2), make_model("llama", vocabulary, seed=1)
    batch = batch_of(vocabulary, 32)
    live = Live(lambda: reference, vocabulary.size, 0, torch.no_grad)
    found = Excess(0.5, live)(student, batch, Clock(0, 1))
    nats = lambda model: torch.nn.functional.cross_entropy(
        model.head.logits(model.features(batch)), batch.rows.target_N, reduction="none"
    )
    own = nats(student)
    rows = highest((own - nats(reference)).detach(), batch, 0.5)
    expected = own[rows].sum() / (0.5 * batch.rows_total)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    slopes = [torch.autograd.grad(loss, student.model.lm_head.weight)[0] for loss in (found.total, expected)]
    assert torch.allclose(*slopes, atol=1e-6)


def test_a_kept_answer_knows_the_token(world, tmp_path):
    """A store of the reference's answers chooses the same tokens as the reference itself."""
    from bequest.job.teach import teach

    live = world.run(tmp_path / "live", METHOD, **CHANGES(world, "causal"))
    spec = {"load": world.teacher["causal"], "store": str(tmp_path / "store")}
    kept = {"kind": "topk", "keep": 8, "values": "fp32"}
    changes = {"teachers": {"reference": spec}, "teach": kept}
    teach(world.recipe(METHOD, **changes))
    stored = world.run(tmp_path / "stored", METHOD, **changes)
    assert stored["valid"]["one"]["loss"] == pytest.approx(live["valid"]["one"]["loss"], rel=1e-3)


def test_the_ledger_says_what_the_plan_said(world, tmp_path):
    """Student 3 F_S and one head more, less three heads of what is dropped; reference F_R."""
    found = world.run(tmp_path / "run", METHOD, **CHANGES(world, "causal"))
    told = plan(world.recipe(METHOD, **CHANGES(world, "causal")), tmp_path / "planned")
    assert found["student_flops"] == pytest.approx(told.student_flops, rel=0.01)
    assert found["teacher_flops"] == pytest.approx(told.teacher_flops, rel=1e-9)
    plain = world.run(tmp_path / "plain", {"name": "plain"})
    assert found["student_flops"] < plain["student_flops"]


def test_as_many_by_chance_asks_nobody(world, tmp_path):
    method = {**METHOD, "choose": "random"}
    found = world.run(tmp_path / "run", method, **CHANGES(world, "causal"))
    assert found["teacher_flops"] == 0
    world.run(tmp_path / "excess", METHOD, **CHANGES(world, "causal"))
    assert not same_bits(weights(tmp_path / "run"), weights(tmp_path / "excess"))
    laws.micro_batches_change_nothing(world, tmp_path / "split", method, "causal", **CHANGES(world, "causal"))
    laws.stop_and_resume_same_bits(world, tmp_path / "stop", method, "causal", (5,), **CHANGES(world, "causal"))


def test_it_learns(world, tmp_path):
    reference = {"teachers": {"reference": {"load": laws.learned(world, "causal")}}}
    found = world.run(tmp_path / "run", METHOD, **reference, train__tokens=4096)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert found["valid"]["one"]["loss"] < lines[0]["loss"] - 0.5
