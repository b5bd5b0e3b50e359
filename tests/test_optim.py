"""Parameter groups, and state as plain named tensors."""

import pytest
import torch
from conftest import CAUSAL, MASKED, make_model, make_vocabulary

from bequest.optim import Muon, Optimiser, orthogonal
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


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_orthogonal_takes_every_matrix_to_singular_values_about_one(shape):
    torch.manual_seed(0)
    matrices_NRC = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    found = orthogonal(matrices_NRC).float()
    assert found.shape == matrices_NRC.shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices_NRC, full_matrices=False)
    assert torch.nn.functional.cosine_similarity((left @ right).flatten(1), found.flatten(1)).min() > 0.95


def test_muon_is_that_of_pytorch(vocabulary):
    """But for the precision of its products: PyTorch's are bf16 everywhere."""
    models = [make_model("llama", vocabulary) for _ in range(2)]
    matrices = [[p for n, p in m.named_parameters() if "proj" in n] for m in models]
    ours = Muon([{"params": matrices[0], "weight_decay": 0.1}], lr=0.02, momentum=0.9)
    theirs = torch.optim.Muon(matrices[1], lr=0.02, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    begun = [p.detach().clone() for p in matrices[0]]
    for step in range(3):
        for own, other in zip(*matrices, strict=True):
            torch.manual_seed(step)
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        ours.step()
        theirs.step()
    for own, other, before in zip(*matrices, begun, strict=True):
        assert (own - other).norm() < 0.03 * (other - before).norm()
