"""A life in stages: replay, prompts, what holds a model back, and the matrix of what was learned and forgotten."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import make_model, make_vocabulary, same_bits, sentences, weights, write_jsonl
from laws import stop_and_resume_same_bits, stopped_at

from bequest import sense
from bequest.data.batches import Batches
from bequest.data.mix import FLOOR, Mixed, joined
from bequest.data.objective import Causal, Masked
from bequest.data.pack import Pack
from bequest.data.tokenizer import prompted
from bequest.device import Place
from bequest.eval.forgetting import Matrix
from bequest.job import check
from bequest.job.models import opener
from bequest.job.prepare import find_method, inputs, prepare
from bequest.job.stages import stages_of
from bequest.loss.anchor import Anchored
from bequest.loss.combine import next_token, weighted
from bequest.report import metrics
from bequest.types import Clock, Entry, FolderError, RecipeError

PLAIN = {"name": "plain"}


@pytest.fixture(scope="module")
def third(world):
    return write_jsonl(world.folder / "third.jsonl", sentences(4, 80))


def staged(world, *more, **life):
    texts = [("one", world.train), ("two", world.other), *(("three", path) for path in more)]
    train = [{"path": str(path), "source": source, "stage": source} for source, path in texts]
    valid = [{"path": str(world.valid), "source": s} for s in ("one", "two", "three")]
    return {"data__train": train, "data__valid": valid, "life": life, "eval": {"tokens": 500}}


def batches(world, size=8, **changes) -> Batches:
    return prepare(world.recipe(PLAIN, train__batch_tokens=32 * size, **changes)).batches


def mixed(world, share=0.1, rule="uniform", size=8):
    whole = batches(world, size)
    memories = (whole.only("one").part(0.2), whole.only("one").part(0.1))
    return Mixed(whole.only("two"), memories, share, rule)


# What is replayed


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5, 1 / 3])
@pytest.mark.parametrize("size", [1, 3, 8, 16])
def test_replay_is_exact_in_sequences(world, share, size):
    text = mixed(world, share, size=size)
    counts = [text.replayed(step + 1) - text.replayed(step) for step in range(200)]
    assert set(counts) <= {math.floor(share * size), math.ceil(share * size)}
    for steps in (1, 7, 100, 200):
        assert abs(sum(counts[:steps]) - share * size * steps) < 1
    for step in (0, 3, 11):
        sources = text[step].sources
        assert sources.count("one") == counts[step]
        assert len(sources) == size


def test_new_text_is_read_in_order_and_whole(world):
    text = mixed(world, 0.25)
    fresh = [key for step in range(8) for key in text[step].keys[: 8 - (text.replayed(step + 1) - text.replayed(step))]]
    alone = [key for step in range(6) for key in text.new[step].keys]
    assert fresh == alone  # replay takes the place of new text, and none is left out


def test_memories_are_drawn_from_in_turn_and_without_repetition(world):
    text = mixed(world, 0.25)
    found = [text._from(place, None) for place in range(8 * 20)]
    old = [one for one in found if one[0]]
    assert [which for which, _ in old] == [1, 2] * (len(old) // 2)
    assert [place for which, place in old if which == 1] == list(range(len(old) // 2))


def test_a_memory_is_a_fixed_part_of_the_data(world):
    first, second = batches(world).only("one"), batches(world, seed=5).only("one")
    keys = [{key for batch in one.part(0.2).once() for key in batch.keys} for one in (first, second)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == pytest.approx(0.2 * first.count, abs=2)


def entries(*looks):
    return tuple(Entry("s", 10 * n, {"a": a, "b": b}) for n, (a, b) in enumerate(looks))


def adaptive(rule):
    class Named:
        def __init__(self, name):
            self.sources, self.size, self.seed = (name,), 8, 0

    return Mixed(Named("new"), (Named("a"), Named("b")), 0.5, rule)


def test_progress_draws_where_the_loss_falls():
    text = adaptive("progress")
    assert text.weights(entries((3.0, 3.0)), 0.0) is None  # in turn before the second look
    assert text.weights(entries((3.0, 3.0), (2.7, 2.9)), 0.2) == pytest.approx([0.75, 0.25])
    # Where it has risen: as much as the best in the first half of a stage, next to nothing in the second.
    assert text.weights(entries((3.0, 3.0), (2.7, 3.1)), 0.2) == pytest.approx([0.5, 0.5])
    assert text.weights(entries((3.0, 3.0), (2.7, 3.1)), 0.7) == pytest.approx([1.0, 0.0], abs=1e-6)
    # Per replayed token: b was drawn a quarter of the time and gained as much as a.
    third = text.weights(entries((3.0, 3.0), (2.7, 2.9), (2.6, 2.8)), 0.2)
    assert third == pytest.approx([0.25, 0.75])


def test_forgetting_draws_what_is_worse_than_it_was():
    text = adaptive("forgetting")
    assert text.weights(entries((2.0, 2.0)), 0.0) == [FLOOR, FLOOR]
    found = text.weights(entries((2.0, 2.0), (2.1, 2.3)), 0.0)
    assert found == pytest.approx([math.exp(2.1) - math.exp(2.0), math.exp(2.3) - math.exp(2.0)])
    drawn = [text._from(place, [0.25, 0.75])[0] for place in range(8000)]
    assert drawn.count(0) == 4000
    assert drawn.count(1) / 4000 == pytest.approx(0.25, abs=0.03)


def test_joined_batches_are_the_batches(world):
    whole = batches(world)
    left, right = whole[0], whole[1]
    both = joined([left, right])
    assert both.rows_total == left.rows_total + right.rows_total
    parts = list(both.micro(8))
    for part, own in zip(parts, (left, right), strict=True):
        assert torch.equal(part.rows.index_N, own.rows.index_N)
        assert torch.equal(part.tokens_BT, own.tokens_BT)
        assert part.keys == own.keys


# Prompts


def test_a_prompt_stands_in_a_documents_first_place_and_changes_no_target(world):
    own = {"teachers": {}, "tokenizer": {"load": world.teacher["causal"]}}
    plain, with_prompts = (prepare(world.recipe(PLAIN, **own, data__prompts=on)).batches for on in (False, True))
    vocabulary = prepare(world.recipe(PLAIN, **own, data__prompts=True)).vocabulary
    assert vocabulary.prompts == {"one": vocabulary.size - 2, "two": vocabulary.size - 1}
    for step in range(3):
        one, other = plain[step], with_prompts[step]
        assert torch.equal(one.rows.index_N, other.rows.index_N)
        assert torch.equal(one.rows.target_N, other.rows.target_N)
        changed = (one.tokens_BT != other.tokens_BT).numpy()
        first = np.diff(one.segments_BT.numpy(), prepend=-1, axis=1) > 0
        assert (changed == first).all()
        for number, source in enumerate(other.sources):
            assert set(other.tokens_BT.numpy()[number][first[number]]) == {vocabulary.prompts[source]}


def test_a_prompt_is_never_masked_drawn_or_learned_from():
    vocabulary = prompted(make_vocabulary("masked"), ["one"])
    objective = Masked(vocabulary, 0.5)
    tokens = np.array([vocabulary.prompts["one"], *range(10, 41)])
    for epoch in range(50):
        corrupted, _, positions, targets = objective(tokens, np.zeros(32, np.int64), epoch)
        assert 0 not in positions
        assert vocabulary.prompts["one"] not in targets
        assert (corrupted == vocabulary.prompts["one"]).sum() == 1


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_prompts_logit_does_not_exist_and_its_row_learns_only_where_it_stands(family):
    objective = "masked" if family == "bert" else "causal"
    vocabulary = prompted(make_vocabulary(objective), ["one", "two"])
    model = make_model(family, vocabulary)
    assert model.head.weight_VD.shape[0] == vocabulary.size - 2
    store = type("Store", (), {"tokens": np.arange(5, 70) % 250, "ends": np.array([65]), "source": "one"})()
    made = Causal() if objective == "causal" else Masked(vocabulary, 0.3)
    text = Batches((Pack(store, 32, made.overlap, vocabulary.prompts["one"]),), made, 2, 0)
    weighted((1.0, next_token))(model, text[0], Clock(0, 1)).total.backward()
    gradient = model.model.get_input_embeddings().weight.grad
    assert gradient[vocabulary.prompts["one"]].abs().max() > 0
    assert gradient[vocabulary.prompts["two"]].abs().max() == 0


def test_prompts_can_be_left_out_of_a_share_of_sequences():
    store = type(
        "Store", (), {"tokens": np.arange(32 * 400 + 1) % 250, "ends": np.array([32 * 400 + 1]), "source": "s"}
    )()
    pack = Pack(store, 32, 1, 299, 0.25)
    without = [number for number in range(400) if pack.window(number)[0][0] != 299]
    assert len(without) == pytest.approx(100, abs=30)
    assert without == [number for number in range(400) if pack.window(number)[0][0] != 299]


def test_a_model_with_prompts_is_an_ordinary_folder(world, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bequest.job.look import evaluate

    own = {"teachers": {}, "tokenizer": {"load": world.teacher["causal"]}}
    found = world.run(tmp_path / "run", PLAIN, **staged(world), **own, data__prompts=True, eval__tokens=0)
    folder = found["checkpoint"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.convert_tokens_to_ids("<|source:two|>")
    said = model.generate(torch.tensor([[prompt]]), max_new_tokens=20, do_sample=True)
    assert not set(said[0, 1:].tolist()) & set(model.config.domain_prompts.values())
    assert set(found["prompts"]) == {"right", "wrong", "none"}
    right = found["prompts"]["right"]["two"]["loss"]
    assert right == pytest.approx(found["valid"]["two"]["loss"], rel=1e-6)
    assert found["prompts"]["wrong"]["two"]["loss"] != right != found["prompts"]["none"]["two"]["loss"]
    same = evaluate(folder, [{"path": str(world.valid), "source": "two"}], 32)  # the source names the prompt
    assert same["two"]["loss"] == pytest.approx(right, rel=1e-5)


# The life itself


def test_without_help_it_is_training_that_goes_on(world, tmp_path):
    changes = staged(world, optimiser="fresh")
    found = world.run(tmp_path / "life", PLAIN, **changes, train__schedule__warmup=0.25)
    half = {"train__tokens": 768, "train__schedule__warmup": 0.25, "teachers": {}}
    loaded = {"tokenizer": {"load": world.teacher["causal"]}}
    for number, which in enumerate(("one", "two")):
        own = staged(world)["data__train"][number] | {"stage": ""}
        student = {} if not number else {"student": {"load": str(tmp_path / "one" / "checkpoint")}}
        world.run(tmp_path / which, PLAIN, **half, **loaded, **student, data__train=[own])
    assert same_bits(weights(tmp_path / "life"), weights(tmp_path / "two"))
    assert found["life"]["home"] == {"one": 1, "two": 2}


@pytest.mark.parametrize(
    "life",
    [
        {"replay": 0.25, "sampling": "progress", "look_every": 0.34},
        {"replay": 0.25, "sampling": "forgetting", "look_every": 0.34},
        {"kl": 0.5, "temperature": 2.0, "replay": 0.1},
        {"ewc": 10.0, "ewc_sequences": 4},
    ],
)
def test_stop_and_resume_in_any_stage(world, tmp_path, third, life):
    changes = staged(world, third, memory=0.2, **life)
    stop_and_resume_same_bits(world, tmp_path, PLAIN, "causal", (3, 4, 9), **changes)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_any_method_lives_in_stages(world, tmp_path, objective):
    method = {"name": "ki", "until": 0.5}
    found = world.run(tmp_path / "run", method, objective, **staged(world, replay=0.25, memory=0.2))
    rates = [line["rate"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert rates[0] == rates[6] == 1.0  # each part has the rate's whole course
    assert len(found["life"]["loss"]) == 3


def test_a_stored_teacher_knows_what_will_be_replayed(world, tmp_path):
    from bequest.job.teach import teach

    changes = staged(world, replay=0.25, memory=0.2)
    changes |= {"teachers__teacher": {"load": world.teacher["causal"], "store": str(tmp_path / "store")}}
    method = {"name": "ki", "until": 0.7}
    teach(world.recipe(method, **changes))
    found = world.run(tmp_path / "run", method, **changes)
    assert found["teacher_flops"] == 0
    assert found["harvest_flops"] > 0


@pytest.mark.parametrize(
    ("method", "life", "wanted"),
    [
        (PLAIN, {}, ["carry", "carry"]),
        (PLAIN, {"optimiser": "fresh"}, ["carry", "fresh"]),
        ({"name": "elle", "recover": 0.5}, {}, ["fresh", "fresh", "fresh"]),
    ],
)
def test_who_says_whether_moments_are_carried(world, method, life, wanted):
    recipe = world.recipe(method, **staged(world, **life))
    load = opener(recipe, "cpu")
    given = inputs(recipe, prepare(recipe), Place(), world.folder, load)
    assert [stage.optimiser for stage in stages_of(recipe, find_method(recipe), given)] == wanted


def test_weights_are_handed_down_once(world, tmp_path):
    changes = staged(world) | {"student__layers": 4, "train__optimiser__lr": 1e-12}
    world.run(tmp_path / "run", {"name": "stack", "depth": "identity"}, **changes)
    ends = [line["losses"]["one"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "ended" in line]
    assert ends[1] == pytest.approx(ends[2], rel=1e-5)  # the teacher's function, and it stays
    changes["train__optimiser__lr"] = 1e-2
    world.run(tmp_path / "fast", {"name": "stack", "depth": "identity"}, **changes)
    lines = [line for line in metrics.read(tmp_path / "fast" / "metrics.jsonl") if "loss" in line]
    assert lines[6]["loss"] < lines[0]["loss"] - 0.5  # the second part begins where the first has ended


def test_a_comparison_is_the_stages_own(world, tmp_path):
    method = {"name": "ki", "shape": "constant", "compare_every": 0.5}
    changes = {"teachers__teacher": world.weak_teacher()} | staged(world)
    world.run(tmp_path / "run", method, **changes)
    trainer = json.loads(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].joinpath("trainer.json").read_text())
    looks = [(e["stage"], e["step"], set(e["values"])) for e in trainer["journal"]]
    assert looks == [
        (f"{part}.inherit", step, {"student", "teacher"} if not step else {"student"})
        for part in ("one", "two")
        for step in (0, 3)
    ]


def test_each_part_has_its_share_and_the_rates_whole_course(world, tmp_path, third):
    changes = staged(world, third, shares=[2, 1, 1])
    world.run(tmp_path / "stage", PLAIN, **changes, train__schedule={"name": "linear", "warmup": 0.0})
    lines = [line for line in metrics.read(tmp_path / "stage" / "metrics.jsonl") if "loss" in line]
    assert [line["stage"] for line in lines] == ["one.train"] * 6 + ["two.train"] * 3 + ["three.train"] * 3
    assert lines[0]["lr"] == lines[6]["lr"] == lines[9]["lr"]
    changes["life"]["rate"] = "run"
    world.run(tmp_path / "run", PLAIN, **changes, train__schedule={"name": "linear", "warmup": 0.0})
    rates = [line["lr"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert rates == sorted(rates, reverse=True)


def test_the_matrix_holds_every_domain_before_training_and_after_every_part(world, tmp_path, third):
    found = world.run(tmp_path / "run", PLAIN, **staged(world, third))["life"]
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "ended" in line]
    assert [line["ended"] for line in lines] == ["", "one", "two", "three"]
    assert found["loss"] == [line["losses"] for line in lines]
    assert all(set(row) == {"one", "two", "three"} for row in found["loss"])
    seen = [found["loss"][3][i] for i in ("one", "two", "three")]
    assert found["AP"][2] == pytest.approx(math.exp(sum(seen) / 3))


def test_numbers_of_a_matrix_by_hand():
    loss = [{"a": 5.0, "b": 5.0}, {"a": 2.0, "b": 4.0}, {"a": 2.5, "b": 3.0}]
    numbers = Matrix(("a", "b"), {"a": 1, "b": 2}, loss).numbers()
    assert numbers["AP"] == pytest.approx([math.exp(2.0), math.exp(2.75)])
    assert numbers["AP+"] == [None, pytest.approx(math.exp(2.5) - math.exp(2.0))]
    assert numbers["forgetting"] == [None, pytest.approx(0.5)]
    assert numbers["backward transfer"] == [None, pytest.approx(-0.5)]
    assert numbers["forward transfer"] == [None, pytest.approx(1.0)]


def test_numbers_that_nothing_changes():
    same = {"a": 3.0, "b": 3.0, "never": 9.0}
    numbers = Matrix(("a", "b"), {"a": 1, "b": 2}, [same] * 3).numbers()
    assert numbers["AP"] == pytest.approx([math.exp(3.0)] * 2)
    assert numbers["AP+"][1] == numbers["forgetting"][1] == numbers["forward transfer"][1] == 0.0


def test_the_best_that_there_was_counts_for_forgetting():
    loss = [{"a": 5.0, "b": 5.0, "c": 5.0}, {"a": 3.0, "b": 4.0, "c": 5.0}, {"a": 2.0, "b": 3.0, "c": 5.0}]
    loss.append({"a": 2.5, "b": 3.0, "c": 3.0})
    numbers = Matrix(("a", "b", "c"), {"a": 1, "b": 2, "c": 3}, loss).numbers()
    assert numbers["forgetting"][2] == pytest.approx((0.5 + 0.0) / 2)
    assert numbers["backward transfer"][2] == pytest.approx((0.5 + 0.0) / 2)


# What holds a model back


def moved(out, stage):
    from safetensors.torch import load_file

    before, after = load_file(out / "stages" / stage / "model.safetensors"), weights(out)
    return sum((before[name] - after[name]).square().sum().item() for name in after)


def test_an_anchor_holds(world, tmp_path):
    found = {}
    for weight in (0.0, 1e3, 1e6):
        out = tmp_path / f"{weight:g}"
        world.run(out, PLAIN, **staged(world, ewc=weight, ewc_sequences=8, memory=0.2))
        found[weight] = moved(out, "one.train")
    assert found[1e6] < found[1e3] < found[0.0]


def test_an_anchors_penalty_is_its_formula_whatever_the_micro_batches(world):
    model = make_model("llama", world.vocabulary["causal"])
    whole = batches(world)
    memory = whole.only("one").part(0.1)
    loss = Anchored(weighted((1.0, next_token)), 10.0, (memory,), 4)
    loss(model, whole[0], Clock(0, 2))
    assert loss.state_dict().keys() == {f"{r}/{n}" for r in ("anchor", "fisher") for n, _ in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    wanted = 0.5 * 10.0 * sum(f.sum().item() * 0.01 for f in loss.fisher.values())
    plain = weighted((1.0, next_token))(model, whole[0], Clock(1, 2)).total.item()
    for size in (8, 3):
        total = sum(loss(model, micro, Clock(1, 2)).total.item() for micro in whole[0].micro(size))
        assert total - plain == pytest.approx(wanted, rel=1e-3)


def test_what_the_model_before_says_holds(world, tmp_path):
    found = {}
    for weight in (0.0, 5.0):
        out = tmp_path / f"{weight:g}"
        life = world.run(out, PLAIN, **staged(world, kl=weight), train__tokens=5120)["life"]
        found[weight] = moved(out, "one.train")
        lines = [line for line in metrics.read(out / "metrics.jsonl") if line.get("stage") == "two.train"]
        assert ("previous" in lines[0]["parts"]) == bool(weight)
        if weight:
            assert lines[0]["parts"]["previous"] == pytest.approx(0.0, abs=1e-6)  # it is still the same model
        assert life["parts"] == ["one", "two"]
    assert found[5.0] < found[0.0]


def test_models_between_two_stages_are_measured(world, tmp_path):
    found = world.run(tmp_path / "run", PLAIN, **staged(world, merge=[0.001, 0.5, 0.999]))["life"]
    near = {one["alpha"]: one["loss"]["one"] for one in found["merged"]}
    assert near[0.001] == pytest.approx(found["loss"][1]["one"], rel=1e-3)
    assert near[0.999] == pytest.approx(found["loss"][2]["one"], rel=1e-3)
    assert {one["part"] for one in found["merged"]} == {"two"}


def test_the_report_shows_the_matrix(world, tmp_path):
    from bequest.report import page, record

    out = tmp_path / "run"
    own = {"teachers": {}, "tokenizer": {"load": world.teacher["causal"]}, "data__prompts": True}
    found = world.run(out, PLAIN, **staged(world, merge=[0.5]), **own)
    text = page.page([record.read(out)])
    assert text.count("<td class=home") == 2
    assert all(f"{loss:.3f}" in text for row in found["life"]["loss"] for loss in row.values())
    assert "two, 0.5" in text
    assert ">wrong<" in text
    curve = json.loads(re.search(r"const RUNS = (.*?);</script>", text, re.S)[1])[0]
    assert curve["valid"]["tokens"] == [0, 768, 1536]
    assert curve["sources"]["one"]["loss"] == pytest.approx([row["one"] for row in found["life"]["loss"]])
    damaged = (out / "metrics.jsonl").read_text().replace('"losses": {"one"', '"losses": {"one": null, "x"', 1)
    (out / "metrics.jsonl").write_text(damaged)
    with pytest.raises(FolderError, match="line 1 is damaged"):
        record.read(out)


def test_a_loaded_model_tells_what_it_forgets(world, tmp_path):
    first = world.run(tmp_path / "first", PLAIN, train__tokens=4096)
    own = {"teachers": {}, "student": {"load": first["checkpoint"]}}
    valid = [{"path": str(world.valid), "source": "old"}, {"path": str(world.other), "source": "new"}]
    texts = {"data__train": [{"path": str(world.other), "source": "new"}], "data__valid": valid}
    found = world.run(tmp_path / "run", PLAIN, **own, **texts)
    assert set(found["change"]) == {"old", "new"}
    assert found["change"]["old"] == pytest.approx(
        found["valid"]["old"]["loss"] - first["valid"]["one"]["loss"], rel=1e-3
    )
    assert "change" not in first


# What cannot be


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"life": {"replay": 0.1}}, "life is about runs of several stages"),
        (
            {"data__train": [{"path": "a", "source": "a", "stage": "x"}, {"path": "b", "source": "b"}]},
            "with and without",
        ),
        (
            {"data__train": [{"path": "a", "source": "a", "stage": s} for s in "xy"]},
            "the source 'a' in the stages 'x' and 'y'",
        ),
        ({"data__train": [{"path": "a", "source": "a", "stage": "x/y"}]}, "cannot be a folder's name"),
        ({"data__train": [{"path": "a", "source": "a", "stage": "a.b"}]}, "cannot be a folder's name"),
        ({"data__valid": [{"path": "a", "source": "one", "stage": "x"}]}, "only data.train is learned in stages"),
        (
            {"data__train": [{"path": "a", "source": s, "stage": s} for s in ("one", "other")]},
            "data.valid has no text of the source 'other'",
        ),
        ({"data__prompt_drop": 0.5}, "no meaning without data.prompts"),
    ],
)
def test_stages_that_make_no_sense(world, changes, sentence):
    from bequest.config import decode
    from bequest.recipe import Recipe

    problems = sense.problems(decode(Recipe, world.raw(PLAIN, **changes), "a test"))
    assert any(sentence in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("life", "sentence"),
    [
        ({"shares": [1, 2, 3]}, "3 numbers for 2 stages"),
        ({"sampling": "progress"}, "give life.replay"),
    ],
)
def test_lives_that_make_no_sense(world, life, sentence):
    from bequest.config import decode
    from bequest.recipe import Recipe

    problems = sense.problems(decode(Recipe, world.raw(PLAIN, **staged(world, **life)), "a test"))
    assert any(sentence in problem for problem in problems), problems


def test_too_few_steps_for_so_many_stages(world, tmp_path):
    with pytest.raises(RecipeError, match="1 steps leave none for the stage"):
        world.run(tmp_path / "run", PLAIN, **staged(world), train__tokens=128)
    with pytest.raises(RecipeError, match="12 steps leave none for the stage 'two'"):
        world.run(tmp_path / "run", PLAIN, **staged(world, shares=[1, 1e-9]))


def test_what_stages_are_measured_on_does_not_change(world, tmp_path):
    stopped_at(world, tmp_path / "run", 8, PLAIN, "causal", **staged(world))
    with pytest.raises(FolderError, match=r"on eval\.tokens 500; leave it at that"):
        world.run(tmp_path / "run", PLAIN, **staged(world) | {"eval": {"tokens": 300}})


@pytest.mark.parametrize("life", [{"ewc": 10.0, "ewc_sequences": 4}, {"kl": 0.5, "replay": 0.25}])
def test_check_knows_what_holding_back_costs(world, tmp_path, life):
    changes = staged(world, memory=0.2, **life)
    plan = check.plan(world.recipe(PLAIN, **changes), tmp_path / "run")
    found = world.run(tmp_path / "run", PLAIN, **changes)
    assert plan.teacher_flops == pytest.approx(found["teacher_flops"], rel=0.02)
    assert plan.student_flops == pytest.approx(found["student_flops"], rel=0.02)
    assert plan.memory > 0


def test_nothing_lies_between_a_model_and_a_larger_one(world, tmp_path):
    method = {"name": "elle", "sizes": [{"layers": 3}]}
    with pytest.raises(RecipeError, match=r"life\.merge"):
        world.run(tmp_path / "run", method, **staged(world, merge=[0.5]))


def test_checking_elastic_weights_does_not_take_all_their_sequences(world, tmp_path, monkeypatch):
    from bequest.loss.anchor import Anchored

    seen = []
    original = Anchored._sequences
    monkeypatch.setattr(Anchored, "_sequences", lambda self: seen.append(self.sequences) or original(self))
    changes = {
        "data__train": [
            {"path": str(world.train), "source": "one", "stage": "one"},
            {"path": str(world.other), "source": "two", "stage": "two"},
        ],
        "data__valid": [{"path": str(world.valid), "source": name} for name in ("one", "two")],
        "life": {"ewc": 3.0},
    }
    check.plan(world.recipe(PLAIN, **changes), tmp_path / "run")
    assert seen
    assert set(seen) == {1}


def test_a_mistake_in_a_list_silences_what_follows_from_it(tmp_path, world):
    from bequest import config, sense

    raw = world.raw({"name": "plain"}, life={"shares": [1, 0, 1]})
    config.write(raw, tmp_path / "life.yaml")
    _, mistakes = sense.examine(tmp_path / "life.yaml")
    assert not [sentence for sentence in mistakes if "has 2 numbers" in sentence]
    assert any("life.shares.1" in sentence for sentence in mistakes)
