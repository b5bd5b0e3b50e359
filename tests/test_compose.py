"""Several teachers as one: each source its own, or the mean of what several say."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from bequest.loss import terms
from bequest.sense import problems
from bequest.teach.compose import Ensembled, Routed
from bequest.teach.controls import Renormalised
from bequest.teach.live import likeliest
from bequest.teach.signals import Form, entries, signal
from bequest.types import Batch, Chunk, Clock, Rows, Signal

LENGTH, VOCABULARY = 6, 40


def batch_of(sources: str) -> Batch:
    """One sequence of every letter's source; every other position is learned from."""
    count = len(sources)
    index = torch.arange(0, count * LENGTH, 2)
    tokens = torch.arange(count * LENGTH).view(count, LENGTH)
    keys = tuple(bytes([n]) * 16 for n in range(count))
    return Batch(tokens, tokens * 0, Rows(index, index % VOCABULARY), len(index), True, tuple(sources), keys)


@dataclass(frozen=True)
class Knows:
    """A teacher with fixed logits for every token: dense, the likeliest, or draws from them."""

    seed: int
    kind: str
    scale: float = 3.0
    keep: int = 5

    @property
    def table(self) -> torch.Tensor:
        return self.scale * torch.randn(200, VOCABULARY, generator=torch.Generator().manual_seed(self.seed))

    def __call__(self, batch, temperature):
        logits = self.table[batch.tokens_BT.flatten()[batch.rows.index_N]]
        dense = Signal(None, (logits / temperature).log_softmax(-1), None)
        if self.kind == "topk":
            return likeliest(dense, self.keep, len(logits), VOCABULARY)
        if self.kind == "sampled":
            how = Form(
                kind="sampled",
                vocabulary=VOCABULARY,
                keep=0,
                top_p=1.0,
                draws=9,
                temperatures=(temperature,),
                values="fp32",
            )
            tokens = batch.tokens_BT.flatten()[batch.rows.index_N]
            uniform = torch.stack([numbers(int(t) + 1000 * self.seed, how.draws) for t in tokens])
            return signal(entries(logits, batch.rows.target_N, how, uniform), how, temperature)
        return dense

    def prepare(self, batch, temperature):
        pass

    def flops(self, batch):
        return float(batch.tokens_BT.numel())

    def release(self):
        pass


def numbers(seed: int, draws: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(draws))


def student_of(batch: Batch, seed: int = 99, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(len(batch.rows.index_N), VOCABULARY, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_and_slope(student: torch.Tensor, said: Signal) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = student.clone().requires_grad_()
    loss = terms.Divergence(1.0, 1.0)(leaf, Chunk(torch.zeros(len(leaf), dtype=torch.long), said), Clock(0, 1))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def close(a, b, atol=2e-5) -> bool:
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(a, b, strict=True))


# Routes.

KINDS = [("dense", "dense"), ("topk", "dense"), ("topk", "sampled"), ("sampled", "dense"), ("topk", "topk")]


@pytest.mark.parametrize("kinds", KINDS)
def test_every_row_hears_its_own_teacher(kinds):
    own = {source: Knows(n, kind) for n, (source, kind) in enumerate(zip("ab", kinds, strict=True))}
    batch = batch_of("abbaab")
    student = student_of(batch)
    loss, slope = loss_and_slope(student, Routed(own)(batch, 1.0)[slice(None)])
    of_row = batch.rows.index_N // LENGTH
    for number, source in enumerate(batch.sources):
        rows = of_row == number
        alone = loss_and_slope(student[rows], own[source](batch.of([number]), 1.0)[slice(None)])
        assert close((loss[rows], slope[rows]), alone)


@pytest.mark.parametrize("kinds", KINDS)
def test_routed_rows_come_in_any_chunks_and_micro_batches(kinds):
    routed = Routed({"a": Knows(0, kinds[0]), "b": Knows(1, kinds[1])})
    batch = batch_of("aabbba")
    student = student_of(batch)
    whole = loss_and_slope(student, routed(batch, 2.0)[slice(None)])
    answer, some = routed(batch, 2.0), torch.tensor([7, 2, 11, 0])
    for size in (1, 4, 7):
        pieces = [slice(n, n + size) for n in range(0, len(student), size)]
        found = [loss_and_slope(student[piece], answer[piece]) for piece in pieces]
        assert close(whole, [torch.cat(column) for column in zip(*found, strict=True)])
    assert close([column[some] for column in whole], loss_and_slope(student[some], answer[some]))
    micro = [(m, routed(m, 2.0)[slice(None)]) for m in batch.micro(2)]
    split = student.split([len(m.rows.index_N) for m, _ in micro])
    found = [loss_and_slope(part, said) for part, (_, said) in zip(split, micro, strict=True)]
    assert close(whole, [torch.cat(column) for column in zip(*found, strict=True)])


def test_routed_teachers_are_asked_of_their_own_sequences_alone():
    routed = Routed({"a": Knows(0, "dense"), "b": replace(Knows(1, "dense"))})
    assert routed.flops(batch_of("aab")) == 3 * LENGTH
    same = Knows(0, "dense")
    assert len(list(Routed({"a": same, "b": same})._parts(batch_of("aab")))) == 1


# Ensembles.


def whole_mean(members, batch) -> torch.Tensor:
    """The mixture of what the members know when they keep everything."""
    return sum(weight * replace(m, kind="dense")(batch, 1.0).logp_NK.exp() for m, weight in members)


def test_dense_members_make_the_exact_mixture():
    members = [(Knows(0, "dense"), 0.25), (Knows(1, "dense"), 0.75)]
    batch = batch_of("aaa")
    said = Ensembled(members)(batch, 1.0)[slice(None)]
    assert said.ids_NK is None
    assert torch.allclose(said.logp_NK.exp(), whole_mean(members, batch), atol=1e-6)


@pytest.mark.parametrize("kinds", [("topk", "topk"), ("topk", "dense"), ("dense", "topk"), ("topk", "topk", "dense")])
@pytest.mark.parametrize("scale", [1.0, 12.0])
@pytest.mark.parametrize("keep", [3, 25, VOCABULARY])
def test_members_keep_what_all_of_them_know(kinds, scale, keep):
    """The loss is the divergence of the mixture and the student over those ids and one bucket for all others."""
    members = [(Knows(n, kind, scale, keep), 1 / len(kinds)) for n, kind in enumerate(kinds)]
    batch = batch_of("aaaa")
    said, mixture = Ensembled(members)(batch, 1.0)[slice(None)], whole_mean(members, batch).double()
    known = torch.ones(mixture.shape, dtype=torch.bool)
    for member, _ in members:
        if member.kind == "topk":
            known &= torch.zeros_like(known).scatter(1, member(batch, 1.0).ids_NK, True)
    assert torch.allclose(said.logp_NK.exp().sum(-1) + said.logrest_N.exp(), torch.ones(len(mixture)), atol=1e-5)
    heard = torch.zeros_like(mixture).scatter_add(1, said.ids_NK, said.logp_NK.exp().double())
    assert torch.allclose(heard, mixture * known, atol=1e-6)

    student = student_of(batch, dtype=torch.float64).requires_grad_()
    predicted = student.softmax(-1)
    kept = torch.where(known, torch.special.xlogy(mixture, mixture) - mixture * predicted.log(), 0.0).sum(-1)
    rest, others = (mixture * ~known).sum(-1), (predicted * ~known).sum(-1) + 1.0 * known.all(-1)
    expected = kept + torch.special.xlogy(rest, rest) - rest * others.log()
    slope = torch.autograd.grad(expected.sum(), student)[0]
    assert close(loss_and_slope(student.detach().float(), said), (expected.detach().float(), slope.float()), atol=1e-4)


def test_renormalising_a_route_is_routing_what_is_renormalised():
    """Losses too: rows with a rest must not keep the entropy that the rest is a part of."""
    members = {"a": Knows(1, "topk"), "b": Knows(2, "sampled")}
    batch = batch_of("abab")
    outside = Renormalised(Routed(members))(batch, 1.0)[slice(None)]
    inside = Routed({source: Renormalised(member) for source, member in members.items()})(batch, 1.0)[slice(None)]
    student = student_of(batch)
    assert close(loss_and_slope(student, outside), loss_and_slope(student, inside))


def test_the_loss_of_a_mean_of_equal_draws_is_that_of_the_draws():
    batch = batch_of("aa")
    drawn = Knows(5, "sampled")
    alone, mean = drawn(batch, 1.0)[slice(None)], Ensembled([(drawn, 0.5), (drawn, 0.5)])(batch, 1.0)[slice(None)]
    student = student_of(batch)
    assert close(loss_and_slope(student, mean), loss_and_slope(student, alone))


def test_equal_members_give_no_gradient_to_an_equal_student():
    batch = batch_of("aaa")
    for kind in ("dense", "topk"):
        member = Knows(3, kind)
        table = member.table[batch.tokens_BT.flatten()[batch.rows.index_N]]
        said = Ensembled([(member, 0.5), (member, 0.3), (Knows(3, "dense"), 0.2)])(batch, 1.0)[slice(None)]
        loss, slope = loss_and_slope(table, said)
        assert loss.abs().max() < 1e-5
        assert slope.abs().max() < 1e-6


@pytest.mark.parametrize("other", ["dense", "topk", "sampled"])
def test_members_that_draw_are_unbiased(other):
    """The mean gradient over many draws is that of the mixture, over the ids that are known."""
    batch, seeds = batch_of("a"), 400
    student, members = student_of(batch), [(Knows(0, "dense", 2.0), 0.5), (Knows(1, "dense", 2.0), 0.5)]
    exact = [(members[0][0], 0.5), (replace(members[1][0], kind="topk" if other == "topk" else "dense"), 0.5)]
    _, expected = loss_and_slope(student, Ensembled(exact)(batch, 1.0)[slice(None)])
    logits = members[0][0].table[batch.tokens_BT.flatten()[batch.rows.index_N]]
    slopes = []
    for seed in range(seeds):
        drawn = Drawn(logits, seed)
        second = (
            replace(members[1][0], kind=other)
            if other != "sampled"
            else Drawn(members[1][0].table[batch.tokens_BT.flatten()[batch.rows.index_N]], seed + seeds)
        )
        slopes.append(loss_and_slope(student, Ensembled([(drawn, 0.5), (second, 0.5)])(batch, 1.0)[slice(None)])[1])
    found = torch.stack(slopes).double()
    spread = found.std(0) / seeds**0.5
    z = ((found.mean(0) - expected) / spread)[spread > 1e-7]
    assert z.square().mean() < 1.7  # the rest's coordinates move together


@dataclass
class Drawn:
    """A teacher whose draws have a seed of their own."""

    logits: torch.Tensor
    seed: int

    def __call__(self, batch, temperature):
        how = Form(
            kind="sampled", vocabulary=VOCABULARY, keep=0, top_p=1.0, draws=9, temperatures=(1.0,), values="fp32"
        )
        uniform = torch.from_numpy(np.random.default_rng(self.seed).random((len(self.logits), 9)))
        return signal(entries(self.logits, batch.rows.target_N, how, uniform), how, 1.0)


# Recipes.


def test_impossible_teachers_are_named(world):
    load = {"load": world.teacher["causal"]}
    cases = [
        ({"teacher": {"route": {"one": "x", "two": "a"}}, "a": load}, "names the teacher 'x', which is not there"),
        ({"teacher": {"ensemble": {"x": 1}}, "a": load}, "names the teacher 'x', which is not there"),
        ({"teacher": {"route": {"one": "a"}}, "a": load}, "no teacher for the source 'two'"),
        ({"teacher": {"ensemble": {"b": 1}}, "b": {"ensemble": {"a": 1}}, "a": load}, "'b', which is itself several"),
        ({"teacher": {"route": {"one": "teacher", "two": "a"}}, "a": load}, "'teacher', which is itself several"),
        ({"teacher": {"ensemble": {"a": 1}, **load}, "a": load}, "is several things at once"),
        (
            {"teacher": {"ensemble": {"a": 1}, "route": {"one": "a", "two": "a"}}, "a": load},
            "is several things at once",
        ),
        ({"teacher": {"ensemble": {"a": 1}, "store": "s"}, "a": load}, "is several things at once"),
        ({"teacher": {"ensemble": {"a": 1}, "keep": 3}, "a": load}, "keep is for live models alone"),
        ({"teacher": {"store": "s", "keep": 3}}, "keep is for live models alone"),
        ({"teacher": {"store": "s"}, "b": {"store": "./s"}}, "is another teacher's store, too"),
        ({"teacher": {}, "a": load}, "needs load"),
    ]
    for teachers, words in cases:
        from bequest.config import decode
        from bequest.recipe import Recipe

        found = problems(decode(Recipe, world.raw({"name": "ki"}, teachers=teachers), "a test"))
        assert [sentence for sentence in found if words in sentence], (teachers, found)


@pytest.mark.parametrize("form", ["load", "store"])
@pytest.mark.parametrize("way", [{"route": {"one": "a", "two": "b"}}, {"ensemble": {"a": 3.0, "b": 1.0}}])
def test_from_a_recipe(world, tmp_path, way, form):
    """Live, and learned from stores that hold everything: the same losses."""
    from conftest import losses

    from bequest.job.teach import teach

    other = world.save("llama", "causal", hidden=32)
    teachers = {"teacher": way, "a": {"load": world.teacher["causal"]}, "b": {"load": other}}
    method = {"name": "ki", "until": 1.0}
    changes = {
        "train__tokens": 512,
        "train__save_every_tokens": 0,
        "teach": {"kind": "topk", "keep": 0, "values": "fp32"},
    }
    world.run(tmp_path / "live", method, teachers=teachers, **changes)
    summary = world.run(tmp_path / "micro", method, teachers=teachers, train__micro_batch_tokens=32, **changes)
    found = {"micro": losses(tmp_path / "micro")}
    assert summary["teacher_flops"] > 0
    if form == "store":
        stored = {**teachers, "a": {**teachers["a"], "store": str(tmp_path / "a")}}
        stored["b"] = {**teachers["b"], "store": str(tmp_path / "b")}
        assert set(teach(world.recipe(method, teachers=stored, **changes))) == {"a", "b"}
        alone = {"teacher": way, **{name: {"store": str(tmp_path / name)} for name in "ab"}}
        assert world.run(tmp_path / "stored", method, teachers=alone, **changes)["teacher_flops"] == 0
        found["stored"] = losses(tmp_path / "stored")
    for lines in found.values():
        for line, live in zip(lines, losses(tmp_path / "live"), strict=True):
            assert line[0] == live[0]
            assert line[1] is None or line[1] == pytest.approx(live[1], rel=1e-4)
