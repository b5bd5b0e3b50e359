"""The laws of the house, as functions that raise AssertionError when broken.

`test_laws.py` holds them over every method; `test_mutations.py` breaks their subjects and expects them to notice.
"""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import World, losses, same_bits, weights

from bequest.job import train as jobs
from bequest.loss import terms
from bequest.loss.combine import distil, weighted
from bequest.loss.project import Addend, project
from bequest.model.language import Head, LanguageModel
from bequest.report import metrics
from bequest.teach.live import Live
from bequest.types import Chunk, Clock, Signal, Stopped, Teacher


def same_seed_same_bits(world: World, tmp: Path, method: dict, objective: str, **changes) -> None:
    world.run(tmp / "a", method, objective, **changes)
    world.run(tmp / "b", method, objective, **changes)
    assert same_bits(weights(tmp / "a"), weights(tmp / "b"))
    assert losses(tmp / "a") == losses(tmp / "b")


def stop_and_resume_same_bits(
    world: World, tmp: Path, method: dict, objective: str, stops: tuple[int, ...], **changes
) -> None:
    world.run(tmp / "whole", method, objective, **changes)
    for stop in stops:
        stopped_at(world, tmp / "parts", stop, method, objective, **changes)
    world.run(tmp / "parts", method, objective, **changes)
    assert same_bits(weights(tmp / "whole"), weights(tmp / "parts"))
    assert losses(tmp / "whole") == losses(tmp / "parts")


def stopped_at(world: World, out: Path, step: int, method: dict, objective: str, **changes) -> None:
    """Run until SIGTERM arrives during a step."""
    original = jobs.Evaluator.__call__

    def watching(self, state, event):
        original(self, state, event)
        if state.run_step == step:
            signal.raise_signal(signal.SIGTERM)

    jobs.Evaluator.__call__ = watching
    try:
        world.run(out, method, objective, **changes)
    except Stopped:
        return
    finally:
        jobs.Evaluator.__call__ = original
    raise AssertionError("the run did not stop")


def weight_zero_equals_plain(world: World, tmp: Path, zero: dict, objective: str, **changes) -> None:
    world.run(tmp / "zero", zero, objective, **changes)
    world.run(tmp / "plain", {"name": "plain"}, objective, **changes)
    assert same_bits(weights(tmp / "zero"), weights(tmp / "plain"))


def teacher_unchanged(world: World, tmp: Path, method: dict, objective: str, **changes) -> None:
    """Neither the folder nor the model in memory."""
    seen: list[Live] = []
    original = Live.__init__

    def watching(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.release = lambda: None  # keep it in memory to look at it afterwards
        seen.append(self)

    Live.__init__ = watching
    try:
        files = {p: p.read_bytes() for p in Path(world.teacher[objective]).iterdir()}
        world.run(tmp / "run", method, objective, **changes)
    finally:
        Live.__init__ = original
    assert files == {p: p.read_bytes() for p in Path(world.teacher[objective]).iterdir()}
    for live in seen:
        fresh = live._load()
        assert not live.loaded or same_bits(dict(live.model.state_dict()), dict(fresh.state_dict()))
        assert not any(p.requires_grad or p.grad is not None for p in live.model.parameters())


def one_student_forward_per_step(world: World, tmp: Path, method: dict, objective: str, **changes) -> None:
    calls = {"train": 0}
    original = LanguageModel.features

    def counting(self, batch):
        calls["train"] += self.training
        return original(self, batch)

    LanguageModel.features = counting
    try:
        world.run(tmp / "run", method, objective, **changes)
    finally:
        LanguageModel.features = original
    assert calls["train"] == 1536 // 128


def micro_batches_change_nothing(world: World, tmp: Path, method: dict, objective: str, **more) -> None:
    """First-step loss and gradient norm, equal to fp32 rounding whatever the split."""
    changes = {**more, "train__tokens": 128, "train__save_every_tokens": 0}
    found = []
    for size in (128, 64, 32):
        world.run(tmp / str(size), method, objective, **{**changes, "train__micro_batch_tokens": size})
        line = metrics.read(tmp / str(size) / "metrics.jsonl")[0]
        found.append((line["loss"], line["norm"]))
    for loss, norm in found[1:]:
        assert abs(loss - found[0][0]) <= 3e-6 * (1 + abs(found[0][0]))
        assert abs(norm - found[0][1]) <= 1e-4 * abs(found[0][1])


def case(rows: int = 9, vocabulary: int = 37, seed: int = 0, dtype=torch.float64):
    """Student and teacher logits and targets."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: 3 * torch.randn(rows, vocabulary, generator=generator, dtype=dtype)
    return draw(), draw(), torch.randint(vocabulary, (rows,), generator=generator)


def kept(teacher_logits: torch.Tensor, keep: int) -> Signal:
    from bequest.teach.live import likeliest

    dense = Signal(None, teacher_logits.log_softmax(-1), None)
    return likeliest(dense, keep, len(teacher_logits), teacher_logits.shape[1])


def gradient(term, logits: torch.Tensor, signal: Signal | None, target=None) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = term(leaf, Chunk(target, signal), Clock(0, 1))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def keeping_all_equals_dense(change=lambda signal: signal) -> None:
    student, teacher, _ = case()
    for temperature in (1.0, 2.0):
        term = terms.Divergence(temperature, temperature**2)
        dense = gradient(term, student, Signal(None, (teacher / temperature).log_softmax(-1), None))
        all_kept = gradient(term, student, change(kept(teacher / temperature, teacher.shape[1])))
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(dense, all_kept, strict=True))


def equal_teacher_gives_no_gradient(change=lambda signal: signal) -> None:
    student, _, _ = case()
    for keep in (1, 5, 36):
        loss, slope = gradient(terms.Divergence(1.0, 1.0), student, change(kept(student, keep)))
        assert loss.abs().max() < 1e-12
        assert slope.abs().max() < 1e-12


def fused_equals_unfused(chunk: int = 4) -> None:
    """The projection against plain autograd over all logits, in float64, with bias, scale and soft-cap, in several chunks."""
    from bequest.loss import project as module

    before, module.chunk_rows = module.chunk_rows, lambda *_: chunk
    try:
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        leaves = [draw(10, 6), draw(37, 6), draw(37)]
        target, signal = torch.randint(37, (10,), generator=generator), kept(3 * draw(10, 37), 5)
        for other in (terms.Divergence(), terms.Divergence(2.0, 3.0), entropy_of_student):
            asked = terms.next_token, other
            addends = [Addend(term, w, signal) for term, w in zip(asked, (0.3, 0.7), strict=True)]
            assert agree(leaves, (0.7, 5.0), target, addends) < 1e-12
    finally:
        module.chunk_rows = before


def entropy_of_student(logits, chunk, clock):
    """A term that no kernel knows."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def agree(leaves, finish, target: torch.Tensor, addends: list[Addend]) -> float:
    """The largest relative difference of losses and gradients between the projection and autograd in float64."""
    features, weight, *bias = (t.detach().clone().requires_grad_() for t in leaves)
    total, sums = project(features, Head(weight, *(bias or [None]), *finish), target, addends, Clock(0, 1))
    total.backward()
    found = [total.detach(), sums, *(t.grad for t in (features, weight, *bias))]
    return max(_difference(a, b) for a, b in zip(found, expected(leaves, finish, target, addends), strict=True))


def _difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    assert found.isfinite().all()
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-3)).item()


def expected(leaves, finish, target: torch.Tensor, addends: list[Addend]) -> list[torch.Tensor]:
    """Total, sums and gradients by autograd on all logits at once, in float64."""
    features, weight, *bias = (t.detach().double().requires_grad_() for t in leaves)
    logits = Head(weight, *(bias or [None]), *finish).finish(features @ weight.T)
    learned = target >= 0
    sums, total = [], logits.new_zeros(()) * logits.sum()
    for addend in addends:
        signal = None if addend.answer is None else addend.answer[learned].to(torch.float64)
        loss = addend.term(logits[learned], Chunk(target[learned], signal), Clock(0, 1))
        weights = addend.weights(target.double())[learned]
        total = total + (loss * weights).sum()
        sums.append(loss.detach().sum())
    total.backward()
    return [total.detach(), torch.stack(sums), *(t.grad for t in (features, weight, *bias))]


def shifted_teacher_is_worse(world: World, roll: int = 1) -> None:
    """A trained model's own signal fits its text; moved by one position it must fit worse."""
    from conftest import sentences

    from bequest.data import tokens
    from bequest.data.batches import Batches
    from bequest.data.objective import Causal
    from bequest.data.pack import Pack
    from bequest.types import Doc

    vocabulary = world.vocabulary["causal"]
    store = tokens.build(world.folder / "shift", "one", lambda: (Doc(t, "one") for t in sentences(9, 20)), vocabulary)
    batch = Batches((Pack(store, 32, 1),), Causal(), 4, 0)[0]
    student = world_student(world)
    live = Live(lambda: student, vocabulary.size, 0, nullcontext)
    aligned = live(batch, 1.0)[slice(None)].logp_NK
    rows = torch.arange(len(aligned))
    nll = lambda logp: -logp[rows, batch.rows.target_N].mean().item()
    assert nll(aligned) < nll(aligned.roll(roll, 0)) - 0.1


def world_student(world: World, objective: str = "causal") -> LanguageModel:
    """A model that has learned a little of the world's text."""
    from bequest.model import build

    return build.load(learned(world, objective), objective)


def learned(world: World, objective: str) -> str:
    """Its folder."""
    out = world.folder / f"learned-{objective}"
    world.run(out, {"name": "plain"}, objective, train__tokens=8192, train__save_every_tokens=0)
    return str(out / "checkpoint")


def stored_equals_live(world: World, tmp: Path, objective: str, keep: int, change=lambda signal: signal) -> None:
    """Loss and gradient at equal weights are those with the live teacher, for any batch in any order and at both temperatures."""
    from bequest.job.prepare import new_student, prepare
    from bequest.job.teach import teach
    from bequest.teach.stored import Stored

    path, method = learned(world, objective), {"name": "ki", "until": 1.0}
    kept = {"kind": "topk", "keep": keep, "values": "fp32", "temperatures": [1.0, 2.0], "shard_tokens": 320}
    spec = {"load": path, "store": str(tmp / f"store-{objective}-{keep}")}
    recipe = world.recipe(method, objective, teachers__teacher=spec, teach=kept, train__tokens=512)
    store = teach(recipe)["teacher"]
    batches, vocabulary = prepare(recipe).batches, world.vocabulary[objective]
    teachers = Live(lambda: world_student(world, objective), vocabulary.size, keep, nullcontext), Stored(lambda: store)
    student = new_student(recipe, vocabulary).eval()
    for places, temperature in (((3, 0, 2, 1), 1.0), ((7,), 1.0), ((12, 4, 9), 2.0)):
        batch = batches.of(np.array(places))
        teachers[1].prepare(batch, temperature)
        live, stored = (loss_and_gradient(student, batch, t, temperature) for t in teachers)
        split = [loss_and_gradient(student, m, Changed(teachers[1], change), temperature) for m in batch.micro(1)]
        for found in (stored, [sum(parts) for parts in zip(*split, strict=True)]):
            for a, b in zip(live, found, strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), (a - b).abs().max()


@dataclass
class Changed:
    """A teacher whose signals are changed."""

    teacher: Teacher
    change: Callable[[Signal], Signal]

    def __call__(self, batch, temperature):
        return self.change(self.teacher(batch, temperature)[slice(None)])

    def flops(self, batch):
        return 0.0


def loss_and_gradient(student: LanguageModel, batch, teacher: Teacher, temperature: float) -> list[torch.Tensor]:
    """Of what a step asks of a student: the divergence from a teacher, and its gradient in every weight."""
    total = weighted((1.0, distil(teacher, temperature)))(student, batch, Clock(0, 2)).total
    weights = [p for p in student.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(total, weights, allow_unused=True)
    return [total.detach(), *(s for s in slopes if s is not None)]
