"""Knowledge selection: the losses, the policies, and that the journal is all their state."""

import laws
import numpy as np
import pytest
import torch
from conftest import make_model, same_bits, weights
from test_language import batch_of

from bequest.job.check import plan
from bequest.loss.hidden import Layers
from bequest.loss.knowledge import NAMES, Knowledge
from bequest.loss.policy import ActorCritic, Bandit, applied, hard_by_chance, rewards, soft_by_chance
from bequest.methods.select_knowledge import PRESETS
from bequest.report import metrics
from bequest.report.record import read
from bequest.teach.live import Live
from bequest.types import Clock, ModelError, RecipeError

ZERO = {"name": "select_knowledge", "policy": "static"}
METHOD = {"name": "select_knowledge", "phase": 3, "held": 4}
NEEDS_TEACHER = True


def test_static_weights_are_fixed_distillation(world, tmp_path):
    world.run(tmp_path / "one", {"name": "select_knowledge", "policy": "static", "weights": [0.5, 0.5, 0, 0]})
    world.run(tmp_path / "other", {"name": "ki", "shape": "constant", "start": 0.5})
    assert same_bits(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_the_four_losses_against_their_formulas(vocabulary):
    from bequest.model.states import watched

    student, teacher = make_model("gpt2", vocabulary, seed=2), make_model("gpt2", vocabulary, seed=1)
    batch = batch_of(vocabulary, 32)
    live = Live(lambda: teacher, vocabulary.size, 0, torch.no_grad)
    loss = Knowledge(live, 2.0, Layers(lambda: teacher, ((1, 1), (2, 2))), lambda clock: (0.4, 0.3, 0.2, 0.1))
    loss.meet(student)
    found = loss(student, batch, Clock(0, 1))
    with watched(student, [1, 2]) as own, watched(teacher, [1, 2]) as other:
        z_S, z_T = (m.head.logits(m.features(batch)) for m in (student, teacher))
    p, q = (z_T / 2).log_softmax(-1).detach(), (z_S / 2).log_softmax(-1)
    ce = torch.nn.functional.cross_entropy(z_S, batch.rows.target_N, reduction="none")
    kl = 4 * (p.exp() * (p - q)).sum(-1)
    unit = lambda states, n: torch.nn.functional.normalize(states[n].flatten(0, 1)[batch.rows.index_N], dim=-1)
    apart = sum((unit(own, n) - unit(other, n).detach()).square().mean(-1) for n in (1, 2))
    sequence_N, relation = batch.rows.index_N // 32, torch.zeros(())
    for s in sequence_N.unique():
        here = sequence_N == s
        fsp = [(unit(o, 1)[here].T @ unit(o, 2)[here]) / here.sum() for o in (own, other)]
        relation = relation + (fsp[0] - fsp[1].detach()).square().mean() * here.sum()
    expected = ((0.4 * ce + 0.3 * kl + 0.2 * apart).sum() + 0.1 * relation) / batch.rows_total
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = student.model.transformer.h[0].mlp.c_fc.weight
    slopes = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in (found.total, expected)]
    assert torch.allclose(*slopes, atol=1e-6)
    assert set(found.parts) == set(NAMES)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(vocabulary):
    student, teacher = (make_model("llama", vocabulary, seed=1) for _ in range(2))
    live = Live(lambda: teacher, vocabulary.size, 0, torch.no_grad)
    loss = Knowledge(live, 1.0, Layers(lambda: teacher), lambda clock: (0.0, 1.0, 1.0, 1.0))
    loss.meet(student)
    found = loss(student, batch_of(vocabulary, 32), Clock(0, 1))
    assert found.total.item() == pytest.approx(0.0, abs=1e-6)


def test_the_layer_map_of_other_depths(vocabulary):
    student, teacher = make_model("llama", vocabulary), make_model("llama", vocabulary, layers=5)
    layers = Layers(lambda: teacher)
    layers.meet(student)
    assert layers.pairs == ((0, 0), (1, 2), (2, 5))
    assert layers.map_SD.shape == (16, 16)


def test_weights_add_up_to_one_with_a_floor():
    assert applied((1.0, 1.0, 1.0, 1.0), 0.1, None) == pytest.approx((0.25,) * 4)
    assert applied((0.0, 1.0, 1.0, 0.0), 0.1, None) == pytest.approx((0.1, 0.45, 0.45, 0.0))
    assert applied((0.0, 0.0, 0.0, 0.0), 0.1, None) == (1.0, 0.0, 0.0, 0.0)
    assert applied((0.9, 0.6, 0.4, 0.5), 0.1, 0.5) == (0.5, 0.5, 0.0, 0.0)
    assert applied((0.9, 0.6, 0.4, 0.5), 0.1, 0.0) == (0.25,) * 4
    assert applied((0.9, 0.6, 0.4, 0.5), 0.1, 1.0) == (1.0, 0.0, 0.0, 0.0)


def test_rewards_are_what_was_not_expected():
    looks = [{"next_token": value} for value in (5.0, 4.0, 3.0, 2.5, 2.5)]
    found = rewards(looks, "next_token")
    assert found[0] == found[1] == 0.0  # the first is expected, and the second is the same
    assert found[2] < 0 > found[3]
    assert rewards([{"next_token": 4.0}] * 5, "next_token") == [0.0] * 4


def test_the_bandit_finds_the_loss_that_helps():
    """The held-out loss falls only where the third action is taken."""
    bandit, looks, taken = Bandit(PRESETS, "next_token", seed=0), [{"next_token": 1000.0}], []
    for _ in range(300):
        action = bandit(looks)
        taken.append(PRESETS.index(action))
        looks.append({"next_token": looks[-1]["next_token"] - (taken[-1] == 2)})
    assert np.mean(np.array(taken[150:]) == 2) > 0.8


def test_the_actors_gradient_is_that_of_its_critic():
    """In float64 against finite differences of Q(s, mu(s)), for every weight of the last layer."""
    policy = ActorCritic(NAMES, 10, seed=0)
    state = policy.state([dict.fromkeys(NAMES, 3.0)])[None]
    value = lambda: policy.value(state, policy.mu(state)).sum()
    weight = policy.actor[-1].weight
    (slope,) = torch.autograd.grad(value(), weight)
    for row, column in ((0, 0), (1, 5), (3, 63)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[row, column] += sign * 1e-6
                ends.append(value().item())
                weight[row, column] -= sign * 1e-6
        assert slope[row, column].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-9)


def test_a_critic_that_looks_no_further_learns_the_reward():
    policy = ActorCritic(NAMES, 10, seed=0, gamma=0.0, rate=1e-2)
    states, actions = torch.randn(4, 9, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    wanted = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    for _ in range(30):
        policy._learn(states, actions, wanted)
    assert torch.allclose(policy.value(states[:-1], actions), wanted, atol=0.2)


def test_a_policy_that_has_seen_nothing_comes_to_the_same_by_seeing_it_again():
    draw = np.random.default_rng(0)
    looks = [{name: 3.0 - 0.1 * n + 0.05 * draw.random() for name in NAMES} for n in range(8)]
    first, again = (ActorCritic(NAMES, 8, seed=3) for _ in range(2))
    step_by_step = [first(looks[: n + 1]) for n in range(8)]
    assert again(looks) == step_by_step[-1]
    assert [again(looks[: n + 1]) for n in range(8)] == step_by_step
    assert len(set(step_by_step)) == 8


@pytest.mark.parametrize("policy", ["bandit", "random_soft", "random_hard", "actor_critic"])
def test_actions_stay_for_a_phase_and_looks_are_in_the_journal(world, tmp_path, policy, monkeypatch):
    looked = []
    original = Knowledge.look
    monkeypatch.setattr(Knowledge, "look", lambda self, *a: looked.append(1) or original(self, *a))
    method = {**METHOD, "policy": policy}
    world.run(tmp_path / "run", method)
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    rates = [line["rate"] for line in lines]
    assert all(len(set(rates[first : first + 3])) == 1 for first in range(0, 12, 3))
    assert len(set(rates)) > 1
    assert len(looked) == 4
    laws.stop_and_resume_same_bits(world, tmp_path / "stop", method, "causal", (2, 7))


def test_hard_actions_train(world, tmp_path):
    world.run(tmp_path / "run", {**METHOD, "action": "hard"})


def test_looks_are_in_the_ledger_and_in_the_plan(world, tmp_path):
    found = world.run(tmp_path / "run", METHOD)
    told = plan(world.recipe(METHOD), tmp_path / "planned")
    assert found["student_flops"] == pytest.approx(told.student_flops, rel=1e-9)
    assert found["teacher_flops"] == pytest.approx(told.teacher_flops, rel=1e-9)
    even = {"name": "select_knowledge", "policy": "static", "weights": [0.25] * 4}
    assert found["student_flops"] > world.run(tmp_path / "static", even)["student_flops"]


def test_it_learns(world, tmp_path):
    teacher = {"teachers__teacher": {"load": laws.learned(world, "causal")}}
    found = world.run(tmp_path / "run", METHOD, **teacher, train__tokens=4096)
    lines = read(tmp_path / "run").steps
    assert found["valid"]["one"]["loss"] < lines[0]["parts"]["next_token"] - 0.5


def test_chance_is_a_function_of_seed_and_phase():
    looks = [{}] * 3
    assert soft_by_chance(4, 1)(looks) == soft_by_chance(4, 1)(looks) != soft_by_chance(4, 2)(looks)
    assert set(hard_by_chance(4, 1)(looks)) <= {0.0, 1.0}
    assert sum(soft_by_chance(4, 1)(looks)) == pytest.approx(1.0)


def test_a_layer_that_is_not_there(world, tmp_path):
    with pytest.raises(RecipeError, match="no layer 9"):
        plan(world.recipe({**METHOD, "layers": [[1, 9]]}), tmp_path / "run")


def test_one_pair_has_no_relation(world, tmp_path):
    with pytest.raises(RecipeError, match="two pairs or more"):
        world.run(tmp_path / "run", {**METHOD, "layers": [[1, 1]]})


def test_a_store_is_not_enough(world, tmp_path):
    spec = {"store": str(tmp_path / "store"), "load": world.teacher["causal"]}
    from bequest.job.teach import teach

    method = {"name": "select_knowledge", "policy": "static", "weights": [0.5, 0.5, 0, 0]}
    teach(world.recipe(method, teachers__teacher=spec))
    only = {"teachers": {"teacher": {"store": str(tmp_path / "store")}}}
    world.run(tmp_path / "run", method, **only)  # predictions alone can come from a store
    with pytest.raises((RecipeError, ModelError), match="one model as teacher"):
        world.run(tmp_path / "hidden", METHOD, **only)


def test_weights_of_nothing_are_refused(world, tmp_path):
    with pytest.raises(RecipeError, match="nothing is learned"):
        plan(world.recipe({**ZERO, "weights": [0, 0, 0, 0]}), tmp_path / "run")
