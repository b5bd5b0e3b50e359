"""Gradient alignment: values by hand, second derivatives, and when it happens."""

import laws
import pytest
import torch
from conftest import make_model
from test_language import batch_of

from bequest.job.check import plan
from bequest.loss.align import Aligned
from bequest.loss.combine import next_token, weighted
from bequest.report import metrics
from bequest.types import Clock, RecipeError

ZERO = {"name": "gradient", "alpha": 0.0, "beta": 0.0}
METHOD = {"name": "gradient", "every": 3}
NEEDS_TEACHER = True


def aligned(student, teacher, every=1, signal="confidence") -> Aligned:
    loss = Aligned(weighted((1.0, next_token)), 1.0, every, signal, lambda: teacher.requires_grad_(False))
    loss.meet(student)
    return loss


def apart(student, teacher, batch, **settings) -> torch.Tensor:
    return aligned(student, teacher, **settings)(student, batch, Clock(0, 8)).parts["gradient"]


@pytest.mark.parametrize("signal", ["confidence", "gold"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_student_that_is_its_teacher_is_not_apart(vocabulary, family, signal):
    batch = batch_of(vocabulary, 32)
    model, twin = (make_model(family, vocabulary, seed=3) for _ in range(2))
    assert apart(model, twin, batch, signal=signal).item() == pytest.approx(0.0, abs=1e-5)
    other = make_model(family, vocabulary, seed=4)
    assert 0.1 < apart(model, other, batch, signal=signal).item() < 4.0


def test_the_case_that_can_be_done_by_hand():
    """Linear models of three classes: g_T = (.3418, -.1228), g_S = (.2500, -.1556), distance .044677."""
    e = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    slopes = []
    for rows in ([[2, 0], [0, 1], [-1, -1]], [[1, 0], [0, 1], [0, 0]]):
        signal = (torch.tensor(rows, dtype=torch.float64) @ e).log_softmax(-1).amax(-1).exp()
        slopes.append(torch.autograd.grad(signal, e)[0])
    assert slopes[0].tolist() == pytest.approx([0.3418, -0.1228], abs=1e-4)
    assert slopes[1].tolist() == pytest.approx([0.2500, -0.1556], abs=1e-4)
    loss = object.__new__(Aligned)
    torch.nn.Module.__init__(loss)
    loss.map_SD = torch.nn.Parameter(torch.eye(2))
    from bequest.types import Batch, Rows

    batch = Batch(
        torch.zeros(1, 1), torch.zeros(1, 1), Rows(torch.tensor([0]), torch.tensor([0])), 1, True, ("",), (b"",)
    )
    found = loss._apart(slopes[1][None, None].float(), slopes[0][None, None].float(), batch)
    assert found.item() == pytest.approx(0.044677, abs=2e-6)
    assert loss._apart(-slopes[0][None, None].float(), slopes[0][None, None].float(), batch).item() == pytest.approx(
        4.0
    )
    scaled = loss._apart(7 * slopes[1][None, None].float(), slopes[0][None, None].float(), batch)
    assert scaled.item() == pytest.approx(found.item(), rel=1e-5)


def test_the_second_derivative_is_that_of_finite_differences(vocabulary):
    """In float64, along random directions of the student's weights (a llama norms in fp32 whatever its weights are)."""
    batch = batch_of(vocabulary, 32).of([0, 1])
    student, teacher = (make_model("gpt2", vocabulary, seed=s).double() for s in (1, 2))
    loss = aligned(student, teacher)
    parameters = [p for p in student.parameters() if p.requires_grad]
    value = lambda: _distance(loss, student, batch)
    slopes = torch.autograd.grad(value(), parameters, allow_unused=True)
    draw = torch.Generator().manual_seed(0)
    ways = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in parameters]
    along = sum((s * w).sum() for s, w in zip(slopes, ways, strict=True) if s is not None).item()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, w in zip(parameters, ways, strict=True):
                p.add_(w, alpha=sign * 1e-5)
        ends.append(value().item())
        with torch.no_grad():
            for p, w in zip(parameters, ways, strict=True):
                p.add_(w, alpha=-sign * 1e-5)
    assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def _distance(loss, student, batch):
    """What gradients add, with its own gradient: the whole less the inner loss."""
    both = loss(student, batch, Clock(0, 8))
    return both.total - loss.inner(student, batch, Clock(0, 8)).total


def test_gradients_are_compared_every_few_steps_and_cost_what_is_said(world, tmp_path):
    found = world.run(tmp_path / "run", METHOD)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert ["gradient" in line["parts"] for line in lines] == [step % 3 == 0 for step in range(12)]
    told = plan(world.recipe(METHOD), tmp_path / "planned")
    assert found["student_flops"] == pytest.approx(told.student_flops, rel=1e-9)
    assert found["teacher_flops"] == pytest.approx(told.teacher_flops, rel=1e-9)
    never = world.run(tmp_path / "never", {**METHOD, "beta": 0.0})
    assert found["student_flops"] / never["student_flops"] == pytest.approx(1 + 1 / 3, rel=0.01)
    assert found["teacher_flops"] / never["teacher_flops"] == pytest.approx(1 + 2 / 3, rel=0.01)


def test_without_gradients_it_is_distillation(world, tmp_path):
    from conftest import same_bits, weights

    world.run(tmp_path / "one", {"name": "gradient", "beta": 0.0})
    world.run(tmp_path / "other", {"name": "ki", "shape": "constant", "start": 0.5})
    assert same_bits(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_another_width_goes_through_a_learned_map(world, tmp_path):
    wide = {"teachers__teacher": {"load": world.save("llama", "causal", hidden=32, heads=4)}}
    world.run(tmp_path / "run", METHOD, **wide)
    laws.stop_and_resume_same_bits(world, tmp_path / "stop", METHOD, "causal", (4,), **wide)


def test_it_comes_nearer(world, tmp_path):
    """What is aligned is more alike after some steps."""
    teacher = {"teachers__teacher": {"load": laws.learned(world, "causal")}}
    world.run(tmp_path / "run", {**METHOD, "every": 1, "beta": 5.0}, **teacher, train__tokens=4096)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    found = [line["parts"]["gradient"] for line in lines]
    assert sum(found[-4:]) < 0.9 * sum(found[:4])


def test_compiled_blocks_are_refused(world, tmp_path):
    with pytest.raises(RecipeError, match="second derivative"):
        world.run(tmp_path / "run", METHOD, train__activation_checkpointing=True)


def test_the_student_attends_as_before_afterwards(vocabulary):
    student, teacher = make_model("llama", vocabulary, seed=1), make_model("llama", vocabulary, seed=2)
    before = student.model.config._attn_implementation
    apart(student, teacher, batch_of(vocabulary, 32))
    assert student.model.config._attn_implementation == before
