"""The closed form against autograd on the terms in float64: any signal, any weights, any head."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import agree, entropy_of_student, expected, kept

from bequest.loss import project
from bequest.loss.kernels import chunked
from bequest.loss.kernels.pair import Pair
from bequest.loss.project import Addend
from bequest.loss.terms import Divergence, next_token
from bequest.model.language import Head
from bequest.types import Chunk, Clock, Signal


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(project, "chunk_rows", lambda *_: 5)
    monkeypatch.setattr(chunked, "rows_in_cache", lambda *_: 3)


def signals(draw, rows: int, vocabulary: int, generator: torch.Generator) -> Signal:
    """Dense, kept with a rest, or drawn; rows filled up with repeated ids; masses of 0 and 1 among them."""
    kind = draw(st.sampled_from(["dense", "narrow", "kept", "drawn"]))
    scale = draw(st.sampled_from([0.1, 3.0, 30.0]))
    logits = scale * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    if kind in ("dense", "narrow"):
        known = vocabulary if kind == "dense" else draw(st.integers(1, vocabulary))
        return Signal(None, logits[:, :known].log_softmax(-1), None)
    keep = draw(st.integers(0 if kind == "kept" else 1, vocabulary))
    ids = torch.rand(rows, vocabulary, generator=generator).argsort(-1)[:, :keep]
    logp = logits.log_softmax(-1).gather(1, ids)
    filling = torch.rand(rows, keep, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    filling[:, 0 : int(kind == "drawn")] = False  # who draws has drawn something
    repeated = torch.where(filling, ids[:, :1], ids) if draw(st.booleans()) else ids
    logp = logp.masked_fill(filling, -math.inf)
    if kind == "drawn":
        again = torch.randint(vocabulary, ids.shape, generator=generator)  # draws may repeat an id
        return Signal(draw(st.sampled_from([repeated, again])), logp.log_softmax(-1), None)
    rest = {
        "what is left": torch.log1p(-logp.exp().sum(-1).clamp_max(1.0)),
        "everything": torch.zeros(rows, dtype=torch.float64),
        "nothing": torch.full((rows,), -math.inf, dtype=torch.float64),
    }[draw(st.sampled_from(["what is left", "everything", "nothing"]))]
    whole = torch.cat([logp, rest[:, None]], 1)
    none = (whole == -math.inf).all(-1, keepdim=True)
    whole = torch.where(none, torch.tensor([-math.inf] * keep + [0.0], dtype=torch.float64), whole).log_softmax(-1)
    if keep == vocabulary and not filling.any():  # no id is left for a rest
        whole = torch.cat([whole[:, :-1].log_softmax(-1), torch.full_like(whole[:, -1:], -math.inf)], 1)
    return Signal(repeated, whole[:, :-1], whole[:, -1])


@st.composite
def cases(draw):
    """Leaves, what finishes the logits, targets and addends."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, vocabulary, hidden = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 6))
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    leaves = [normal(rows, hidden), draw(st.sampled_from([0.1, 1.0, 10.0])) * normal(vocabulary, hidden)]
    leaves += [normal(vocabulary)] if draw(st.booleans()) else []
    finish = draw(st.sampled_from([1.0, 0.5])), draw(st.sampled_from([None, 5.0]))
    target = torch.randint(vocabulary, (rows,), generator=generator)
    ignored = torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    weight = lambda: draw(st.sampled_from([0.3, torch.rand(rows, generator=generator).round(decimals=1)]))
    told = Divergence(draw(st.sampled_from([1.0, 2.0, 0.5])), draw(st.sampled_from([1.0, 3.0])))
    addends = [Addend(next_token, weight()), Addend(told, weight(), signals(draw, rows, vocabulary, generator))]
    which = draw(st.sampled_from([slice(0, 1), slice(1, 2), slice(0, 2), slice(None, None, -1)]))
    return leaves, finish, target.masked_fill(ignored, -100), addends[which]


@settings(max_examples=400, deadline=None)
@given(cases())
def test_fused_equals_float64(case):
    leaves, finish, target, addends = case
    assert agree(leaves, finish, target, addends) < 1e-9


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_lower_precision_stays_close(case, dtype):
    """What bf16 rounds away is the logits' own last digits: against float64 on the rounded product."""
    leaves, finish, target, addends = case
    leaves = [t.to(dtype) for t in leaves]
    head = Head(leaves[1], leaves[2] if len(leaves) > 2 else None, *finish)
    learned = target >= 0
    pairs = [
        pair_of(addends, target.clamp_min(0), learned, torch.float32),
        pair_of(addends, target.clamp_min(0), learned),
    ]
    product = leaves[0] @ leaves[1].T
    exact = product.double()
    losses, exact_losses = chunked.slope_(product, head, pairs[0]), chunked.slope_(exact, head, pairs[1])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype]
    assert (product - exact).norm() <= tolerance * exact.norm() + 1e-6
    for found, wanted in zip(losses, exact_losses, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-4)


def pair_of(addends, target, learned, dtype=torch.float64) -> Pair:
    found = {"gold_C": None}
    for addend in addends:
        weight = addend.weights(target.to(dtype)) * learned
        if addend.term is next_token:
            found["gold_C"] = weight
        else:
            signal = addend.answer.to(dtype)
            found |= {"told_C": weight * addend.term.factor, "signal_C": signal}
            found["temperature"] = addend.term.temperature
    return Pair(target, **found)


@pytest.mark.parametrize("mean", [8.0, 15.0, 24.0, 40.0, -20.0])
@pytest.mark.parametrize("gold", [None, 0.5])
def test_rest_of_a_sure_student_in_fp32(mean, gold):
    """Kept ids `mean` nats above the others: rests from 1e-14 to nearly 1, where 1 - sum(kept) has no digit left."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50_257, generator=generator)
    logits[:, :32] += mean
    teacher = logits.double() + 0.5 * torch.randn(4, 50_257, generator=generator)
    weights = {"gold_C": None if gold is None else torch.full((4,), gold), "told_C": torch.ones(4)}
    exact, product = logits.double(), logits.clone()
    target, head = torch.tensor([3, 40, 500, 1]), Head(torch.zeros(50_257, 1))
    signal = kept(teacher, 32)
    chunked.slope_(
        exact, head, Pair(target, **{k: w if w is None else w.double() for k, w in weights.items()}, signal_C=signal)
    )
    single = type(signal)(signal.ids_NK, signal.logp_NK.float(), signal.logrest_N.float())
    chunked.slope_(product, head, Pair(target, **weights, signal_C=single))
    outside = torch.ones(50_257, dtype=torch.bool).index_fill(0, signal.ids_NK.flatten(), False)
    for part in (outside, ~outside):
        assert (product[:, part] - exact[:, part]).norm() < 2e-3 * exact[:, part].norm()
    assert product.double().sum(-1).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [0, 1, 4, 50])
def test_extreme_logits_stay_finite(scale, dtype, keep):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = scale * torch.randn(6, 50, generator=generator), scale * torch.randn(6, 50, generator=generator)
    signal = kept(teacher, keep) if keep else Signal(None, teacher.log_softmax(-1), None)
    product = logits.to(dtype)
    pair = Pair(torch.arange(6), torch.ones(6), torch.ones(6), signal, 2.0)
    losses = chunked.slope_(product, Head(torch.zeros(50, 1)), pair)
    assert all(torch.isfinite(t).all() for t in (product, *losses))
    assert product.abs().max() <= 2.01


def test_others_that_underflow_are_still_a_rest():
    """200 nats below the kept ids there is a rest, of no mass in fp32: what the teacher gives it is far off, not free."""
    logits, target = torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([0])
    signal = Signal(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5]).log())
    _, found = chunked.slope_(logits.clone(), Head(torch.zeros(3, 1)), Pair(target, None, torch.ones(1), signal))
    exact = Divergence()(logits.double(), Chunk(target, signal), Clock(0, 1))
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    assert found.item() > 90


def test_one_block_compiles_whole():
    """Nothing in a block makes the compiler stop and look: one graph, and the same numbers."""
    compiled = torch.compile(chunked.block_, fullgraph=True, backend="aot_eager")
    for signal in (kept(torch.randn(6, 50), 5), Signal(None, torch.randn(6, 50).log_softmax(-1), None), None):
        told = None if signal is None else torch.ones(6)
        pair, product = Pair(torch.arange(6), torch.ones(6), told, signal, 2.0), torch.randn(6, 50)
        other = product.clone()
        found, wanted = (
            compiled(product, Head(torch.zeros(50, 1)), pair),
            chunked.block_(other, Head(torch.zeros(50, 1)), pair),
        )
        assert torch.allclose(product, other, atol=1e-6)
        assert torch.allclose(found[0], wanted[0], atol=1e-6)


def test_many_teachers_are_left_to_autograd():
    """Two divergences in one sum, and a term that nobody knows: the same numbers by the other way."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    target, signal = torch.randint(20, (7,), generator=generator), kept(normal(7, 20), 5)
    told = [Addend(Divergence(t), 0.3, signal) for t in (1.0, 2.0)]
    assert agree([normal(7, 4), normal(20, 4)], (1.0, None), target, [*told, Addend(entropy_of_student, 0.1)]) < 1e-12


def test_weights_of_rows_are_a_part_of_the_gradient():
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    leaves, target = [normal(8, 4), normal(20, 4)], torch.randint(20, (8,), generator=generator)
    chosen = torch.tensor([1.0, 0.0] * 4)
    total, _, slope, _ = expected(leaves, (1.0, None), target, [Addend(next_token, chosen)])
    features = leaves[0].clone().requires_grad_()
    found, sums = project.project(features, Head(leaves[1]), target, [Addend(next_token, chosen)], Clock(0, 1))
    found.backward()
    assert torch.allclose(features.grad, slope)
    assert features.grad[1::2].abs().max() == 0
    assert found.item() == pytest.approx(total.item())
    assert sums.item() > found.item()  # the metric is of all rows


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("others", [torch.float32, torch.float64])
def test_precisions_may_differ(precision, others):
    """Features, head, weights of rows and signals need not agree."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    leaves, target = (
        [normal(7, 4).to(others), normal(20, 4).to(precision)],
        torch.randint(20, (7,), generator=generator),
    )
    weights = torch.rand(7, generator=generator, dtype=torch.float64)
    addends = [Addend(next_token, weights), Addend(Divergence(2.0), weights, kept(normal(7, 20), 5))]
    assert agree(leaves, (1.0, None), target, addends) < (2e-2 if precision == torch.bfloat16 else 1e-5)
