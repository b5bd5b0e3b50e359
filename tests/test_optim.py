"""Parameter groups, and state as plain named tensors."""

import pytest
import torch
from conftest import CAUSAL, MASKED, make_model, make_vocabulary

from bequest.optim import Optimiser
from bequest.recipe import OptimiserSettings


def groups(optimiser, model):
    """Name of each parameter by (optimiser, weight decay)."""
    names = {id(p): n for n, p in model.named_parameters()}
    found = {}
    for _, inner in optimiser._inner:
        for group in inner.param_groups:
            found[type(inner).__name__, group["weight_decay"]] = {names[id(p)] for p in group["params"]}
    return found


@pytest.mark.parametrize("family", CAUSAL + MASKED)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group(family, name):
    model = make_model(family, make_vocabulary("causal" if family in CAUSAL else "masked"), tied=False)
    found = groups(Optimiser(model, OptimiserSettings(name=name)), model)
    everything = [n for names in found.values() for n in names]
    assert sorted(everything) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    for n in found["AdamW", 0.0]:
        assert dict(model.named_parameters())[n].dim() == 1 or "embed" in n or "wte" in n or "wpe" in n
    if name == "muon":
        muon = found["Muon", 0.1]
        assert all(dict(model.named_parameters())[n].dim() == 2 for n in muon)
        assert not any("embed" in n or "decoder" in n or n.endswith("lm_head.weight") for n in muon)
        assert len(muon) >= 2 * 4


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_out_and_in(vocabulary, name):
    def trained(steps, optimiser, model):
        for step in range(steps):
            torch.manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimiser.step(0.5)

    one, two = make_model("llama", vocabulary), make_model("llama", vocabulary)
    first = Optimiser(one, OptimiserSettings(name=name))
    trained(3, first, one)
    two.load_state_dict(one.state_dict())
    second = Optimiser(two, OptimiserSettings(name=name))
    second.load({k: v.clone() for k, v in first.state().items()})
    assert {k.rpartition("/")[0] for k in first.state()} == {n for n, _ in one.named_parameters()}
    trained(2, first, one)
    trained(2, second, two)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_rate_is_the_multiplier_of_the_peak(vocabulary):
    model = make_model("llama", vocabulary)
    optimiser = Optimiser(model, OptimiserSettings(lr=0.5, weight_decay=0.0))
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step(0.01)
    assert all(
        torch.allclose(b - a, torch.full_like(a, 0.005), rtol=1e-3)
        for a, b in zip(model.parameters(), before, strict=True)
    )
    assert all(p.grad is None for p in model.parameters())
