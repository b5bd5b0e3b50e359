"""Stacking: the student begins as its teacher, deeper."""

import laws
import pytest
import torch
from conftest import same_bits, weights
from safetensors.torch import load_file

from bequest.job import check, look
from bequest.job.teach import teach
from bequest.report import metrics
from bequest.types import ModelError, RecipeError

ZERO = {"name": "stack"}
METHOD = {"name": "stack", "start": 0.5, "until": 0.5}
NEEDS_TEACHER = True


def CHANGES(world, objective):
    """A student of the teacher's architecture, twice as deep."""
    return {"student__layers": 4, "student__family": {"causal": "llama", "masked": "bert"}[objective]}


def ZERO_CHANGES(world, objective):
    """Growing by nothing is the identity: what is left is to go on from the teacher."""
    return {"student": {"load": world.teacher[objective]}}


def test_the_student_begins_as_its_teacher_twice_over(world, tmp_path):
    changes = {"train__tokens": 128, "train__optimiser__lr": 1e-12, "train__optimiser__weight_decay": 0.0}
    world.run(tmp_path / "run", {"name": "stack"}, **changes, **CHANGES(world, "causal"))
    ours, theirs = weights(tmp_path / "run"), load_file(f"{world.teacher['causal']}/model.safetensors")
    for n in range(4):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.allclose(ours[name.format(n)], theirs[name.format(n % 2)], atol=1e-6)


def test_it_may_go_on_teaching(world, tmp_path):
    changes = CHANGES(world, "causal")
    found = world.run(tmp_path / "taught", {"name": "stack", "start": 1.0, "until": 0.5}, **changes)
    alone = world.run(tmp_path / "alone", {"name": "stack"}, **changes)
    assert found["teacher_flops"] > 0 == alone["teacher_flops"]
    assert metrics.read(tmp_path / "taught" / "metrics.jsonl")[0]["rate"] == 1.0
    assert not same_bits(weights(tmp_path / "taught"), weights(tmp_path / "alone"))


def test_check_walks_the_plan_without_weights(world, tmp_path):
    found = check.plan(world.recipe({"name": "stack"}, **CHANGES(world, "causal")), tmp_path / "run")
    done = world.run(tmp_path / "run", {"name": "stack"}, **CHANGES(world, "causal"))
    assert found.student_flops == pytest.approx(done["student_flops"])
    assert found.parameters["student"] == done["student_parameters"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student__family": "qwen3"}, "the predecessor's architecture is llama, the student's qwen3"),
        ({"student__tied": False}, "tying of the output matrix is True, the student's False"),
        ({"student__layers": 1}, "they do not shrink: layers 1 is less than 2"),
        ({"student__vocab": 512}, "rows in its vocabulary is 300, the student's 512"),
    ],
)
def test_what_cannot_be_handed_down_is_a_sentence(world, tmp_path, changes, words):
    with pytest.raises(ModelError, match=words):
        world.run(tmp_path / "run", {"name": "stack"}, **changes)


def test_a_store_has_no_weights(world, tmp_path):
    store = {"load": world.teacher["causal"], "store": str(tmp_path / "store")}
    teach(world.recipe({"name": "ki"}, teachers__teacher=store))
    with pytest.raises(RecipeError, match="one model as teacher"):
        world.run(tmp_path / "run", {"name": "stack", "start": 0.5}, teachers__teacher={"store": store["store"]})


WIDER = {"student__family": "bert", "student__hidden": 24, "student__heads": 3}
FADING = {"name": "stack", "width": "fade", "fade": 0.5}


def test_new_channels_fade_in(world, tmp_path):
    """The first loss is the teacher's; when all have come in the checkpoint is what transformers loads."""
    world.run(tmp_path / "run", FADING, "masked", **WIDER, eval__tokens=0)
    world.run(tmp_path / "teacher", {"name": "plain"}, "masked", student={"load": world.teacher["masked"]})
    lines = lambda name: [x for x in metrics.read(tmp_path / name / "metrics.jsonl") if "ended" not in x]
    ours, theirs = lines("run"), lines("teacher")
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert ours[1]["loss"] != pytest.approx(theirs[1]["loss"], rel=1e-5)
    found = look.evaluate(str(tmp_path / "run" / "checkpoint"), [look.text_entry(f"one={world.valid}")], 32)
    assert found["one"]["loss"] == pytest.approx(ours[-1]["valid"]["one"]["loss"], rel=1e-5)


def test_fading_goes_on_where_it_was(world, tmp_path):
    laws.stop_and_resume_same_bits(world, tmp_path, FADING, "masked", (3, 8), **WIDER)
