"""Live teachers and the placebos in their place."""

import math
from contextlib import nullcontext

import pytest
import torch
from conftest import make_model
from test_language import batch_of

from bequest.device import Place
from bequest.teach.controls import Renormalised, Shuffled, Uniform
from bequest.teach.live import Live
from bequest.types import Clock


@pytest.fixture
def batch(vocabulary):
    return batch_of(vocabulary, 32)


def teacher(vocabulary, keep=0, **sizes):
    model = make_model("llama", vocabulary, **sizes)
    return Live(lambda: model, vocabulary.size, keep, nullcontext)


def test_dense_answer_is_the_models_distribution(vocabulary, batch):
    live = teacher(vocabulary)
    logp = live(batch, 2.0)[slice(0, 7)].logp_NK
    model = live.model
    with torch.no_grad():
        expected = (model.head.logits(model(batch)) / 2.0).log_softmax(-1)[:7]
    assert torch.allclose(logp, expected, atol=1e-6)
    assert not model.training


@pytest.mark.parametrize("keep", [1, 8, 1000])
def test_kept_answer_holds_all_the_mass(vocabulary, batch, keep):
    signal = teacher(vocabulary, keep)(batch, 1.0)[slice(None)]
    assert signal.ids_NK.shape[1] == min(keep, vocabulary.size)
    mass = signal.logp_NK.exp().sum(-1) + signal.logrest_N.exp()
    assert torch.allclose(mass, torch.ones_like(mass), atol=1e-5)


def test_chunks_do_not_matter(vocabulary, batch, monkeypatch):
    from bequest.teach import live

    one = teacher(vocabulary, 5)(batch, 1.0)
    monkeypatch.setattr(live, "rows_at_once", lambda vocabulary, device: 3)
    two = teacher(vocabulary, 5)(batch, 1.0)
    assert torch.equal(one.ids_NK, two.ids_NK)
    assert torch.allclose(one.logp_NK, two.logp_NK, atol=1e-6)


def test_padded_rows_of_the_teacher_say_nothing(vocabulary, batch):
    signal = teacher(vocabulary, vocab=vocabulary.size + 20)(batch, 1.0)[slice(None)]
    assert signal.logp_NK.shape[1] == vocabulary.size
    assert torch.allclose(signal.logp_NK.exp().sum(-1), torch.ones(len(signal.logp_NK)), atol=1e-5)


def test_loaded_late_and_released(vocabulary, batch):
    loads = []
    live = Live(lambda: loads.append(1) or make_model("llama", vocabulary), vocabulary.size, 0, nullcontext)
    assert not live.loaded
    live(batch, 1.0)
    live(batch, 1.0)
    assert (live.loaded, len(loads)) == (True, 1)
    live.release()
    assert not live.loaded


def test_equal_teacher_gives_no_gradient_through_the_whole_model(vocabulary, batch):
    """fp32 and bf16, all kept or few: the law end to end."""
    from bequest.loss.combine import distil, weighted

    for place in (Place("cpu", "fp32"), Place("cpu", "bf16")):
        for keep in (0, 4):
            student = make_model("gpt2", vocabulary, seed=3)
            live = Live(lambda: make_model("gpt2", vocabulary, seed=3), vocabulary.size, keep, place.autocast)
            with place.autocast():
                loss = weighted((1.0, distil(live)))(student.eval(), batch, Clock(0, 1))
            loss.total.backward()
            assert abs(loss.total.item()) < 1e-6
            assert max(p.grad.abs().max().item() for p in student.parameters() if p.grad is not None) < 1e-6


def test_shuffled_moves_whole_rows_within_a_sequence(vocabulary, batch):
    live = teacher(vocabulary)
    straight, moved = live(batch, 1.0)[slice(None)].logp_NK, Shuffled(live)(batch, 1.0)[slice(None)].logp_NK
    first = int((batch.rows.index_N < 32).sum())
    assert not torch.equal(straight, moved)
    for part in (slice(0, first), slice(first, None)):
        assert torch.allclose(straight[part].sum(0), moved[part].sum(0), atol=1e-3)
    parts = [Shuffled(live)(m, 1.0)[slice(None)].logp_NK for m in batch.micro(1)]
    assert torch.allclose(torch.cat(parts), moved, atol=1e-5)


def test_renormalised_has_no_rest(vocabulary, batch):
    signal = Renormalised(teacher(vocabulary, 6))(batch, 1.0)[slice(2, 5)]
    assert signal.logrest_N is None
    assert torch.allclose(signal.logp_NK.exp().sum(-1), torch.ones(3), atol=1e-6)


def test_uniform_costs_nothing(vocabulary, batch):
    signal = Uniform(vocabulary.size)(batch, 1.0)[slice(0, 4)]
    assert signal.logp_NK.shape == (4, vocabulary.size)
    assert signal.logp_NK.unique().item() == pytest.approx(-math.log(vocabulary.size))
    assert Uniform(vocabulary.size).flops(batch) == 0.0


@pytest.mark.parametrize("control", ["renormalise", "shuffle", "uniform"])
def test_controls_run_from_a_recipe(world, tmp_path, control):
    spec = {"load": world.teacher["causal"], "keep": 4 if control == "renormalise" else 0, "control": control}
    method = {"name": "ki", "shape": "constant", "start": 0.5}
    placebo = world.run(tmp_path / "a", method, teachers__teacher=spec)
    real = world.run(tmp_path / "b", method)
    assert placebo["valid"]["one"]["loss"] != real["valid"]["one"]["loss"]
    assert (placebo["teacher_flops"] == 0) == (control == "uniform")
