"""MiniPLM: what is chosen, what it costs, and its controls."""

import random
from dataclasses import replace

import laws
import numpy as np
import pytest
from conftest import losses, make_model, make_vocabulary, same_bits, weights, write_jsonl

from bequest.device import Place
from bequest.job.check import plan, problems
from bequest.job.models import opener
from bequest.job.prepare import find_method, inputs, prepare
from bequest.job.stages import stages_of
from bequest.model.flops import forward_flops
from bequest.types import ModelError, RecipeError

ZERO = {"name": "miniplm", "keep": 1.0}
METHOD = {"name": "miniplm", "keep": 0.3}
NEEDS_TEACHER = True


def CHANGES(world, objective: str) -> dict:
    family = "llama" if objective == "causal" else "bert"
    return {"teachers__reference": {"load": world.save(family, objective, hidden=8)}}


ZERO_CHANGES = CHANGES


def stage_of(world, method: dict, **changes):
    recipe = world.recipe(method, **{**CHANGES(world, "causal"), **changes})
    prepared = prepare(recipe)
    given = inputs(recipe, prepared, Place(), world.folder / "none", opener(recipe, "cpu"))
    (stage,) = stages_of(recipe, find_method(recipe), given)
    return stage, given


def scores(world, method: dict, **changes) -> np.ndarray:
    stage, given = stage_of(world, method, **changes)
    found = find_method(world.recipe(method, **{**CHANGES(world, "causal"), **changes}))._scores(given).all[:, 0]
    assert len(found) == given.batches.whole
    assert stage.batches.choice is not None
    return found


def test_the_highest_differences_are_kept_in_their_order(world):
    stage, given = stage_of(world, METHOD)
    found, kept = scores(world, METHOD), stage.batches.choice.numbers
    assert len(kept) == int(0.3 * given.batches.whole)
    assert (np.diff(kept) > 0).all()
    dropped = np.setdiff1d(np.arange(given.batches.whole), kept)
    assert found[kept].min() >= found[dropped].max()


def test_a_difference_is_log_likelihood_less_log_likelihood(world):
    """s(x) times its tokens is log p(x) - log p_ref(x), each by the models themselves, on sequences one by one."""
    import torch

    from bequest.model import build

    found, (_, given) = scores(world, METHOD), stage_of(world, METHOD)
    paths = (world.teacher["causal"], CHANGES(world, "causal")["teachers__reference"]["load"])
    teacher, reference = (build.load(path, "causal").eval() for path in paths)
    for number in (0, 7, given.batches.whole - 1):
        batch = replace(given.batches, ordered=True).of(np.array([number]))
        with torch.no_grad():
            logs = [
                -torch.nn.functional.cross_entropy(
                    m.head.logits(m(batch)).double(), batch.rows.target_N, reduction="sum"
                )
                for m in (teacher, reference)
            ]
        assert found[number] * len(batch.rows.target_N) == pytest.approx((logs[0] - logs[1]).item(), abs=1e-3)


def test_teacher_and_reference_change_places(world):
    own, teacher = CHANGES(world, "causal")["teachers__reference"]["load"], world.teacher["causal"]
    swapped = scores(world, METHOD, teachers={"teacher": {"load": own}, "reference": {"load": teacher}})
    assert swapped == pytest.approx(-scores(world, METHOD), abs=1e-6)
    same = scores(world, METHOD, teachers={"teacher": {"load": teacher}, "reference": {"load": teacher}})
    assert not same.any()


def test_scores_do_not_depend_on_the_batch(world, monkeypatch, tmp_path):
    few = {"data__train": [{"path": str(world.other), "source": "one"}]}
    found = scores(world, METHOD, **few)
    monkeypatch.setenv("BEQUEST_CACHE", str(tmp_path))
    alone = scores(world, METHOD, train__micro_batch_tokens=32, **few)
    assert alone == pytest.approx(found, abs=1e-5)


def test_a_scoring_that_was_killed_goes_on(world, monkeypatch, tmp_path):
    """A cut block is read again, what was whole is not; the answers are the same."""
    from bequest.job import judge

    monkeypatch.setenv("BEQUEST_CACHE", str(tmp_path))
    monkeypatch.setattr(judge, "BLOCK", 16)
    few = {"data__train": [{"path": str(world.other), "source": "one"}]}
    whole = scores(world, METHOD, **few)
    files = sorted((tmp_path / "scores").glob("*.f32"))
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: 8 * 16 + 3])
        file.with_suffix(".b2").unlink()
    read = []
    original = judge._Reader.__call__
    monkeypatch.setattr(
        judge._Reader, "__call__", lambda self, batch: read.append(len(batch.keys)) or original(self, batch)
    )
    assert (scores(world, METHOD, **few) == whole).all()
    per_model = len(whole) - sum(16 for file in files) // 2
    assert sum(read) == 2 * per_model


def test_damaged_scores_are_not_believed(world, monkeypatch, tmp_path):
    from bequest.types import DataError

    monkeypatch.setenv("BEQUEST_CACHE", str(tmp_path))
    scores(world, METHOD)
    file = next((tmp_path / "scores").glob("*.f32"))
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="are damaged; delete"):
        scores(world, METHOD)


def test_scoring_is_in_the_ledger_and_in_the_plan(world, tmp_path):
    recipe = world.recipe(METHOD, **CHANGES(world, "causal"))
    found = world.run(tmp_path / "run", METHOD, **CHANGES(world, "causal"))
    _, given = stage_of(world, METHOD)
    batches = list(replace(given.batches, ordered=True, size=1).once())
    models = [given.models[name]() for name in ("teacher", "reference")]
    exact = sum(forward_flops(model, batch) for model in models for batch in batches)
    assert found["scoring_flops"] == pytest.approx(exact, rel=1e-6)
    assert found["teacher_flops"] == found["scoring_flops"]
    told = plan(recipe, tmp_path / "planned")
    assert told.teacher_flops == pytest.approx(exact, rel=0.1)  # of one sequence, times their number
    assert losses(tmp_path / "run")


def test_as_many_by_chance(world, tmp_path):
    method = {**METHOD, "choose": "random"}
    (one, _), (other, _) = (stage_of(world, method, seed=seed) for seed in (0, 1))
    assert len(one.batches.choice.numbers) == len(other.batches.choice.numbers)
    assert (one.batches.choice.numbers != other.batches.choice.numbers).any()
    assert world.run(tmp_path / "run", method, **CHANGES(world, "causal"))["teacher_flops"] == 0


def test_a_proxy_is_near_what_it_stands_for(world):
    """Fitted on half of the scores, it ranks the others much as they are; a proxy of all of them is no worse."""
    trained = {"teachers__teacher": {"load": laws.learned(world, "causal")}}
    real = scores(world, METHOD, **trained)
    guessed = scores(world, {**METHOD, "proxy": 0.5}, **trained)
    assert np.corrcoef(real.argsort().argsort(), guessed.argsort().argsort())[0, 1] > 0.5


def test_a_proxy_costs_less_than_the_teacher_on_all(world, tmp_path):
    found = [
        world.run(tmp_path / str(share), {**METHOD, "proxy": share}, **CHANGES(world, "causal"))["scoring_flops"]
        for share in (0.0, 0.2)
    ]
    assert found[1] < found[0]


def test_a_teacher_with_another_tokenizer_judges_per_byte(world, tmp_path):
    """Its scores are over the same bytes: with both models the same, there is no difference."""
    stranger = make_vocabulary("causal", 290)
    path = tmp_path / "stranger"

    make_model("gpt2", stranger, seed=5).model.save_pretrained(path)
    stranger.tokenizer.save_pretrained(path)
    method = {**METHOD, "per": "byte"}
    both = {name: {"load": str(path)} for name in ("teacher", "reference")}
    own = {"tokenizer": {"load": world.teacher["causal"]}}
    assert not scores(world, method, teachers=both, **own).any()
    mixed = {"teacher": {"load": str(path)}, "reference": {"load": world.teacher["causal"]}}
    found = scores(world, method, teachers=mixed, **own)
    assert np.isfinite(found).all()
    assert found.any()
    ended = world.run(tmp_path / "run", method, teachers=mixed, **own)
    assert set(ended["teachers"]) == set()  # losses per token of another vocabulary are no losses of ours
    refused = world.recipe({**method, "per": "token"}, teachers=mixed, **own)
    with pytest.raises(ModelError, match="another vocabulary"):
        prepare(refused)
    assert any("another vocabulary" in sentence for sentence in problems(refused, tmp_path / "none"))


def test_less_than_a_batch(world, tmp_path):
    recipe = world.recipe({**METHOD, "keep": 0.001}, **CHANGES(world, "causal"))
    with pytest.raises(RecipeError, match="less than a batch of 4; raise it"):
        plan(recipe, tmp_path / "run")


def test_a_reference_that_is_larger_is_said(world):
    large = world.save("llama", "causal", hidden=32, heads=4)
    warnings = prepare(world.recipe(METHOD, teachers__reference={"load": large})).warnings
    assert any("more than the teacher" in warning for warning in warnings)


def test_random_and_chosen_text_differ(world, tmp_path):
    for choose in ("difference", "random"):
        world.run(tmp_path / choose, {**METHOD, "choose": choose}, **CHANGES(world, "causal"))
    assert not same_bits(weights(tmp_path / "difference"), weights(tmp_path / "random"))


def test_chosen_text_teaches_more_than_text_by_chance(world, tmp_path):
    """Half of the text is noise. What the teacher knows better than an untrained reference is the other half."""
    rng = random.Random(0)
    noise = write_jsonl(tmp_path / "noise.jsonl", ["".join(rng.choices("abcdefghij ", k=150)) for _ in range(200)])
    texts = [{"path": str(world.train), "source": "one"}, {"path": str(noise), "source": "noise"}]
    teachers = {"teacher": {"load": laws.learned(world, "causal")}, "reference": {"load": world.teacher["causal"]}}
    changes = {"data__train": texts, "teachers": teachers, "train__tokens": 2560}
    found = {
        choose: world.run(tmp_path / choose, {**METHOD, "choose": choose}, **changes)
        for choose in ("difference", "random")
    }
    losses_of = {choose: one["valid"]["one"]["loss"] for choose, one in found.items()}
    assert losses_of["difference"] < losses_of["random"] - 0.05


def test_a_proxy_reads_tokens(world, tmp_path):
    recipe = world.recipe({**METHOD, "per": "byte", "proxy": 0.1}, **CHANGES(world, "causal"))
    with pytest.raises(RecipeError, match="leave it out, or judge per token"):
        plan(recipe, tmp_path / "run")
