"""Attention in tiles against PyTorch's own: values and gradients, borders, groups of heads, and who is sent on."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from test_language import ALL, batch_of, vocabulary_for
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bequest.device import settle
from bequest.model import attention
from bequest.model.attention import NAME, attend
from bequest.model.mask import additive
from bequest.recipe import Train
from bequest.types import ModelError, RecipeError


def inputs(heads=4, groups=4, length=150, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    normal = lambda count: torch.randn(2, count, length, width, generator=generator, dtype=dtype).requires_grad_()
    return [normal(heads), normal(groups), normal(groups)]


def results(function, tensors, mask=None, causal=True, groups=1, **others):
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=groups, training=True)
    found, weights = function(module, *tensors, mask, **others)
    assert weights is None
    weigh = torch.linspace(-1, 1, found.numel(), dtype=torch.float32).view_as(found).to(found.dtype)
    return [found, *torch.autograd.grad((found * weigh).sum(), tensors)]


@pytest.mark.parametrize("length", [1, 7, 64, 65, 150])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_fused_kernel(length, groups, causal, masked):
    tensors = inputs(4, groups, length)
    segments = torch.arange(length).div(23, rounding_mode="floor").expand(2, -1)
    mask = additive(segments, causal, torch.float32) if masked else None
    ours, theirs = (
        results(f, tensors, mask, causal, 4 // groups, scaling=0.3) for f in (attend, sdpa_attention_forward)
    )
    assert all(torch.allclose(a, b, rtol=1e-4, atol=2e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("masked", [True, False])
def test_bf16_is_as_near_as_the_fused_kernel(masked):
    tensors = inputs(length=200, width=16)
    segments = torch.arange(200).div(70, rounding_mode="floor").expand(2, -1)
    mask = additive(segments, True, torch.float32) if masked else None
    exact = results(sdpa_attention_forward, tensors, mask)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (results(f, tensors, mask) for f in (attend, sdpa_attention_forward))
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype
        assert (one - true).norm() < max(1.5 * (other - true).norm(), 1e-2 * true.norm())


@pytest.mark.parametrize("family", ALL)
def test_every_family_attends_in_tiles(family, monkeypatch):
    """A model takes it by itself, trains alike, and says nothing of it in its folder."""
    vocabulary, calls = vocabulary_for(family), []
    original = attention._tiled
    monkeypatch.setattr(attention, "_tiled", lambda *a: (calls.append(1), original(*a))[1])
    model, batch = make_model(family, vocabulary), batch_of(vocabulary, 32)
    assert model.model.config._attn_implementation == NAME
    found = []
    for kind in (NAME, "sdpa"):
        model.model.set_attn_implementation(kind)
        calls.clear()
        model.zero_grad()
        features = model.features(batch)
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        assert len(calls) == (2 if kind == NAME else 0)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*found, strict=True))
    assert NAME not in str(model.model.config.to_dict())


def test_what_it_is_not_made_for_is_sent_on(monkeypatch):
    sent = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *a, **k: (sent.append(a), (None, None))[1])
    query, key, value = inputs()
    module = SimpleNamespace(is_causal=True)
    attend(module, query, key, value, None, dropout=0.1)
    attend(module, query[:, :, -1:], key, value, None)
    attend(module, query, key, value, torch.ones(2, 1, 150, 150, dtype=torch.bool))
    attend(module, query, key, value[..., :4], None)
    attend(module, query[..., :4], key, value, None)
    assert len(sent) == 5


@pytest.mark.parametrize("family", ALL)
def test_blocks_keep_documents_apart_as_a_mask_does(family, monkeypatch):
    """FlexAttention's forward pass (it has no backward pass on a CPU), uncompiled."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "compiled_flex", lambda: flex_attention)
    vocabulary = vocabulary_for(family)
    model, batch = make_model(family, vocabulary).eval(), batch_of(vocabulary, 32)
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=UserWarning):
        masked = model.features(batch)
        model.attend_by_blocks()
        assert torch.allclose(model.features(batch), masked, atol=2e-6)


def test_blocks_are_refused_where_they_do_not_fit(vocabulary):
    with pytest.raises(ModelError, match=r"student\.dropout"):
        make_model("llama", vocabulary, dropout=0.1).attend_by_blocks()
    with pytest.raises(RecipeError, match="GPU alone"):
        settle(Train(tokens=1, device="cpu", document_mask="flex"))


def test_every_shape_of_a_compiled_block_has_its_own_code(vocabulary, monkeypatch):
    """Beyond a limit the compiler would leave blocks as they are, and rounding would depend on what it saw first."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **k: original(self, backend="eager", **k))
    torch.compiler.reset()
    model, tokens = make_model("llama", vocabulary), torch.ones(1, 8, dtype=torch.long)
    model.compile_blocks()
    passes = [tokens.expand(count, -1) for count in range(1, 13)]
    run = lambda: [model._base(t, torch.zeros_like(t), True) for t in passes]
    run()
    with torch.compiler.set_stance("fail_on_recompile"):
        run()
    torch.compiler.reset()
