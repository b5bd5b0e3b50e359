"""Knowledge selection (Wang et al. 2022, arXiv 2302.00444): an actor-critic sets the weights of four losses, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal

from ..config import Count, NotNegative, Positive, Share, Temperature
from ..loss.hidden import Layers
from ..loss.knowledge import NAMES, Knowledge
from ..loss.policy import TINY, Action, ActorCritic, Bandit, PolicyFn, applied, hard_by_chance, soft_by_chance
from ..train.plan import Inputs, Measure, Method, Stage
from ..types import Clock, RecipeError

EVEN = (0.25, 0.25, 0.25, 0.25)
PRESETS = ((1.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0), (0.5, 0.0, 0.5, 0.0), (0.5, 0.0, 0.0, 0.5), EVEN)
"""What the bandit chooses from."""


class SelectKnowledge(Method):
    """a_1 next token + a_2 KL(teacher || student) + a_3 hidden states + a_4 relations of layers; a policy sets a once per phase.

    All but static weights are of losses in units of their values on reserved text at the phase's beginning, scaled by the next
    token's; reward is the fall of the next token's loss there. The paper learns its policy over many trainings; this is one.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    policy: Literal["actor_critic", "bandit", "random_soft", "random_hard", "static"] = "actor_critic"
    """Who sets the weights: the paper's, a bandit over five mixes, chance (the paper's two controls), or `weights`."""
    action: Literal["soft", "hard"] = "soft"
    """actor_critic: weights as they are, or losses in or out by `threshold`."""
    weights: tuple[NotNegative, NotNegative, NotNegative, NotNegative] = (1.0, 0.0, 0.0, 0.0)
    """static: of the four losses."""
    phase: Positive = 100
    """Steps with the same weights."""
    floor: Share = 0.1
    """The least that the next token's loss weighs, so that to do nothing is no action."""
    threshold: Share = 0.5
    """hard: what an action must exceed (lambda)."""
    gamma: Share = 0.9
    """How much of a later phase's reward counts."""
    explore: NotNegative = 0.1
    """Weight of the reward for another action than before, and noise on actions."""
    temperature: Temperature = 1.0
    """Of teacher and student, in the second loss."""
    layers: tuple[tuple[Count, Count], ...] = ()
    """Pairs of a student's and a teacher's layer (0 is before the first block); without any, each of the student's with one."""
    held: Positive = 64
    """Sequences of training text that are kept back for rewards."""

    def plan(self, inputs: Inputs) -> Iterator[Stage]:
        """One stage.

        Raises RecipeError when no loss weighs anything.
        """
        static = self.policy == "static"
        if static and not any(self.weights):
            raise RecipeError("method.weights are all 0, so that nothing is learned; raise one")
        layers = None if static and not any(self.weights[2:]) else Layers(inputs.model("teacher"), self.layers)
        weights = (lambda clock: self.weights) if static else partial(self._weights, self._policy(inputs))
        loss = Knowledge(inputs.teacher, self.temperature, layers, weights)
        if static:
            yield Stage("select", inputs.batches, loss, inputs.steps)
            return
        batches, held = inputs.batches.reserve(self.held)
        look = Measure(self.phase, lambda model, _: loss.look(model, held), lambda model: loss.flops(model, held))
        yield Stage("select", batches, loss, inputs.steps, measure=look)

    def _policy(self, inputs: Inputs) -> PolicyFn:
        match self.policy:
            case "bandit":
                return Bandit(PRESETS, NAMES[0], inputs.seed)
            case "random_soft":
                return soft_by_chance(len(NAMES), inputs.seed)
            case "random_hard":
                return hard_by_chance(len(NAMES), inputs.seed)
        return ActorCritic(NAMES, -(-inputs.steps // self.phase), inputs.seed, self.gamma, self.explore)

    def _weights(self, policy: PolicyFn, clock: Clock) -> Action:
        """What the policy makes of the looks so far, in units of the losses at the last one. Before the first all weigh the same."""
        looks = [entry.values for entry in clock.journal if entry.stage == clock.stage]
        if not looks:
            return EVEN
        hard = self.policy == "actor_critic" and self.action == "hard"
        action = applied(policy(looks), self.floor, self.threshold if hard else None)
        unit = looks[-1][NAMES[0]]
        return tuple(a * unit / max(TINY, looks[-1][name]) for a, name in zip(action, NAMES, strict=True))
