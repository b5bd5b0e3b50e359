"""Generations: each learns from the one before."""

import pytest
import torch
from conftest import make_model, same_bits

from bequest.job import check
from bequest.model import build
from bequest.model.grow.growth import Growth, fresh
from bequest.report import metrics
from bequest.types import ModelError

ZERO = {"name": "generations", "sizes": []}
METHOD = {"name": "generations", "sizes": [{"feed_forward": 96}, {"layers": 3}], "until": 0.5}
NEEDS_TEACHER = False


def test_every_generation_is_larger_and_taught(world, tmp_path):
    found = world.run(tmp_path / "run", METHOD)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["stage"] for line in lines] == ["g1"] * 4 + ["g2"] * 4 + ["g3"] * 4
    assert [line["rate"] for line in lines] == pytest.approx([0.0] * 4 + [1.0, 0.5, 0.0, 0.0] * 2)
    assert lines[4]["lr"] == lines[0]["lr"] == lines[8]["lr"]  # each has the whole course
    sizes = [build.config_of(str(tmp_path / "run" / "stages" / g)) for g in ("g1", "g2")]
    sizes.append(build.config_of(found["checkpoint"]))
    assert [config.intermediate_size for config in sizes] == [64, 96, 96]
    assert [config.num_hidden_layers for config in sizes] == [2, 2, 3]
    assert found["teacher_flops"] > 0


def test_check_walks_the_generations(world, tmp_path):
    plan = check.plan(world.recipe(METHOD), tmp_path / "run")
    found = world.run(tmp_path / "run", METHOD)
    assert plan.student_flops == pytest.approx(found["student_flops"])
    assert plan.parameters["student"] == found["student_parameters"]


def test_grown_weights_go_on_where_the_generation_before_ended(world, tmp_path):
    method = {"name": "generations", "sizes": [{"layers": 4}], "weights": "grown", "start": 0.0}
    still = {"train__tokens": 256, "train__optimiser__lr": 1e-12, "train__optimiser__weight_decay": 0.0}
    world.run(tmp_path / "run", method, **still)
    first, second = (line["loss"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line)
    assert first == pytest.approx(second, rel=1e-5)  # the same batch, the same function
    world.run(tmp_path / "fresh", method | {"weights": "fresh"}, **still)
    assert metrics.read(tmp_path / "fresh" / "metrics.jsonl")[1]["loss"] != pytest.approx(second, rel=1e-4)


def test_fresh_weights_are_as_spread_as_a_students(vocabulary):
    model = make_model("gpt2", vocabulary)
    before = torch.get_rng_state()
    made = [fresh(model, Growth(hidden=32, layers=3, feed_forward=128, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    same = make_model("gpt2", vocabulary, hidden=32, layers=3, heads=4)
    for (name, p), q in zip(made[0].model.named_parameters(), same.model.parameters(), strict=True):
        assert p.shape == q.shape
        assert p.std().item() == pytest.approx(q.std().item(), rel=0.25, abs=1e-6), name
    assert same_bits(made[0].state_dict(), made[1].state_dict())
    assert not same_bits(made[0].state_dict(), made[2].state_dict())


def test_generations_do_not_shrink(world, tmp_path):
    with pytest.raises(ModelError, match="they do not shrink: layers 1 is less than 2"):
        world.run(tmp_path / "run", {"name": "generations", "sizes": [{"layers": 1}]})


@pytest.mark.parametrize("weights", ["fresh", "grown"])
def test_the_line_lives_on_in_later_parts(world, tmp_path, weights):
    """Its generations are of the first part's text; then the last one learns on, as it is."""
    parts = [("one", world.train), ("two", world.other)]
    changes = {
        "data__train": [{"path": str(path), "source": name, "stage": name} for name, path in parts],
        "data__valid": [{"path": str(world.valid), "source": name} for name, _ in parts],
    }
    method = {"name": "generations", "sizes": [{"layers": 3}, {"layers": 4}], "weights": weights}
    found = world.run(tmp_path / "run", method, **changes)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == ["one.g1", "one.g2", "one.g3", "two.g1"]
    assert build.config_of(found["checkpoint"]).num_hidden_layers == 4
