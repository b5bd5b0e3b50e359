"""Terms, schedules, weighted sums and the projection."""

import math

import pytest
import torch
from laws import case, gradient, kept

from bequest.device import Place
from bequest.loss import project, schedule, terms
from bequest.loss.project import Addend
from bequest.model.language import Head
from bequest.optim import Policy
from bequest.recipe import ScheduleSettings
from bequest.types import Clock, Entry, Signal

STUDENT = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)


def dense(logits, temperature=1.0):
    return Signal(None, (logits / temperature).log_softmax(-1), None)


# terms: numbers of specs and papers, worked by hand


@pytest.mark.parametrize(
    ("temperature", "value"), [(1.0, 0.912983), (2.0, 1.091222), (10.0, 1.0446), (100.0, 1.0050), (1000.0, 1.0005)]
)
def test_divergence_at_temperatures(temperature, value):
    loss, _ = gradient(terms.Divergence(temperature, temperature**2), STUDENT, dense(TEACHER, temperature))
    assert loss.item() == pytest.approx(value, abs=1e-4)


def test_half_of_each_at_temperature_two():
    target = torch.tensor([0])
    kl, kl_slope = gradient(terms.Divergence(2.0, 4.0), STUDENT, dense(TEACHER, 2.0))
    ce, ce_slope = gradient(terms.next_token, STUDENT, None, target)
    assert ce.item() == pytest.approx(1.551445, abs=1e-6)
    assert (0.5 * kl + 0.5 * ce).item() == pytest.approx(1.321333, abs=1e-6)
    assert (0.5 * kl_slope + 0.5 * ce_slope)[0].tolist() == pytest.approx([-0.748492, 0.508697, 0.239795], abs=1e-6)


def test_renormalised_is_biased_and_the_rest_bucket_is_not():
    from bequest.teach.live import without_rest

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    signal = kept(logits, 2)
    loss, slope = gradient(terms.Divergence(1.0, 1.0), logits, without_rest(signal))
    assert loss.item() == pytest.approx(0.126928, abs=1e-6)
    assert slope[0].tolist() == pytest.approx([-0.087144, -0.032059, 0.087144, 0.032059], abs=1e-6)
    loss, slope = gradient(terms.Divergence(1.0, 1.0), logits, signal)
    assert loss.abs().max() < 1e-15
    assert slope.abs().max() < 1e-15


@pytest.mark.parametrize("keep", [1, 3, 10, 36])
def test_rest_bucket_is_a_lower_bound_with_the_known_gradient(keep):
    """On kept ids p - t, elsewhere p (M - Q) / (1 - Q); rows of the gradient sum to zero."""
    student, teacher, _ = case()
    signal = kept(teacher, keep)
    loss, slope = gradient(terms.Divergence(1.0, 1.0), student, signal)
    whole, _ = gradient(terms.Divergence(1.0, 1.0), student, dense(teacher))
    assert (loss <= whole + 1e-12).all()
    p, t = student.softmax(-1), signal.logp_NK.exp()
    Q, M = p.gather(-1, signal.ids_NK).sum(-1, keepdim=True), t.sum(-1, keepdim=True)
    expected = (p * (M - Q) / (1 - Q)).scatter(-1, signal.ids_NK, p.gather(-1, signal.ids_NK) - t)
    assert torch.allclose(slope, expected, atol=1e-12)
    assert slope.sum(-1).abs().max() < 1e-12


def test_constants_added_to_logits_change_nothing():
    student, teacher, _ = case()
    signal = kept(teacher + 100.0, 5)
    one, _ = gradient(terms.Divergence(2.0, 4.0), student, kept(teacher, 5))
    two, _ = gradient(terms.Divergence(2.0, 4.0), student - 50.0, signal)
    assert torch.allclose(one, two, atol=1e-10)


def test_uniform_teacher_is_label_smoothing():
    student, _, _ = case()
    size = student.shape[1]
    uniform = Signal(None, torch.full_like(student, -math.log(size)), None)
    loss, _ = gradient(terms.Divergence(1.0, 1.0), student, uniform)
    assert torch.allclose(loss, -student.log_softmax(-1).mean(-1) - math.log(size), atol=1e-12)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("keep", [1, 4])
def test_extreme_logits_stay_finite(scale, keep):
    student, teacher, _ = case(dtype=torch.float32)
    for left, right in ((student * scale, teacher), (student, teacher * scale), (student * scale, teacher * scale)):
        loss, slope = gradient(terms.Divergence(1.0, 1.0), left, kept(right, keep))
        assert torch.isfinite(loss).all()
        assert torch.isfinite(slope).all()


def test_a_sure_student_keeps_an_exact_rest():
    """fp32 against float64 where 1 - sum(kept) would have lost every digit."""
    logits = torch.zeros(1, 50_257, dtype=torch.float64)
    logits[0, :32] = 24.0
    teacher = logits.clone()
    teacher[0, 0] = 25.0
    _, exact = gradient(terms.Divergence(1.0, 1.0), logits, kept(teacher, 32))
    _, single = gradient(terms.Divergence(1.0, 1.0), logits.float(), kept(teacher.float(), 32))
    outside = exact[0, 32:]
    assert ((single[0, 32:] - outside).abs() / outside.abs()).max() < 1e-3


def test_teacher_with_fewer_ids_than_the_student():
    """Padded student rows get no mass from the teacher."""
    student, teacher, _ = case()
    loss, slope = gradient(terms.Divergence(1.0, 1.0), student, dense(teacher[:, :30]))
    p = teacher[:, :30].softmax(-1)
    expected = (p * (p.log() - student.log_softmax(-1)[:, :30])).sum(-1)
    assert torch.allclose(loss, expected, atol=1e-12)
    assert torch.allclose(slope[:, 30:], student.softmax(-1)[:, 30:], atol=1e-12)


# projection


def total_of(features, weight, *addends, target=None):
    target = torch.zeros(len(features), dtype=torch.long) if target is None else target
    return project.project(features, Head(weight), target, addends, Clock(0, 1))[0]


def lse(logits, chunk, clock):
    return logits.logsumexp(-1)


@pytest.mark.parametrize("term", [terms.next_token, lse])
def test_empty_batch_and_frozen_head(term):
    features, weight = torch.randn(0, 4, requires_grad=True), torch.randn(7, 4)
    total = total_of(features, weight, Addend(term, 1.0))
    total.backward()
    assert total.item() == 0.0
    assert features.grad.shape == (0, 4)
    features = torch.randn(5, 4, requires_grad=True)
    total_of(features, weight, Addend(term, 1.0)).backward()
    assert weight.grad is None
    assert features.grad.abs().sum() > 0


def test_projection_refuses_a_second_derivative_and_a_second_pass():
    features, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    total = total_of(features, weight, Addend(lse, 1.0))
    (slope,) = torch.autograd.grad(total, features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|differentiate twice"):
        slope.sum().backward()
    with pytest.raises(AssertionError, match="has been taken"):
        total.backward()


@pytest.mark.parametrize("asked", ["gold", "kept", "dense"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_tensor_of_all_rows_by_all_ids(monkeypatch, asked, precision):
    """Peak of every tensor that the projection makes: rows times ids of one chunk, not of the batch."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            seen.extend(
                t.numel() for t in (found if isinstance(found, tuple) else (found,)) if isinstance(t, torch.Tensor)
            )
            return found

    monkeypatch.setattr(project, "chunk_rows", lambda *_: 32)
    features, weight = torch.randn(640, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    target, teacher = torch.randint(500, (640,)), torch.randn(640, 500)
    signal = {"gold": None, "kept": kept(teacher, 5), "dense": dense(teacher)}[asked]
    told = [] if signal is None else [Addend(terms.Divergence(2.0), 0.5, signal)]
    with Watch(), Place("cpu", precision).autocast():
        total_of(features, weight, Addend(terms.next_token, 1.0), *told, target=target).backward()
    assert max(seen) <= 32 * 500


def test_bf16_head_sums_in_fp32():
    features, weight = torch.randn(300, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    target, addend = torch.randint(50, (300,)), Addend(terms.next_token, 1.0)
    exact = total_of(features, weight, addend, target=target)
    exact_slope = torch.autograd.grad(exact, weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        total = total_of(features, weight, addend, target=target)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=5e-3)
    (slope,) = torch.autograd.grad(total, weight)
    assert slope.dtype == torch.float32
    assert (slope - exact_slope).norm() < 1e-2 * exact_slope.norm()  # features and weights are rounded, too


# schedules


@pytest.mark.parametrize("name", schedule.SHAPES)
def test_every_shape_begins_ends_and_stays_between(name):
    rate = schedule.SHAPES[name](0.8, 0.0, 0.5)
    values = [rate(Clock(t, 100)) for t in range(101)]
    assert all(0.0 <= v <= 0.8 for v in values)
    if name != "constant":
        assert values[50:] == [0.0] * 51
        assert rate.ended(Clock(50, 100))
        assert not rate.ended(Clock(49, 100))
    if name in ("linear", "cosine", "heaviside", "constant"):
        assert values[0] == 0.8
    assert [(1 - rate)(Clock(t, 100)) for t in range(101)] == pytest.approx([1 - v for v in values])


def test_shapes_at_their_half_way():
    half = Clock(25, 100)
    assert {n: round(schedule.SHAPES[n](1.0, 0.0, 0.5)(half), 6) for n in schedule.SHAPES} == {
        "linear": 0.5, "cosine": 0.5, "heaviside": 1.0, "constant": 1.0, "wsd": 1.0,
    }  # fmt: skip


def test_four_to_one():
    rate = schedule.linear(4.0, 1.0)
    assert [rate(Clock(t, 10)) for t in (0, 5, 10)] == [4.0, 2.5, 1.0]
    assert not rate.ended(Clock(10, 10))


def test_zero_until_never_teaches():
    assert schedule.linear(1.0, 0.0, 0.0)(Clock(0, 10)) == 0.0


def test_until_passed_reads_the_journal_alone():
    rate = schedule.until_passed(schedule.constant(0.7))
    entries = [
        Entry("a", 0, {"student": 5.0, "teacher": 3.0}),
        Entry("a", 5, {"student": 3.0}),
        Entry("a", 9, {"student": 2.9}),
    ]
    assert [rate(Clock(20, 100, journal=tuple(entries[:n]), stage="a")) for n in range(4)] == [0.7, 0.7, 0.7, 0.0]
    assert [rate.ended(Clock(20, 100, journal=tuple(entries[:n]), stage="a")) for n in range(4)] == [
        False,
        False,
        False,
        True,
    ]
    worse_again = (*entries, Entry("a", 12, {"student": 4.0}))
    assert rate(Clock(20, 100, journal=worse_again, stage="a")) == 0.0
    assert rate(Clock(20, 100, journal=worse_again, stage="b")) == 0.7  # what another stage has seen says nothing here


# learning rates


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear", "constant"])
def test_policies(name):
    policy = Policy(ScheduleSettings(name=name, warmup=0.1, decay=0.2, floor=0.1), 10, 1000)
    values = [policy(t, 1000) for t in range(0, 1000, 10)]
    assert values[0] == pytest.approx(0.1, abs=0.01)  # the first step is not wasted
    assert max(values) == pytest.approx(1.0, abs=0.02)
    assert values[:10] == sorted(values[:10])
    if name != "constant":
        assert values[10:] == sorted(values[10:], reverse=True)
        assert 0.1 <= values[-1] < 0.2
    if name in ("wsd", "constant"):
        assert values[10:80] == [1.0] * 70


def test_warmup_in_tokens_and_longer_runs():
    share, tokens = (Policy(ScheduleSettings(warmup=w), 10, 1000) for w in (0.1, 100.0))
    assert [share(t, 1000) for t in range(0, 1000, 50)] == [tokens(t, 1000) for t in range(0, 1000, 50)]
    assert [share(t, 5000) for t in range(0, 800, 50)] == [share(t, 1000) for t in range(0, 800, 50)]
