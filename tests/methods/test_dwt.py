"""Distillation from weak teachers: a sum, not a mix."""

import pytest
import torch
from conftest import same_bits, weights
from safetensors.torch import load_file

from bequest.report import metrics
from bequest.types import RecipeError

ZERO = {"name": "dwt", "soft": 0.0, "end": 0.0}
METHOD = {"name": "dwt"}
NEEDS_TEACHER = True


def test_four_to_one(world, tmp_path):
    world.run(tmp_path / "run", METHOD)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [lines[t]["rate"] for t in (0, 6)] == pytest.approx([4.0, 2.5])
    for line in lines:
        assert line["loss"] == pytest.approx(
            line["parts"]["next_token"] + line["rate"] * line["parts"]["distil"], rel=1e-5
        )


def test_half_and_half_equals_ki(world, tmp_path):
    """hard 1 - a, soft a is KI's mix at temperature 1."""
    world.run(tmp_path / "dwt", {"name": "dwt", "hard": 0.5, "soft": 0.5, "end": 0.5})
    world.run(tmp_path / "ki", {"name": "ki", "shape": "constant", "start": 0.5})
    ours, theirs = weights(tmp_path / "dwt"), weights(tmp_path / "ki")
    assert all(abs(ours[k] - theirs[k]).max() < 1e-5 for k in ours)
    assert not same_bits(ours, {})


def test_nothing_to_learn_from_is_said(world, tmp_path):
    method = {"name": "dwt", "hard": 0.0, "soft": 1.0, "end": 0.0, "until": 0.5}
    with pytest.raises(RecipeError, match="no part of the loss has a weight"):
        world.run(tmp_path / "run", method)


def test_the_teachers_weights_may_be_where_the_student_begins(world, tmp_path):
    """The paper's remapping: blocks 0, 1 of the teacher become 0, 1, 1, 1."""
    still = {"train__tokens": 128, "train__optimiser__lr": 1e-12, "train__optimiser__weight_decay": 0.0}
    method = {"name": "dwt", "remap": "repeat"}
    world.run(tmp_path / "run", method, "masked", student__family="bert", student__layers=4, **still)
    ours, theirs = weights(tmp_path / "run"), load_file(f"{world.teacher['masked']}/model.safetensors")
    for n, source in enumerate((0, 1, 1, 1)):
        name = "bert.encoder.layer.{}.intermediate.dense.weight"
        assert torch.allclose(ours[name.format(n)], theirs[name.format(source)], atol=1e-6)


def test_nothing_to_grow_begins_as_the_teacher(world, tmp_path):
    """With equal sizes every way to remap is the identity: the first loss is the teacher's."""
    method = {"name": "dwt", "soft": 0.0, "end": 0.0, "remap": "stack"}
    found = {}
    for name, changes in (("remapped", {}), ("loaded", {"student": {"load": world.teacher["causal"]}})):
        world.run(tmp_path / name, method if name == "remapped" else ZERO, **changes)
        found[name] = next(x["loss"] for x in metrics.read(tmp_path / name / "metrics.jsonl") if "loss" in x)
    assert found["remapped"] == found["loaded"]
