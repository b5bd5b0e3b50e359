"""ELLE: expand, recover, train."""

from dataclasses import dataclass

import pytest
from conftest import same_bits, weights

from bequest.config import decode
from bequest.job import check
from bequest.methods.elle import ELLE
from bequest.model import build
from bequest.report import metrics
from bequest.types import RecipeError

ZERO = {"name": "elle"}
METHOD = {"name": "elle", "recover": 0.34, "sizes": [{"hidden": 32, "heads": 4, "width": "tile"}]}
NEEDS_TEACHER = False


ONE_STEP = ZERO  # in which there are no stages


def CHANGES(world, objective):
    texts = [("one", world.train), ("two", world.other)]
    train = [{"path": str(path), "source": source, "stage": source} for source, path in texts]
    valid = [{"path": str(world.valid), "source": source} for source, _ in texts]
    return {"data__train": train, "data__valid": valid, "life": {"replay": 0.25, "memory": 0.2}}


def test_it_expands_recovers_on_memory_and_trains(world, tmp_path):
    found = world.run(tmp_path / "run", METHOD, **CHANGES(world, "causal"))
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["stage"] for line in lines] == ["one.train"] * 6 + ["two.recover"] * 2 + ["two.train"] * 4
    sizes = [build.config_of(str(tmp_path / "run" / "stages" / s)).hidden_size for s in ("one.train", "two.recover")]
    assert [*sizes, build.config_of(found["checkpoint"]).hidden_size] == [16, 32, 32]
    assert found["life"]["parts"] == ["one", "two"]


def test_recovery_has_the_rate_of_the_stage_cut_off(world, tmp_path):
    schedule = {"name": "linear", "warmup": 0.5}
    changes = CHANGES(world, "causal") | {"train__schedule": schedule, "life": {}}
    world.run(tmp_path / "run", METHOD, **changes)
    rates = [line["lr"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert rates[6:8] == rates[0:2]  # the part's own warm-up, as if it went on
    assert rates[8] < rates[7]  # and training has its own


def test_recovery_is_on_the_last_sources_memory_and_a_share_of_those_before(world):
    from types import SimpleNamespace

    memories = tuple(_Named(name, 8) for name in ("one", "two", "three"))
    inputs = SimpleNamespace(memories=memories, batches="new", steps=20, part=3, parts=4, seed=0)
    method = decode(ELLE, {"recover": 0.5, "earlier": 0.25}, "a test")
    recover, train = method.plan(inputs)
    assert (recover.steps, train.steps, train.batches) == (10, 10, "new")
    drawn = [recover.batches._from(place, None)[0] for place in range(4 * 8)]
    assert [drawn.count(n) for n in (0, 1, 2)] == [24, 4, 4]
    assert recover.batches.new.name == "three"


@dataclass
class _Named:
    name: str
    size: int


def test_with_one_part_it_is_plain(world, tmp_path):
    world.run(tmp_path / "elle", {"name": "elle", "recover": 0.5})
    world.run(tmp_path / "plain", {"name": "plain"})
    assert same_bits(weights(tmp_path / "elle"), weights(tmp_path / "plain"))


def test_sizes_without_a_stage_to_grow_in(world, tmp_path):
    with pytest.raises(RecipeError, match="1 entries for 0 later stages"):
        world.run(tmp_path / "run", {"name": "elle", "sizes": [{"layers": 4}]})


def test_check_walks_every_part(world, tmp_path):
    plan = check.plan(world.recipe(METHOD, **CHANGES(world, "causal")), tmp_path / "run")
    found = world.run(tmp_path / "run", METHOD, **CHANGES(world, "causal"))
    assert [stage.name for stage in plan.stages] == ["one.train", "two.recover", "two.train"]
    assert plan.student_flops == pytest.approx(found["student_flops"])


def test_calibration_walks_every_part(world, tmp_path):
    from bequest.job.calibrate import calibrate

    assert calibrate(world.recipe(METHOD, **CHANGES(world, "causal")), tmp_path / "run", 0.5).training > 0


def test_all_of_a_part_may_be_recovery(world, tmp_path):
    method, changes = METHOD | {"recover": 1.0}, CHANGES(world, "causal")
    told = check.plan(world.recipe(method, **changes), tmp_path / "planned")
    assert [stage.name for stage in told.stages] == ["one.train", "two.recover"]
    world.run(tmp_path / "run", method, **changes)
