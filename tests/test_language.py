"""Features and head, document borders, and the models that we build and load."""

import pytest
import torch
from conftest import CAUSAL, MASKED, make_model, make_vocabulary

from bequest.model import build
from bequest.model.flops import forward_flops, matrix_parameters
from bequest.model.language import LanguageModel
from bequest.model.mask import positions
from bequest.types import Batch, ModelError, Rows

ALL = CAUSAL + MASKED


def batch_of(vocabulary, length: int, seed: int = 0) -> Batch:
    """Two sequences: three documents and padding in the first, one document in the second; every inner position a row."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, vocabulary.size, (2, length), generator=generator)
    segments = torch.zeros(2, length, dtype=torch.long)
    segments[0, 5:] = 1
    segments[0, 17:] = 2
    segments[0, length - 3 :] = -1
    index = torch.cat([torch.arange(length - 4), length + torch.arange(length - 1)])
    target = torch.randint(5, vocabulary.size, (len(index),), generator=generator)
    return Batch(tokens, segments, Rows(index, target), len(index), False, ("a", "b"), (b"1", b"2"))


def vocabulary_for(family: str):
    return make_vocabulary("causal" if family in CAUSAL else "masked")


@pytest.mark.parametrize("attention", ["cpu_tiles", "sdpa", "eager"])
@pytest.mark.parametrize("family", ALL)
def test_packed_equals_separate(family, attention):
    vocabulary = vocabulary_for(family)
    model = make_model(family, vocabulary).eval()
    model.model.set_attn_implementation(attention)
    batch = batch_of(vocabulary, 32)
    with torch.no_grad():
        packed = model._base(batch.tokens_BT, batch.segments_BT, False)
        for first, last in ((0, 5), (5, 17), (17, 29)):
            own = batch.tokens_BT[:1, first:last]
            alone = model._base(own, torch.zeros_like(own), True)
            assert torch.allclose(packed[:1, first:last], alone, atol=2e-6), (first, last)
        assert torch.allclose(packed[1:], model._base(batch.tokens_BT[1:], batch.segments_BT[1:], True), atol=2e-6)


@pytest.mark.parametrize("family", ALL)
def test_a_document_never_sees_another(family):
    """Changing one document's tokens moves nothing in the others."""
    vocabulary = vocabulary_for(family)
    model = make_model(family, vocabulary).eval()
    batch = batch_of(vocabulary, 32)
    changed = batch.tokens_BT.clone()
    changed[0, 5:17] = 7
    with torch.no_grad():
        before, after = (model._base(t, batch.segments_BT, False) for t in (batch.tokens_BT, changed))
    assert torch.equal(before[0, :5], after[0, :5])
    assert torch.equal(before[0, 17:29], after[0, 17:29])
    assert not torch.allclose(before[0, 5:17], after[0, 5:17])


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("tied", [True, False])
def test_head_gives_the_models_own_logits(family, tied):
    vocabulary = vocabulary_for(family)
    model = make_model(family, vocabulary, tied=tied).eval()
    tokens = torch.arange(8, 24)[None]
    rows = Rows(torch.arange(16), torch.zeros(16, dtype=torch.long))
    batch = Batch(tokens, torch.zeros_like(tokens), rows, 16, True, ("a",), (b"1",))
    with torch.no_grad():
        assert torch.allclose(model.head.logits(model(batch)), model.model(input_ids=tokens).logits[0], atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "mistral", "qwen2", "xlm-roberta", "mixtral"])
def test_other_architectures_split_right_or_are_refused(name):
    """Soft-cap, logit scale, logits scaling, sliding windows, experts: the check at construction compares logits."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    more = {} if name == "xlm-roberta" else {"num_key_value_heads": 1, "head_dim": 8}
    more |= {
        "gemma2": {"final_logit_softcapping": 1.5},
        "granite": {"logits_scaling": 3.0},
        "cohere": {"logit_scale": 0.25},
    }.get(name, {})
    auto = AutoModelForMaskedLM if name == "xlm-roberta" else AutoModelForCausalLM
    config = AutoConfig.for_model(name, pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes, **more)
    model = LanguageModel(auto.from_config(config).eval())
    assert (model.head.softcap, model.head.scale) == {
        "gemma2": (1.5, 1.0),
        "granite": (None, 1 / 3),
        "cohere": (None, 0.25),
    }.get(name, (None, 1.0))


def test_unknown_head_is_refused(vocabulary):
    model = make_model("llama", vocabulary).model
    original = model.forward
    model.forward = lambda **kwargs: type("Output", (), {"logits": original(**kwargs).logits * 3.0})()
    with pytest.raises(ModelError, match="in a way we do not know"):
        LanguageModel(model)


def test_positions_restart():
    assert positions(torch.tensor([[0, 0, 1, 1, 1, 2, -1, -1]])).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]


def test_padded_vocabulary(vocabulary):
    model = make_model("llama", vocabulary, vocab=320)
    assert model.vocabulary == 320
    assert model.head.narrow(vocabulary.size).weight_VD.shape[0] == vocabulary.size
    with pytest.raises(ModelError, match="less than the tokenizer's"):
        make_model("llama", vocabulary, vocab=20)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("tied", [True, False])
def test_flops_count_what_a_profiler_counts(family, tied):
    """Against PyTorch's own counter: projections and head exactly; attention over all T positions."""
    from torch.utils.flop_counter import FlopCounterMode

    vocabulary = vocabulary_for(family)
    model = make_model(family, vocabulary, tied=tied).eval()
    model.model.set_attn_implementation("eager")
    batch = batch_of(vocabulary, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.head.logits(model(batch))
    rotary = 2 * 2 * 32 * 4 if family in ("llama", "qwen3") else 0  # the tables of angles, not counted by us
    assert abs(counter.get_total_flops() - forward_flops(model, batch)) <= rotary * 4


def test_experts_count_as_often_as_they_work():
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 8,
    }
    config = AutoConfig.for_model("mixtral", vocab_size=50, num_local_experts=4, num_experts_per_tok=2, **sizes)
    base, head = matrix_parameters(LanguageModel(AutoModelForCausalLM.from_config(config)))
    assert base == 4 * 16 * 16 + 4 * 16 + 2 * (3 * 16 * 8)
    assert head == 50 * 16


@pytest.mark.parametrize("family", ALL)
def test_saved_students_load_with_transformers(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    vocabulary = vocabulary_for(family)
    model = make_model(family, vocabulary)
    model.model.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if family in CAUSAL else AutoModelForMaskedLM
    again = auto.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_wrong_models_are_refused(tmp_path, world):
    with pytest.raises(ModelError, match="no model at"):
        build.load(str(tmp_path / "nothing"), "causal")
    with pytest.raises(ModelError, match=r"does not fit data\.objective masked"):
        build.load(world.teacher["causal"], "masked")
    with pytest.raises(ModelError, match=r"does not fit data\.objective causal"):
        build.load(world.teacher["masked"], "causal")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read a model"):
        build.load(str(tmp_path), "causal")
