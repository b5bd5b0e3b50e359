"""Growth: exact operators are exact, the others are not, moments obey g = A^T g', and what cannot be done is said."""

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from bequest.model.grow import width
from bequest.model.grow.fade import FadingNorm, fade
from bequest.model.grow.growth import PREFIX, Growth, change, grown
from bequest.model.language import LanguageModel
from bequest.types import ModelError

LLAMAS, ENCODERS = ("llama", "mistral", "qwen2", "qwen3"), ("bert", "roberta")
VOCABULARY = 101


def model(family, hidden=48, layers=3, heads=4, kv_heads=2, inner=80, tied=True, dtype=torch.float64, epsilon=None):
    """A model whose weights are as large as a trained one's, so that logits are and errors show."""
    sizes = {
        "tie_word_embeddings": tied,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "gpt2":
        sizes |= {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_inner": inner, "n_positions": 64}
    else:
        sizes |= {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes |= {"intermediate_size": inner, "max_position_embeddings": 64}
    if family in LLAMAS:
        sizes |= {"num_key_value_heads": kv_heads, "head_dim": hidden // heads}
    if epsilon:
        sizes["layer_norm_eps"] = epsilon
    auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    torch.manual_seed(0)
    made = auto.from_config(AutoConfig.for_model(family, **sizes), dtype=dtype)
    for name, p in made.named_parameters():
        gain = p.dim() == 1 and name.endswith("weight")
        spread = 0.15 if p.dim() == 1 else 0.3 if family in ENCODERS else 0.25
        p.data = 1 + 0.3 * torch.randn_like(p) if gain else spread * torch.randn_like(p)
    made.tie_weights()
    return LanguageModel(made.eval())


def tokens():
    torch.manual_seed(1)
    return torch.randint(3, VOCABULARY, (2, 17))


def off(old, new):
    """The largest difference of logits over the largest logit."""
    with torch.no_grad():
        a, b = (m.model(input_ids=tokens()).logits for m in (old, new))
    return ((a - b).abs().max() / a.abs().max()).item()


@pytest.fixture(autouse=True)
def norms_in_their_inputs_precision(monkeypatch):
    """transformers computes RMS norms in fp32 always, which would hide what float64 is to show."""
    for family in LLAMAS:
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        monkeypatch.setattr(getattr(module, f"{family.title()}RMSNorm"), "forward", rms)


def rms(self, hidden):
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)


EVERYTHING = Growth(hidden=90, heads=9, kv_heads=3, feed_forward=130, layers=5)
EXACT = {
    **{f"{family} {tied}": (family, tied, EVERYTHING) for family in LLAMAS for tied in (True, False)},
    "llama hidden": ("llama", True, Growth(hidden=56)),
    "llama hidden untied": ("llama", False, Growth(hidden=56)),
    "llama heads": ("llama", True, Growth(heads=6)),
    "llama groups": ("llama", True, Growth(heads=8, kv_heads=4)),
    "llama inner": ("llama", True, Growth(feed_forward=81)),
    "llama layers": ("llama", True, Growth(layers=7)),
    "llama head_dim": ("llama", True, Growth(head_dim=24)),
    "mistral head_dim": ("mistral", True, Growth(head_dim=36, hidden=60)),
    "llama tiles": ("llama", True, Growth(hidden=96, heads=8, kv_heads=4, feed_forward=160, width="tile")),
    "qwen2 tiles": ("qwen2", False, Growth(hidden=144, heads=12, kv_heads=6, feed_forward=240, width="tile")),
    "qwen3 tiles and zeros": ("qwen3", True, Growth(hidden=117, heads=9, kv_heads=3, feed_forward=130, width="tile")),
    "llama tiles and zeros": ("llama", False, Growth(hidden=117, heads=9, kv_heads=3, layers=4, width="tile")),
    "llama more query heads by copies": ("llama", True, Growth(heads=6, width="tile")),
    "gpt2": ("gpt2", True, Growth(hidden=72, heads=6, feed_forward=130, layers=5)),
    "gpt2 untied": ("gpt2", False, Growth(hidden=60, feed_forward=130, layers=4)),
    "gpt2 head_dim": ("gpt2", True, Growth(hidden=72, heads=4)),
    "gpt2 tiles": ("gpt2", True, Growth(hidden=96, feed_forward=160, width="tile")),
    "gpt2 tiles and means": ("gpt2", True, Growth(hidden=120, heads=10, width="tile")),
    "gpt2 tiles and means untied": ("gpt2", False, Growth(hidden=120, heads=10, width="tile")),
    "bert tiles": ("bert", True, Growth(hidden=96, feed_forward=160, width="tile")),
    "bert tiles untied": ("bert", False, Growth(hidden=144, feed_forward=90, width="tile")),
    "roberta tiles": ("roberta", True, Growth(hidden=144, feed_forward=240, width="tile")),
    "roberta inner": ("roberta", True, Growth(feed_forward=130)),
    "bert heads": ("bert", True, Growth(hidden=96, heads=4, width="tile")),
    "llama nothing": ("llama", True, Growth()),
    "bert nothing": ("bert", True, Growth()),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_growth_keeps_the_logits(name):
    family, tied, growth = EXACT[name]
    old = model(family, tied=tied)
    new, _ = grown(old, growth)
    assert change(old.model.config, growth).inexact == ""
    assert off(old, new) < 1e-12, name
    in_fp32 = LanguageModel(copy.deepcopy(old.model).float())
    assert off(in_fp32, grown(in_fp32, growth)[0]) < 1e-5


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize(("epsilon", "most"), [(1e-12, 1e-11), (1e-5, 1e-4)])
def test_blocks_under_norms_on_the_stream_are_silent_but_for_the_norms_epsilon(family, epsilon, most):
    """A norm of a norm is the same again, but for epsilon over the variance of what is normed."""
    old = model(family, epsilon=epsilon)
    new, _ = grown(old, Growth(layers=5, hidden=96, width="tile"))
    assert 0 < off(old, new) < most


@pytest.mark.parametrize("family", ENCODERS)
def test_channels_that_fade_in_are_exact_at_any_width(family):
    """At m = 0 the smaller model's function; at m = 1 that of the ordinary folder."""
    old = model(family)
    new, _ = grown(old, Growth(hidden=60, heads=5, feed_forward=130, width="fade"))
    plain = off(old, new)
    shares = (0.0, 0.01, 1.0)
    found = []
    for share in shares:
        fade(new, share)
        found.append(off(old, new))
    assert found[0] < 1e-12
    assert found[0] < found[1] < found[2] == plain
    assert plain > 0.01
    assert off(old, grown(new, Growth(feed_forward=140))[0]) == pytest.approx(
        plain
    )  # it has come in: an ordinary model
    deeper, _ = grown(old, Growth(hidden=60, heads=5, layers=5, width="fade"))
    fade(deeper, 0.0)
    assert off(old, deeper) < 1e-11


def test_a_norm_whose_channels_count_alike_is_an_ordinary_one():
    torch.manual_seed(0)
    x, ordinary = torch.randn(3, 8, dtype=torch.float64), torch.nn.LayerNorm(8, dtype=torch.float64)
    fading = FadingNorm(8, dtype=torch.float64)
    for counts_D in (None, torch.ones(8, dtype=torch.float64)):
        fading.counts_D = counts_D
        assert torch.allclose(fading(x), ordinary(x), atol=1e-14)
    fading.counts_D = torch.tensor([1.0] * 6 + [0.0] * 2, dtype=torch.float64)
    six = torch.nn.LayerNorm(6, dtype=torch.float64)
    assert torch.allclose(fading(x)[:, :6], six(x[:, :6]), atol=1e-14)
    assert (fading(x)[:, 6:] == 0).all()


INEXACT = {
    "llama copies": ("llama", Growth(hidden=56, width="copies")),
    "llama random": ("llama", Growth(hidden=56, width="random")),
    "llama stack": ("llama", Growth(layers=6, depth="stack")),
    "llama interpolate": ("llama", Growth(layers=6, depth="interpolate")),
    "llama repeat": ("llama", Growth(layers=5, depth="repeat")),
    "gpt2 copied blocks": ("gpt2", Growth(layers=5, depth="copies")),
    "bert uneven copies": ("bert", Growth(hidden=60, heads=5, width="copies")),
    "roberta uneven tiles": ("roberta", Growth(hidden=60, heads=5, width="tile")),
    "roberta fading, before it does": ("roberta", Growth(hidden=60, heads=5, width="fade")),
    "llama noise": ("llama", Growth(noise=0.01)),
}


@pytest.mark.parametrize("name", INEXACT)
def test_what_is_not_exact_says_so_and_is_not(name):
    family, growth = INEXACT[name]
    old = model(family)
    assert change(old.model.config, growth).inexact
    assert off(old, grown(old, growth)[0]) > 0.01


def gradients(a_model):
    """Of a loss on some tokens, by name."""
    a_model.zero_grad()
    logits = a_model.model(input_ids=tokens()).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    return {name: p.grad for name, p in a_model.model.named_parameters() if p.grad is not None}


ONLY_COPIES = ["llama tiles", "qwen2 tiles", "gpt2 tiles", "bert tiles", "bert tiles untied", "roberta tiles"]
PADDED = ["llama True", "qwen3 False", "llama head_dim", "llama tiles and zeros", "qwen3 tiles and zeros"]


@pytest.mark.parametrize("name", ONLY_COPIES + PADDED)
def test_moments_are_what_the_grown_model_would_have_had(name, monkeypatch):
    """Gradients as first moments: where an old slot went, the grown gradient is there; new slots have none yet.

    Copies that share unequally get gradients in between equal and proportional ones, because a norm shares its own out equally.
    """
    monkeypatch.setattr(width, "UNEVEN", 0.0)
    family, tied, growth = EXACT[name]
    old = model(family, tied=tied)
    before = gradients(old)
    moments = {f"{PREFIX}{n}/exp_avg": g for n, g in before.items()}
    moments |= {f"{PREFIX}{n}/exp_avg_sq": g.square() for n, g in before.items()}
    moments |= {f"{PREFIX}{n}/step": torch.tensor(7.0) for n in before} | {"loss.rank/exp_avg": torch.ones(3)}
    new, mapped = grown(old, growth, moments)
    assert torch.equal(mapped["loss.rank/exp_avg"], torch.ones(3))
    compared = 0
    for n, gradient in gradients(new).items():
        found, square = mapped[f"{PREFIX}{n}/exp_avg"], mapped[f"{PREFIX}{n}/exp_avg_sq"]
        assert found.shape == square.shape == gradient.shape
        assert mapped[f"{PREFIX}{n}/step"] == 7
        old_slots = found != 0
        assert torch.allclose(found[old_slots], gradient[old_slots], rtol=1e-8, atol=1e-12), n
        assert torch.allclose(square[old_slots], gradient[old_slots].square(), rtol=1e-8, atol=1e-20), n
        assert (square >= 0).all()
        compared += int(old_slots.sum())
    assert compared >= sum(int((g != 0).sum()) for g in before.values())


def test_silent_blocks_have_no_past():
    old = model("llama")
    moments = {f"{PREFIX}{n}/exp_avg": torch.ones_like(p) for n, p in old.model.named_parameters()}
    moments |= {f"{PREFIX}{n}/exp_avg_sq": torch.rand_like(p) for n, p in old.model.named_parameters()}
    _, mapped = grown(old, Growth(layers=6), moments)
    new, copied = (f"{PREFIX}model.layers.{n}.mlp.up_proj.weight" for n in (1, 2))
    assert (mapped[f"{new}/exp_avg"] == 0).all()
    assert torch.allclose(mapped[f"{new}/exp_avg_sq"], mapped[f"{copied}/exp_avg_sq"].mean(), atol=0.05)
    assert (mapped[f"{copied}/exp_avg"] == 1).all()


@pytest.mark.parametrize(
    "name", ["llama True", "gpt2", "gpt2 tiles and means", "bert tiles", "llama head_dim", "qwen3 tiles and zeros"]
)
def test_all_that_is_new_learns_within_two_steps(name):
    family, tied, growth = EXACT[name]
    new, _ = grown(model(family, tied=tied), replace(growth, layers=5))
    optimiser = torch.optim.SGD(new.parameters(), lr=0.05)
    first = gradients(new)
    optimiser.step()
    for n, gradient in gradients(new).items():
        if "attn.bias" in n or "key.bias" in n or "k_proj.bias" in n:
            continue  # what is added to every key alike changes no attention
        learns = (first[n] != 0) | (gradient != 0)
        rows = learns.any(-1) if "embed" in n or "wte" in n or "wpe" in n else slice(None)  # what the tokens look up
        assert learns[rows].all(), n


def test_copies_separate():
    new, _ = grown(model("llama"), Growth(hidden=96, feed_forward=160, width="tile"))
    optimiser = torch.optim.SGD(new.parameters(), lr=0.1)
    for _ in range(2):
        gradients(new)
        optimiser.step()
    up = new.model.model.layers[0].mlp.up_proj.weight
    assert (up[:80] - up[80:]).abs().min() > 0
    embedding = new.model.model.embed_tokens.weight[tokens().unique()]
    assert (embedding[:, :48] - embedding[:, 48:]).abs().min() > 0


def test_growth_is_a_function_of_its_seed_and_draws_from_no_generator_of_ours():
    old = model("llama")
    before = torch.get_rng_state()
    made = [grown(old, replace(EVERYTHING, seed=seed))[0].state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(made[0][n], made[1][n]) for n in made[0])
    assert not all(torch.equal(made[0][n], made[2][n]) for n in made[0])


def test_a_teacher_of_the_same_width_is_repeated_as_in_weak_distillation():
    """Lee et al. 2023, from four layers to six: 0, 1, 2, 3, 3, 3."""
    old = model("bert", layers=4)
    new, _ = grown(old, Growth(layers=6, depth="repeat"))
    for n, source in enumerate((0, 1, 2, 3, 3, 3)):
        a, b = (m.model.bert.encoder.layer[i].state_dict() for m, i in ((new, n), (old, source)))
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_the_grown_model_is_an_ordinary_one(family, tmp_path):
    old = model(family, dtype=torch.float32)
    grown(old, Growth(hidden=96, heads=8, layers=4))[0].model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ask = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(tokens())}
    assert torch.equal(loaded.generate(tokens(), **ask), old.model.generate(tokens(), **ask))


WRONG = [
    ("llama", {"hidden": 40}, "they do not shrink: hidden 40 is less than 48"),
    ("llama", {"layers": 2}, "they do not shrink"),
    ("llama", {"head_dim": 18}, "head_dim 18 is no multiple of 12"),
    ("qwen3", {"head_dim": 24}, "norms each head's channels"),
    ("gpt2", {"head_dim": 24}, "is hidden / heads, 12 here"),
    ("llama", {"hidden": 90}, "hidden 90 must be a multiple of heads 4"),
    ("llama", {"hidden": 60, "heads": 8}, "hidden 60 must be a multiple of heads 8; 5 heads of 12 channels would do"),
    ("llama", {"heads": 6, "kv_heads": 4}, "6 heads cannot share 4 key-value heads"),
    ("llama", {"heads": 8, "kv_heads": 8}, "8 heads cannot share 8 key-value heads as 4 shared 2"),
    ("llama", {"hidden": 56, "width": "fade"}, "a llama can take width: pad, which is exact"),
    ("llama", {"heads": 3}, "they do not shrink: heads 3 is less than 4"),
    ("bert", {"hidden": 72, "heads": 6}, "take width: tile and a multiple of hidden 48"),
]


@pytest.mark.parametrize(("family", "sizes", "words"), WRONG)
def test_what_cannot_grow_is_a_sentence(family, sizes, words):
    with pytest.raises(ModelError, match=words):
        grown(model(family), Growth(**sizes))


def test_other_architectures_and_wrong_configurations_are_sentences():
    other = AutoConfig.for_model("opt")
    with pytest.raises(ModelError, match="models of the kind opt cannot be grown"):
        change(other, Growth(hidden=1024))
    old = model("llama")
    old.model.config.intermediate_size = 96
    with pytest.raises(ModelError, match="its configuration promises"):
        grown(old, Growth(hidden=96))
    two = model("gpt2")
    two.model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx"):
        grown(two, Growth(layers=4))
    unscaled = model("gpt2")
    unscaled.model.config.scale_attn_weights = False
    with pytest.raises(ModelError, match="not scaled"):
        grown(unscaled, Growth(hidden=96, heads=4))
    change(unscaled.model.config, Growth(hidden=96))
    empty = model("llama").model.config
    empty.num_hidden_layers = 0
    with pytest.raises(ModelError, match="no blocks"):
        change(empty, Growth(layers=4))
