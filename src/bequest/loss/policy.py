"""Weights that are chosen as a run goes on, phase by phase: by chance, by a bandit, by an actor that a critic teaches.

A policy sees what was measured at the beginning of each phase (`looks`, the last one at the beginning of the phase that is
to be decided) and gives an action, a number from 0 to 1 for every loss. It is a function of that and of a seed, so that the
journal in the checkpoint is all its state: a resumed run comes to the same bits by seeing the same looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

Looks = Sequence[Mapping[str, float]]
Action = tuple[float, ...]
PolicyFn = Callable[[Looks], Action]
UPDATES = 20
"""Of actor and critic after each phase."""
TINY = 1e-12


def rewards(looks: Looks, name: str) -> list[float]:
    """What each phase has gained: how far the loss `name` fell, less how far it fell on average before, in units of the usual distance.

    Losses fall anyway, and less and less. Exactly 0 for a phase that changed nothing while nothing has ever changed.
    """
    falls = [before[name] - after[name] for before, after in pairwise(looks)]
    found, usual = [], 0.0
    for number, fall in enumerate(falls):
        surprise = fall - (math.fsum(falls[:number]) / number if number else fall)
        usual += (abs(surprise) - usual) / (number + 1)
        found.append(surprise / max(usual, TINY))
    return found


def soft_by_chance(losses: int, seed: int) -> PolicyFn:
    """Weights that are drawn evenly from all that add up to 1."""
    return lambda looks: tuple(_chance(seed, looks).dirichlet(np.ones(losses)).tolist())


def hard_by_chance(losses: int, seed: int) -> PolicyFn:
    """Each loss in or out by a coin."""
    return lambda looks: tuple((_chance(seed, looks).random(losses) < 0.5).astype(float).tolist())


def _chance(seed: int, looks: Looks) -> np.random.Generator:
    return np.random.default_rng((seed, len(looks)))


@dataclass(frozen=True)
class Bandit:
    """EXP3 (Auer et al. 2002) over a few actions: which one is worth how much, whatever the state."""

    actions: tuple[Action, ...]
    name: str
    """The loss that is to fall."""
    seed: int
    step: float = 0.2
    explore: float = 0.1

    def __call__(self, looks: Looks) -> Action:
        """The action of the phase that begins."""
        worth = np.zeros(len(self.actions))
        gains = [*rewards(looks, self.name), 0.0]
        for phase, gain in enumerate(gains):
            odds = np.exp(worth - worth.max())
            p = (1 - self.explore) * odds / odds.sum() + self.explore / len(worth)
            drawn = int(_chance(self.seed, looks[: phase + 1]).choice(len(worth), p=p))
            worth[drawn] += self.step / len(worth) / p[drawn] / (1 + math.exp(-max(-50.0, min(50.0, gain))))
        return self.actions[drawn]


@dataclass
class ActorCritic:
    """A deterministic policy and its critic (Wang et al. 2022, arXiv 2302.00444), learned on the way from one episode.

    State: how far the run is, the logarithms of all losses, and how they have changed in the phase before. The critic's
    target is r + gamma Q(s', mu(s')); the actor climbs Q(s, mu(s)); all transitions so far are replayed after each phase.
    """

    names: tuple[str, ...]
    """The losses, in the action's order; the first is the one that is to fall."""
    phases: int
    seed: int
    gamma: float = 0.9
    explore: float = 0.1
    """Weight of an action's distance from the one before in its reward, and size of the noise on actions."""
    rate: float = 1e-3
    width: int = 64
    actions: list[Tensor] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    """The loader's thread asks, too."""

    def __post_init__(self) -> None:
        draw, n = torch.Generator().manual_seed(self.seed), len(self.names)
        self.actor = _network((1 + 2 * n, self.width, self.width, n), draw)
        self.critic = _network((1 + 3 * n, self.width, self.width, 1), draw)
        self.optimisers = [torch.optim.Adam(net.parameters(), lr=self.rate) for net in (self.actor, self.critic)]

    def __call__(self, looks: Looks) -> Action:
        """The action of the phase that begins."""
        with self.lock:
            while len(self.actions) < len(looks):
                self._see(looks[: len(self.actions) + 1])
            return tuple(self.actions[len(looks) - 1].tolist())

    def state(self, looks: Looks) -> Tensor:
        """At the beginning of the last phase of these."""
        now = [math.log(max(TINY, looks[-1][name])) for name in self.names]
        before = [math.log(max(TINY, looks[-2][name])) for name in self.names] if len(looks) > 1 else now
        changes = [a - b for a, b in zip(now, before, strict=True)]
        return torch.tensor([(len(looks) - 1) / self.phases, *now, *changes], dtype=torch.float64)

    def mu(self, state_BS: Tensor) -> Tensor:
        """The actor's action, [B, losses]."""
        found_BA: Tensor = self.actor(state_BS).sigmoid()
        return found_BA

    def value(self, state_BS: Tensor, action_BA: Tensor) -> Tensor:
        """The critic's, [B]."""
        found_B: Tensor = self.critic(torch.cat([state_BS, action_BA], -1))[:, 0]
        return found_B

    def _see(self, looks: Looks) -> None:
        if len(looks) > 1:
            states_PS = torch.stack([self.state(looks[: n + 1]) for n in range(len(looks))])
            self._learn(states_PS, torch.stack(self.actions), self._rewards(looks))
        noise = np.random.default_rng((self.seed, len(looks))).normal(0.0, self.explore, len(self.names))
        with torch.no_grad():
            action_A = self.mu(self.state(looks)[None])[0] + torch.from_numpy(noise)
        self.actions.append(action_A.clamp(0.0, 1.0))

    def _rewards(self, looks: Looks) -> Tensor:
        found = torch.tensor(rewards(looks, self.names[0]), dtype=torch.float64)
        for n, (before_A, now_A) in enumerate(pairwise(self.actions), 1):
            found[n] += self.explore * (1 - torch.cosine_similarity(before_A, now_A, dim=0))
        return found

    def _learn(self, states_PS: Tensor, actions_PA: Tensor, rewards_P: Tensor) -> None:
        here, there = states_PS[:-1], states_PS[1:]
        for _ in range(UPDATES):
            with torch.no_grad():
                target_P = rewards_P + self.gamma * self.value(there, self.mu(there))
            with torch.enable_grad():
                self._step(1, (self.value(here, actions_PA) - target_P).square().mean())
                self._step(0, -self.value(here, self.mu(here)).mean())

    def _step(self, which: int, loss: Tensor) -> None:
        optimiser = self.optimisers[which]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _network(sizes: tuple[int, ...], draw: torch.Generator) -> nn.Sequential:
    """Layers with tanh between them, in float64; torch's own generator is left alone."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, a, b, dtype=torch.float64)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            linear.weight.normal_(0.0, a**-0.5, generator=draw)
            linear.bias.zero_()
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def applied(action: Action, floor: float, threshold: float | None) -> Action:
    """Weights that add up to 1, the first one at least `floor` of them; with a threshold losses are in or out."""
    chosen = action if threshold is None else tuple(float(one > threshold) for one in action)
    whole = math.fsum(chosen) or 1.0
    shares = [one / whole for one in chosen]
    if shares[0] >= floor:
        return tuple(shares)
    rest = math.fsum(shares[1:])
    return (floor, *((1 - floor) * one / rest for one in shares[1:])) if rest else (1.0, *([0.0] * (len(shares) - 1)))
