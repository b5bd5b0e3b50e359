"""The spine with more than one stage: entering, carrying or restarting the optimiser, losses with state, earlier models as teachers."""

from collections.abc import Iterator

import laws
import pytest
import torch
from conftest import losses, same_bits, weights
from torch import nn

from bequest import methods
from bequest.loss.combine import distil, next_token, weighted
from bequest.optim import Policy
from bequest.recipe import ScheduleSettings
from bequest.report import metrics
from bequest.teach.live import Live
from bequest.train import run as spine
from bequest.train.plan import Inputs, Method, Stage
from bequest.types import Loss, TrainingError


class Learned(nn.Module):
    """A model loss with a parameter and a running number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.inner = weighted((1.0, next_token))

    def forward(self, model, batch, clock) -> Loss:
        loss = self.inner(model, batch, clock)
        self.seen += 1
        total = loss.total * torch.exp(-self.log_scale) + 0.1 * self.log_scale / 2
        return Loss(total, {**loss.parts, "scale": self.log_scale.detach().exp(), "seen": self.seen.clone()})


def halve(model, moments):
    """A stand-in for growth: it changes weights and moments."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    return model, {k: v * 0.5 if "exp_avg" in k else v for k, v in moments.items()}


class Stages(Method):
    """Three stages: alone with a learned loss, entered with a change, taught by the first stage's end."""

    optimiser: str = "carry"

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        first = inputs.steps // 3
        yield Stage("alone", inputs.batches, Learned(), first)
        rest = inputs.batches.skip(first)
        yield Stage("changed", rest, weighted((1.0, next_token)), first, enter=halve, optimiser=self.optimiser)
        taught = weighted((0.5, distil(inputs.after("alone"))), (0.5, next_token))
        own = Policy(ScheduleSettings(name="linear", warmup=0.0), 128, 512)
        yield Stage("taught", rest.skip(first), taught, inputs.steps - 2 * first, rate=own)


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.setattr(methods, "find", lambda name: Stages)
    return {"name": "stages"}


@pytest.mark.parametrize("stops", [(2,), (4,), (5, 8), (1, 7, 11)])
def test_stop_anywhere_in_any_stage(world, tmp_path, stages, stops):
    laws.stop_and_resume_same_bits(world, tmp_path, stages, "causal", stops)


def test_stages_go_on_where_the_one_before_stopped(world, tmp_path, stages):
    world.run(tmp_path / "run", stages)
    lines = [x for x in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in x]
    assert [x["stage"] for x in lines] == ["alone"] * 4 + ["changed"] * 4 + ["taught"] * 4
    assert [x["step"] for x in lines] == list(range(1, 13))
    assert [x["parts"]["seen"] for x in lines[:4]] == [1.0, 2.0, 3.0, 4.0]
    assert lines[8]["rate"] == 0.5
    assert [x["lr"] for x in lines[8:]] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert (tmp_path / "run" / "stages" / "alone" / "model.safetensors").exists()
    assert "log_scale" not in (tmp_path / "run" / "checkpoint" / "config.json").read_text()
    assert not [k for k in weights(tmp_path / "run") if "scale" in k]


def test_fresh_optimiser_differs_from_a_carried_one(world, tmp_path, stages):
    world.run(tmp_path / "carry", stages)
    world.run(tmp_path / "fresh", {**stages, "optimiser": "fresh"})
    carried, fresh = losses(tmp_path / "carry"), losses(tmp_path / "fresh")
    assert carried[:5] == fresh[:5]
    assert carried[6:] != fresh[6:]
    assert not same_bits(weights(tmp_path / "carry"), weights(tmp_path / "fresh"))


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_activations_computed_again_are_the_same_bits(world, tmp_path, objective):
    changes = {"train__tokens": 512, "student__dropout": 0.1}
    world.run(tmp_path / "kept", {"name": "ki"}, objective, **changes)
    world.run(tmp_path / "again", {"name": "ki"}, objective, train__activation_checkpointing=True, **changes)
    assert same_bits(weights(tmp_path / "kept"), weights(tmp_path / "again"))


def test_compiled_blocks_train_alike(world, tmp_path):
    plain = world.run(tmp_path / "plain", {"name": "plain"}, train__tokens=512)
    compiled = world.run(tmp_path / "compiled", {"name": "plain"}, train__tokens=512, train__compile=True)
    assert compiled["valid"]["one"]["loss"] == pytest.approx(plain["valid"]["one"]["loss"], rel=1e-4)
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()


def test_infinite_gradients_are_found_too():
    finite, infinite = torch.tensor(1.0), torch.tensor(torch.inf)
    stepped = spine.Stepped("a", 3, 10, 20, 30, finite, {}, infinite, 0.1, 0.0, 1.0)
    with pytest.raises(TrainingError, match="at step 3"):
        spine.require_finite(stepped)


def test_observers_change_no_bit(world, tmp_path, monkeypatch):
    """An observer that draws random numbers, evaluates and moves the model's mode around."""
    world.run(tmp_path / "plain", {"name": "ki", "until": 0.5}, student__dropout=0.1)
    original = spine.run

    def nosy(state, event):
        torch.rand(3)
        state.model.eval()
        state.model.train()

    monkeypatch.setattr(
        "bequest.job.train.run",
        lambda stages, state, settings, observers: original(stages, state, settings, (*observers, nosy)),
    )
    world.run(tmp_path / "nosy", {"name": "ki", "until": 0.5}, student__dropout=0.1)
    assert same_bits(weights(tmp_path / "plain"), weights(tmp_path / "nosy"))


class FirstTaught(Method):
    """A teacher in the first stage alone."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        half = inputs.steps // 2
        yield Stage("taught", inputs.batches, weighted((0.5, distil(inputs.teacher)), (0.5, next_token)), half)
        yield Stage("alone", inputs.batches.skip(half), weighted((1.0, next_token)), inputs.steps - half)


def test_a_stages_end_lets_its_teachers_go(world, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "find", lambda name: FirstTaught)
    teachers, loaded = [], []
    original = Live.__init__

    def remembered(self, *arguments):
        original(self, *arguments)
        teachers.append(self)

    monkeypatch.setattr(Live, "__init__", remembered)
    advance = spine._advance

    def watched(*arguments):
        found = advance(*arguments)
        loaded.append(any(teacher.loaded for teacher in teachers))
        return found

    monkeypatch.setattr(spine, "_advance", watched)
    world.run(tmp_path / "run", {"name": "first-taught"})
    assert loaded == [True] * 6 + [False] * 6
