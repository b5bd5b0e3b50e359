"""Live teachers and the placebos in their place."""

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from conftest import make_model, same_bits
from test_language import batch_of

from bequest.device import Place
from bequest.loss.terms import Divergence, next_token
from bequest.model import build
from bequest.teach.controls import Renormalised, Shuffled, Smoothed, Uniform, smoothing
from bequest.teach.live import Live
from bequest.types import Chunk, Clock, Signal


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


@pytest.mark.parametrize("vocabulary", [2, 300, 50_257, 262_144])
def test_smoothing_has_any_entropy(vocabulary):
    most = math.log(vocabulary)
    shares = torch.tensor([0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6, 1.0, 1.5], dtype=torch.float64)
    share = smoothing(shares * most, vocabulary)
    off = share * (1 - 1 / vocabulary)
    entropy = (off - 1) * (-off).log1p() - off * (share / vocabulary).log()
    assert torch.allclose(entropy, shares.clamp(max=1.0) * most, rtol=1e-6, atol=1e-25)
    assert share.isfinite().all()
    assert torch.equal(share, torch.cat([smoothing(one, vocabulary) for one in (shares * most).split(3)]))


def sampled(vocabulary, batch):
    """Draws, whose entropy is told beside them."""
    dense = teacher(vocabulary)(batch, 1.0)[slice(None)]
    ids = torch.zeros(len(dense.logp_NK), 3, dtype=torch.long)
    return Signal(ids, torch.full(ids.shape, -math.log(3)), None, whole_entropy_N=dense.entropy() * 0.5)


@dataclass(frozen=True)
class Says:
    signal: Signal

    def __call__(self, batch, temperature):
        return self.signal


@pytest.mark.parametrize("kind", ["dense", "kept", "sampled"])
def test_smoothed_is_as_unsure_as_the_teacher_and_knows_the_text_alone(vocabulary, batch, kind):
    rows = slice(3, 40)
    live = {"dense": teacher(vocabulary), "kept": teacher(vocabulary, 5)}
    asked = live[kind] if kind in live else Says(sampled(vocabulary, batch))
    signal = Smoothed(asked, vocabulary.size)(batch, 1.0)[rows]
    assert (signal.ids_NK, signal.logrest_N, signal.logp_NK.dtype) == (None, None, torch.float32)
    assert torch.allclose(signal.entropy(), asked(batch, 1.0)[rows].entropy(), rtol=1e-5)
    assert torch.allclose(signal.logp_NK.exp().sum(-1), torch.ones(37), atol=1e-5)
    assert torch.equal(signal.logp_NK.argmax(-1), batch.rows.target_N[rows])
    others = signal.logp_NK.scatter(1, batch.rows.target_N[rows, None], -torch.inf).sort(-1).values[:, 1:]
    assert torch.equal(others, others[:, :1].expand_as(others))


def test_smoothed_does_not_depend_on_the_split(vocabulary, batch):
    smoothed = Smoothed(teacher(vocabulary), vocabulary.size)
    whole = smoothed(batch, 1.0)[slice(None)].logp_NK
    assert torch.allclose(torch.cat([smoothed(m, 1.0)[slice(None)].logp_NK for m in batch.micro(1)]), whole, atol=1e-5)


def test_a_smoothed_teacher_that_is_sure_gives_the_text(batch):
    """No entropy at all: what is learned is next to the realised token alone, and nothing is infinite."""
    targets = batch.rows.target_N
    sure = Signal(targets[:, None], torch.zeros(len(targets), 1), torch.full((len(targets),), -torch.inf))
    signal = Smoothed(Says(sure), 300)(batch, 1.0)[slice(None)]
    student = torch.randn(len(targets), 300)
    loss = Divergence()(student, Chunk(targets, signal), Clock(0, 1))
    assert torch.allclose(loss, next_token(student, Chunk(targets, None), Clock(0, 1)), atol=1e-5)


def test_uniform_costs_nothing(vocabulary, batch):
    signal = Uniform(vocabulary.size)(batch, 1.0)[slice(0, 4)]
    assert signal.logp_NK.shape == (4, vocabulary.size)
    assert signal.logp_NK.unique().item() == pytest.approx(-math.log(vocabulary.size))
    assert Uniform(vocabulary.size).flops(batch) == 0.0


@pytest.mark.parametrize("control", ["renormalise", "shuffle", "smooth", "uniform", "untrained"])
def test_controls_run_from_a_recipe(world, tmp_path, control):
    spec = {"load": world.teacher["causal"], "keep": 4 if control == "renormalise" else 0, "control": control}
    method = {"name": "ki", "shape": "constant", "start": 0.5}
    placebo = world.run(tmp_path / "a", method, teachers__teacher=spec)
    real = world.run(tmp_path / "b", method)
    assert placebo["valid"]["one"]["loss"] != real["valid"]["one"]["loss"]
    assert (placebo["teacher_flops"] == 0) == (control == "uniform")


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_an_untrained_model_is_the_same_every_time_and_disturbs_nothing(world, objective):
    torch.manual_seed(3)
    straight = torch.rand(4)
    torch.manual_seed(3)
    one, two = (build.untrained(world.teacher[objective], objective) for _ in range(2))
    assert torch.equal(torch.rand(4), straight)
    trained = build.load(world.teacher[objective], objective)
    assert same_bits(one.state_dict(), two.state_dict())
    assert {n: w.shape for n, w in one.state_dict().items()} == {n: w.shape for n, w in trained.state_dict().items()}
    assert not same_bits(one.state_dict(), trained.state_dict())
    assert {w.dtype for w in one.parameters()} == {torch.float32}


def test_an_untrained_teacher_is_measured_and_has_cost_nothing(world, tmp_path):
    spec = {**world.weak_teacher(), "control": "untrained"}
    summary = world.run(tmp_path / "run", {"name": "ki", "until": 1.0}, teachers__teacher=spec)
    assert summary["teachers"]["teacher"]["one"]["loss"] == pytest.approx(math.log(300), rel=0.05)
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    (teacher,) = lineage["predecessors"]
    assert teacher["name"] == "test, untrained"
    assert (teacher["tokens"], teacher["flops"], teacher["predecessors"]) == (0, 0.0, [])
