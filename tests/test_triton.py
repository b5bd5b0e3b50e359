"""The closed form in Triton, interpreted where there is no GPU: against autograd on the terms and `chunked`, in float64."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import kept

from bequest.loss import kernels
from bequest.loss.kernels import chunked
from bequest.loss.kernels.pair import Pair
from bequest.loss.terms import Divergence, next_token
from bequest.model.language import Head
from bequest.types import Chunk, Clock, Signal

pytest.importorskip("triton", reason="triton is not installed")
from bequest.loss.kernels import cuda

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OWN_SIZES = cuda.sizes
# A bf16 number has a last place of 2^-7: a device rounds to the nearest, the interpreter cuts off.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3 if DEVICE == "cuda" else 8e-3}


def slope(product, head: Head, pair: Pair, block: int = 32):
    """By programs that see few logits at once, so that even a small vocabulary takes several turns."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(cuda, "sizes", lambda *shape: OWN_SIZES(*shape) | {"BLOCK": block, "num_warps": 4})
        there = product.to(DEVICE)
        losses = cuda.slope_(there, moved(head, DEVICE), moved(pair, DEVICE))
    product.copy_(there)
    return [None if loss is None else loss.cpu() for loss in losses]


def moved(one, where):
    """Every tensor of a dataclass elsewhere, or in another precision if it is no integer."""
    found = {}
    for name, value in vars(one).items():
        if isinstance(value, Signal):
            found[name] = moved(value, where)
        elif isinstance(value, torch.Tensor):
            found[name] = value.to(where) if isinstance(where, str) or value.is_floating_point() else value
    return replace(one, **found)


def exact(product, head: Head, pair: Pair):
    """The gradient and the losses, by autograd in float64."""
    leaf, pair = product.detach().double().requires_grad_(), moved(pair, torch.float64)
    chunk, clock, total = Chunk(pair.target_C, pair.signal_C), Clock(0, 1), 0.0
    losses = [None, None]
    for place, (term, weight) in enumerate(((next_token, pair.gold_C), (Divergence(pair.temperature), pair.told_C))):
        if weight is not None:
            loss = term(moved(head, torch.float64).finish(leaf), chunk, clock)
            losses[place], total = loss.detach(), total + (loss * weight).sum()
    return torch.autograd.grad(total, leaf)[0], losses


def close(found, wanted, tolerance: float, floor: float = 0.1) -> bool:
    return bool((found.double() - wanted).norm() <= tolerance * wanted.norm().clamp_min(floor))


def plain(vocabulary: int) -> Head:
    return Head(torch.zeros(vocabulary, 1))


@st.composite
def signals(draw, rows: int, vocabulary: int, generator):
    """Dense, kept with a rest or without one; filled up with any ids; all mass or none outside."""
    logits = draw(st.sampled_from([0.1, 3.0, 30.0])) * torch.randn(rows, vocabulary, generator=generator)
    kind = draw(st.sampled_from(["dense", "narrow", "flat", "rest", "rest", "rest", "drawn", "drawn", "renormalised"]))
    if kind == "flat":
        return Signal(None, torch.full((1, 1), -math.log(vocabulary)).expand(rows, vocabulary), None)
    if kind in ("dense", "narrow"):
        known = vocabulary if kind == "dense" else draw(st.integers(1, vocabulary))
        return Signal(None, logits[:, :known].double().log_softmax(-1).float(), None)
    keep = draw(st.sampled_from([0, 1, 2, 5, 16, 33, vocabulary]))
    keep = max(min(keep, vocabulary), int(kind != "rest"))
    ids = torch.rand(rows, vocabulary, generator=generator).argsort(-1)[:, :keep]
    gone = torch.rand(rows, keep, generator=generator) < draw(st.sampled_from([0.0, 0.0, 0.4, 1.0]))
    gone[:, : int(kind != "rest")] = False
    outside = draw(st.sampled_from([-30.0, -2.0, 16.0])) * torch.ones(rows, 1)
    if kind != "rest" or keep == vocabulary:  # without other ids there is no mass on them
        outside[:] = -math.inf
        gone[:, :1] = False
    both = torch.cat([logits.gather(1, ids).masked_fill(gone, -math.inf), outside], 1).double().log_softmax(-1).float()
    repeated = torch.where(gone, ids[:, -1:], ids)
    entropy = torch.rand(rows, generator=generator) if kind == "drawn" else None
    return Signal(repeated, both[:, :-1], both[:, -1] if kind == "rest" else None, entropy)


@st.composite
def cases(draw):
    """A product between rows that are not its own, what finishes it, and what is wanted of it."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, vocabulary = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 32, 33, 64, 77, 130]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    buffer = draw(st.sampled_from([0.1, 3.0, 30.0])) * torch.randn(rows, vocabulary + 3, generator=generator)
    buffer[:, vocabulary:] = 7.0
    bias = torch.randn(vocabulary, generator=generator).to(dtype) if draw(st.booleans()) else None
    head = Head(torch.zeros(vocabulary, 1), bias, draw(st.sampled_from([1.0, 0.5])), draw(st.sampled_from([None, 5.0])))
    weights = lambda: torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.8)
    target = torch.randint(vocabulary, (rows,), generator=generator)
    which = draw(st.sampled_from(["gold", "told", "both", "both", "both"]))
    pair = Pair(target, None if which == "told" else weights())
    if which != "gold":
        signal = draw(signals(rows, vocabulary, generator))
        pair = replace(pair, told_C=weights(), signal_C=signal, temperature=draw(st.sampled_from([1.0, 2.0, 0.7])))
        if signal.ids_NK is not None and signal.ids_NK.shape[1] and draw(st.booleans()):
            pair = replace(pair, target_C=signal.ids_NK[:, 0])
    return buffer.to(dtype), head, pair


@settings(max_examples=120, deadline=None)
@given(cases())
def test_small_programs_equal_float64(case):
    buffer, head, pair = case
    product = buffer[:, :-3]
    wanted, losses = exact(product, head, pair)
    other = product.double()
    others = chunked.slope_(other, moved(head, torch.float64), moved(pair, torch.float64))
    found = slope(product, head, pair)
    assert (buffer[:, -3:] == 7.0).all()
    assert close(product, wanted, TOLERANCE[product.dtype])
    assert close(product, other, TOLERANCE[product.dtype])
    for one, by_autograd, by_chunked in zip(found, losses, others, strict=True):
        assert (one is None) == (by_autograd is None)
        if one is not None:
            assert one.dtype == torch.float32
            assert torch.allclose(one.double(), by_autograd, rtol=2e-6, atol=2e-6)
            assert torch.allclose(one.double(), by_chunked, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("keep", [0, 3, 60])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits(scale, keep, temperature, dtype):
    """Losses of 1e4 nats to their last digit, and no gradient that is not a number."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (scale * torch.randn(4, 60, generator=generator) for _ in range(2))
    signal = kept(teacher.double(), keep) if keep else Signal(None, teacher.double().log_softmax(-1), None)
    product, pair = logits.to(dtype), Pair(torch.arange(4), torch.ones(4), torch.ones(4), signal, temperature)
    pair = moved(pair, torch.float32)
    wanted, losses = exact(product, plain(60), pair)
    found = slope(product, plain(60), pair)
    assert close(product, wanted, TOLERANCE[dtype])
    assert all(torch.allclose(a.double(), b, rtol=1e-6, atol=1e-6) for a, b in zip(found, losses, strict=True))


@pytest.mark.parametrize("teacher_tail", [1e-12, 1e-6, 0.3, 1 - 1e-7])
@pytest.mark.parametrize("student_tail", [1e-12, 1e-6, 0.3, 1 - 1e-7])
def test_tails_keep_their_digits(student_tail, teacher_tail):
    """The gradient outside the kept ids, however small: 1 - sum(kept) would have lost it."""
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 70, generator=generator).double(), torch.stack([torch.arange(0, 70, 7)] * 2)
    outside = torch.ones(70, dtype=torch.bool).index_fill(0, ids[0], False)
    logits[:, ~outside] += logits[:, outside].logsumexp(-1, True) - logits[:, ~outside].logsumexp(-1, True)
    logits[:, ~outside] += math.log1p(-student_tail) - math.log(student_tail)
    logp = torch.randn(2, 10, generator=generator).double().log_softmax(-1) + math.log1p(-teacher_tail)
    logrest = torch.full((2,), math.log(teacher_tail)).double()
    pair = Pair(torch.zeros(2).long(), None, torch.ones(2), moved(Signal(ids, logp, logrest), torch.float32))
    product = logits.float()
    wanted, losses = exact(product, plain(70), pair)
    found = slope(product, plain(70), pair)
    assert torch.allclose(found[1].double(), losses[1], rtol=2e-6, atol=1e-6)
    # The two masses are told in logarithms: a difference of such has the digits that they have, not more.
    size = max(student_tail, teacher_tail)
    for part in (outside, ~outside):
        assert close(product[:, part], wanted[:, part], 2e-6, size if part is outside else 1.0)
    assert product.double().sum(-1).abs().max() < 1e-6


@pytest.mark.parametrize("keep", [0, 5, 40])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_teacher_leaves_nothing(keep, temperature):
    logits = 3 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    tempered = logits.double() / temperature
    signal = kept(tempered, keep) if keep else Signal(None, tempered.log_softmax(-1), None)
    pair = Pair(torch.arange(3), None, torch.ones(3), moved(signal, torch.float32), temperature)
    _, divergence = slope(logits, plain(40), pair)
    assert divergence.abs().max() < 1e-6
    assert logits.abs().max() < 2e-7


def test_ids_that_a_dense_teacher_rules_out():
    """As when all others are kept: no mass times the logarithm of none is nothing."""
    logits, teacher = torch.randn(3, 40), torch.randn(3, 40).index_fill(1, torch.tensor([0, 17, 39]), -math.inf)
    logp, ids = teacher.log_softmax(-1), torch.arange(40).expand(3, -1)
    products, losses = [logits, logits.clone()], []
    for product, signal in zip(products, (Signal(None, logp, None), Signal(ids, logp, None)), strict=True):
        losses.append(slope(product, plain(40), Pair(torch.arange(3), torch.ones(3), torch.ones(3), signal)))
    assert torch.allclose(*products, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*losses, strict=True))


def test_rows_of_no_weight_and_no_rows():
    pair = Pair(torch.arange(4), torch.zeros(4), torch.zeros(4), kept(torch.randn(4, 20), 3), 2.0)
    product = torch.randn(4, 20)
    cross, _ = slope(product, plain(20), pair)
    assert (product == 0).all()
    assert (cross > 0).all()
    losses = slope(product[:0], plain(20), pair[:0])
    assert [loss.shape for loss in losses] == [(0,), (0,)]


def test_draws_may_repeat():
    """Whether the teacher's draws are counted or told one by one."""
    draws, product = torch.tensor([[3, 1, 3, 3], [0, 0, 1, 0]]), torch.randn(2, 40)
    signal = Signal(draws, torch.full((2, 4), 0.25).log(), None, torch.tensor([1.0, 2.0]))
    pair = Pair(torch.tensor([3, 5]), torch.ones(2), torch.ones(2), signal, 2.0)
    found = slope(gradient := product.clone(), plain(40), pair)
    wanted, losses = exact(product, plain(40), pair)
    assert close(gradient, wanted, 1e-5)
    assert all(close(a, b, 1e-5) for a, b in zip(found, losses, strict=True))


def test_ids_that_there_are_none_of_touch_nothing():
    """A wrong target or kept id shows as a loss without end, and writes nowhere."""
    around = torch.zeros(2, 64, device=DEVICE)
    product = around[:, :8]
    signal = Signal(torch.tensor([[20, 1], [2, 1]]), torch.full((2, 2), 0.25).log(), torch.full((2,), 0.5).log())
    pair = Pair(torch.tensor([1, 20]), torch.ones(2), torch.ones(2), signal)
    cross, divergence = slope(product, plain(8), pair)
    assert torch.isinf(divergence[0])
    assert torch.isinf(cross[1])
    assert around[:, 8:].abs().max() == 0


def test_what_is_left_to_pytorch():
    """Float64, and more kept ids than registers hold."""
    few, many = (Signal(torch.zeros(1, k, dtype=torch.long), torch.zeros(1, k), None) for k in (4096, 4097))
    pair = Pair(torch.zeros(1).long(), torch.ones(1), torch.ones(1))
    asked = lambda dtype, signal, is_cuda=True: kernels._in_triton(
        SimpleNamespace(is_cuda=is_cuda, dtype=dtype), replace(pair, signal_C=signal)
    )
    assert asked(torch.bfloat16, few)
    assert asked(torch.float32, None)
    assert not asked(torch.float64, few)
    assert not asked(torch.float32, many)
    assert not asked(torch.float32, few, is_cuda=False)


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from bequest.loss.kernels import cuda
from bequest.loss.kernels.pair import Pair
from bequest.model.language import Head
from bequest.types import Signal

class Absent:  # a driver that names a device and has none
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device=None: 0

class Compiled:  # what the host launches is compiled with the host's own arguments
    def __getitem__(self, grid):
        return lambda *args, **sizes: found.append(program.warmup(*args, grid=grid, **sizes))

driver.set_active(Absent())
program, cuda._row, found = cuda._row, Compiled(), []

def variant(vocabulary, dtype, kind, keep=32, gold=True, temperature=1.0, bias=False, scale=1.0, softcap=None):
    ids, row, logp = torch.zeros(2, keep, dtype=torch.long), torch.zeros(2), torch.zeros(2, keep)
    signal = {
        "none": None,
        "rest": Signal(ids, logp, row),
        "drawn": Signal(ids, logp, None, row),
        "dense": Signal(None, torch.zeros(2, vocabulary), None),
        "flat": Signal(None, torch.zeros(1, 1).expand(2, vocabulary), None),
    }[kind]
    pair = Pair(torch.zeros(2).long(), row if gold else None, None if signal is None else row, signal, temperature)
    head = Head(torch.zeros(vocabulary, 1), torch.zeros(vocabulary) if bias else None, scale, softcap)
    cuda.slope_(torch.zeros(2, vocabulary, dtype=dtype), head, pair)

half, single = torch.bfloat16, torch.float32
variant(128_256, half, "none")
variant(128_256, half, "rest")
variant(50_257, half, "rest", keep=100, temperature=2.0, bias=True, softcap=30.0)
variant(50_257, single, "none", bias=True, scale=0.5, softcap=30.0)
variant(32_000, torch.float16, "drawn", gold=False, temperature=2.0, scale=0.5)
variant(32_000, single, "rest", gold=False, bias=True)
variant(32_000, half, "dense", temperature=2.0)
variant(300, single, "flat", gold=False)
variant(1, half, "rest", keep=1)
variant(9, single, "rest", keep=0)
variant(151_936, half, "drawn", keep=4096, temperature=2.0)
for compiled in found:
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert compiled.metadata.shared <= 64 << 10
print(len(found))
"""


def test_every_kind_compiles_without_a_gpu(tmp_path):
    """Down to machine code for Hopper: the assembler finds errors of types that an interpreter does not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["11"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["gold", "rest", "drawn", "dense"])
@pytest.mark.parametrize("vocabulary", [50_257, 128_256])
def test_full_size_on_a_gpu(vocabulary, kind, temperature, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, device="cuda")
    product, teacher = (3 * normal(64, vocabulary)).to(dtype), 3 * normal(64, vocabulary).double()
    signal = {"gold": None, "dense": Signal(None, teacher.log_softmax(-1), None)}.get(kind, kept(teacher, 32))
    if kind == "drawn":
        signal = replace(signal, logp_NK=signal.logp_NK.log_softmax(-1), logrest_N=None)
    target = torch.randint(vocabulary, (64,), generator=generator, device="cuda")
    weights = torch.rand(2, 64, generator=generator, device="cuda")
    pair = Pair(target, weights[0], None if kind == "gold" else weights[1], signal, temperature)
    head = moved(
        Head(torch.zeros(vocabulary, 1), torch.randn(vocabulary), 0.5, 30.0 if dtype == torch.bfloat16 else None),
        "cuda",
    )
    wanted = product.double()
    losses = chunked.slope_(wanted, moved(head, torch.float64), moved(pair, torch.float64))
    found = kernels.slope_(product, head, moved(pair, torch.float32))
    assert close(product, wanted, {torch.float32: 5e-6}.get(dtype, TOLERANCE[dtype]))
    for one, other in zip(found, losses, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_more_logits_than_32_bits_count():
    rows, vocabulary = 17_000, 128_256
    product = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    pair = Pair(torch.arange(rows, device="cuda"), torch.ones(rows, device="cuda"))
    cross, _ = kernels.slope_(product, Head(torch.zeros(vocabulary, 1, device="cuda")), pair)
    assert torch.allclose(cross, torch.full_like(cross, math.log(vocabulary)))
    assert product[-1, rows - 1].item() == pytest.approx(-1.0, abs=5e-3)
    assert product[-1, rows].item() == pytest.approx(1 / vocabulary, rel=5e-3)
