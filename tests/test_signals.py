"""What is kept of a distribution, against the distribution itself."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bequest.loss import terms
from bequest.model.tiled import draw, largest
from bequest.teach.controls import Renormalised
from bequest.teach.signals import Form, entries, joined, signal, split
from bequest.types import Chunk, Clock, ModelError, Signal


def form(vocabulary: int, **changes) -> Form:
    kept = {"kind": "topk", "keep": 8, "top_p": 1.0, "draws": 0, "temperatures": (1.0, 2.0), "values": "fp32"}
    sampled = {"kind": "sampled", "keep": 0, "temperatures": (1.0,)} if changes.get("draws") else {}
    return Form(vocabulary=vocabulary, **{**kept, **sampled, **changes})


def logits_of(rows: int, vocabulary: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def numbers(rows: int, draws: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((rows, draws)))


def kept(logits: torch.Tensor, how: Form, uniform=None):
    return entries(logits, torch.zeros(len(logits), dtype=torch.long), how, uniform)


# Large vocabularies without sorting them.


@pytest.mark.parametrize("vocabulary", [2, 63, 64, 65, 300, 1000, 5003])
def test_largest_are_the_largest(vocabulary):
    for keep in sorted({1, 2, min(32, vocabulary), vocabulary - 1, vocabulary}):
        logits = logits_of(20, vocabulary, seed=keep)
        values, ids = largest(logits, keep)
        expected = logits.topk(keep)
        assert torch.equal(values, expected.values)
        assert torch.equal(ids, expected.indices)


def test_largest_with_ties_and_infinities():
    logits = torch.randint(0, 4, (50, 1001), generator=torch.Generator().manual_seed(0)).float()
    logits[:, ::3] = -torch.inf
    for keep in (1, 5, 900):
        values, ids = largest(logits, keep)
        assert torch.equal(values, logits.topk(keep).values)
        assert torch.equal(logits.gather(1, ids), values)
        assert all(len(row.unique()) == keep for row in ids)


@pytest.mark.parametrize("vocabulary", [2, 64, 65, 1000])
def test_draws_are_the_inverse_of_the_distribution_function(vocabulary):
    mass = logits_of(10, vocabulary, 2.0).exp()
    mass[:, :: max(2, vocabulary // 5)] = 0.0
    uniform = numbers(10, 2000)
    ends = mass.double().cumsum(-1)
    expected = torch.searchsorted(ends, uniform * ends[:, -1:], right=True)
    found = draw(mass, uniform)
    assert (found != expected).double().mean() < 1e-3  # a number within rounding of an edge may fall to either side
    assert ((found - expected).abs() <= vocabulary // 5 + 1).all()
    assert (mass.gather(1, found) > 0).all()


def test_draws_at_the_ends_have_mass():
    mass = torch.zeros(3, 500)
    mass[0, 70], mass[1, 3:200], mass[2, 499] = 1e-30, 0.3, 7.0
    ends = torch.tensor([0.0, 0.5, np.nextafter(1.0, 0.0)], dtype=torch.float64).expand(3, -1)
    assert (mass.gather(1, draw(mass, ends)) > 0).all()


# The likeliest.


@pytest.mark.parametrize("keep", [1, 8, 99, 100, 0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_kept_entries_are_the_dense_ones(keep, temperature, scale):
    logits = logits_of(30, 100, scale)
    found = signal(kept(logits, form(100, keep=keep)), form(100, keep=keep), temperature)
    dense = (logits.double() / temperature).log_softmax(-1)
    assert torch.allclose(found.logp_NK.double(), dense.gather(1, found.ids_NK), atol=1e-4, rtol=1e-5)
    chosen = torch.zeros(30, 100, dtype=torch.bool).scatter(1, found.ids_NK, True)
    assert torch.equal(
        dense.masked_fill(~chosen, -torch.inf).topk(keep or 100).indices, dense.topk(keep or 100).indices
    )
    rest = dense.masked_fill(chosen, -torch.inf).logsumexp(-1)
    assert torch.allclose(found.logrest_N.double().clamp_min(-80), rest.clamp_min(-80), atol=1e-3, rtol=1e-4)


def test_the_realised_token_is_told():
    logits, target = logits_of(30, 100), torch.arange(30)
    expected = logits.log_softmax(-1)[torch.arange(30), target]
    for how, uniform in ((form(100), None), (form(100, draws=5, temperatures=(2.0,)), numbers(30, 5))):
        found = signal(entries(logits, target, how, uniform), how, how.temperatures[-1])
        assert torch.allclose(found.logp_target_N, expected, atol=1e-5)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_adaptive_keeps_as_few_as_make_up_the_mass(top_p):
    logits, how = torch.cat([logits_of(20, 100, 1.0), logits_of(20, 100, 8.0)]), form(100, keep=20, top_p=top_p)
    found = kept(logits, how)
    probability = logits.double().softmax(-1).sort(-1, descending=True).values.cumsum(-1)
    least = (probability < top_p).sum(-1) + 1
    assert found.sizes_R.tolist() == least.clamp_max(20).tolist()
    said = signal(found, how, 2.0)
    assert torch.allclose(said.logp_NK.exp().sum(-1) + said.logrest_N.exp(), torch.ones(40), atol=1e-5)
    dense = (logits.double() / 2.0).log_softmax(-1)
    real = said.logp_NK > -torch.inf
    assert torch.allclose(said.logp_NK[real].double(), dense.gather(1, said.ids_NK)[real], atol=1e-4)


def test_a_flat_row_beside_peaked_ones_keeps_everything():
    """Where one row keeps all ids, the others still have a rest."""
    logits, how = torch.cat([torch.zeros(1, 30), logits_of(5, 30, 5.0)]), form(30, keep=0, top_p=0.99)
    found = kept(logits, how)
    assert found.sizes_R[0] == 30 > found.sizes_R[1:].max()
    student = logits_of(6, 30, 1.0, seed=5)
    together, slope = loss_and_slope(student, signal(found, how, 1.0))
    for row in range(6):
        alone, own = loss_and_slope(student[row : row + 1], signal(split(found, [1] * 6)[row], how, 1.0))
        assert torch.allclose(together[row], alone[0], atol=1e-5)
        assert torch.allclose(slope[row], own[0], atol=1e-5)


def test_a_temperature_that_is_not_held():
    found = kept(logits_of(3, 20), form(20, temperatures=(1.0, 4.0)))
    with pytest.raises(ModelError, match=r"hold temperature 1, 4, not 2; .*teach\.temperatures: \[2\]"):
        signal(found, form(20, temperatures=(1.0, 4.0)), 2.0)


def test_blocks_come_apart_and_together():
    found = kept(logits_of(12, 50), form(50, top_p=0.8))
    again = joined(split(found, [3, 0, 4, 5]))
    for name in ("sizes_R", "ids_E", "values_E", "scalars_RS"):
        assert np.array_equal(getattr(found, name), getattr(again, name))


# Draws.


@pytest.mark.parametrize(("keep", "top_p"), [(0, 1.0), (10, 1.0), (10, 0.5)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_come_from_what_is_allowed(keep, top_p, temperature):
    logits = logits_of(20, 200)
    how = form(200, draws=64, keep=keep, top_p=top_p, temperatures=(temperature,))
    found = kept(logits, how, numbers(20, 64))
    ranked = logits.double().softmax(-1).sort(-1, descending=True)
    allowed = torch.ones(20, 200, dtype=torch.bool)
    if keep:
        inside = (ranked.values.cumsum(-1) - ranked.values < top_p) & (torch.arange(200) < keep)
        allowed = torch.zeros(20, 200, dtype=torch.bool).scatter(1, ranked.indices, inside)
    assert allowed[np.repeat(np.arange(20), found.sizes_R), found.ids_E].all()
    assert [part.values_E.sum() for part in split(found, [1] * 20)] == [64] * 20
    rule = (logits.double() / temperature).masked_fill(~allowed, -torch.inf).softmax(-1)
    assert np.allclose(found.scalars_RS[:, 1], torch.distributions.Categorical(rule).entropy(), atol=1e-4)
    said = signal(found, how, temperature)
    assert torch.allclose(said.logp_NK.exp().sum(-1), torch.ones(20), atol=1e-5)


def loss_and_slope(student: torch.Tensor, said: Signal, temperature: float = 1.0):
    leaf = student.clone().requires_grad_()
    loss = terms.Divergence(temperature, 1.0)(leaf, Chunk(torch.zeros(len(leaf), dtype=torch.long), said), Clock(0, 1))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@dataclass
class Says:
    """A teacher with one thing to say."""

    what: Signal

    def __call__(self, batch, temperature):
        return self.what


def errors_in_sigmas(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """z-score of the mean over the first axis, for whatever varies."""
    spread = found.std(0) / len(found) ** 0.5
    used = spread > 1e-7
    return ((found.mean(0) - expected) / spread)[used]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_are_unbiased_and_renormalised_likeliest_are_not(temperature):
    """Over 1,000 seeds the mean gradient and the mean loss are the dense ones; the control's gradient is far off."""
    seeds, vocabulary = 1000, 40
    teacher, student = logits_of(6, vocabulary, 2.0), logits_of(6, vocabulary, 1.0, seed=1)
    dense = Signal(None, (teacher / temperature).log_softmax(-1), None)
    loss, slope = loss_and_slope(student, dense, temperature)

    how = form(vocabulary, draws=20, temperatures=(temperature,))
    found = [
        loss_and_slope(student, signal(kept(teacher, how, numbers(6, 20, seed)), how, temperature), temperature)
        for seed in range(seeds)
    ]
    z = errors_in_sigmas(torch.stack([s for _, s in found]).double(), slope.double())
    assert len(z) > 150
    assert 0.6 < z.square().mean() < 1.4  # its own standard deviation is about 0.12
    assert z.abs().max() < 5
    z_loss = errors_in_sigmas(torch.stack([v for v, _ in found]).double(), loss.double())
    assert z_loss.abs().max() < 4

    likeliest = form(vocabulary, keep=5, temperatures=(temperature,))
    control = Renormalised(Says(signal(kept(teacher, likeliest), likeliest, temperature)))(None, temperature)[
        slice(None)
    ]
    _, renormalised = loss_and_slope(student, control, temperature)
    spread = torch.stack([s for _, s in found]).std(0) / seeds**0.5
    biased = ((renormalised - slope) / spread)[spread > 1e-7]
    assert biased.square().mean() > 100


@pytest.mark.parametrize("temperatures", [(0.5, 1.0), (2.0, 1.0), (0.5, 3.0), (3.0, 1.0, 0.5)])
def test_every_temperature_finds_its_own_rest(temperatures):
    """In whichever order they are held, with 1 among them or not."""
    logits = logits_of(30, 400)
    how = form(400, temperatures=temperatures)
    held = kept(logits, how)
    for temperature in temperatures:
        said, whole = signal(held, how, temperature), (logits / temperature).log_softmax(-1)
        assert torch.allclose(said.logp_NK, whole.gather(1, said.ids_NK), atol=1e-5)
        rest = whole.exp().scatter(1, said.ids_NK, 0.0).sum(-1)
        assert torch.allclose(said.logrest_N.exp(), rest, atol=1e-6)
