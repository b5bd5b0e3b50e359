"""Whether a run can be made longer: only if every step so far would have been the same under the longer plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ..optim import Policy
from ..train.plan import Stage
from ..train.run import rate_at
from ..types import Clock, FolderError


def refuse_if_different(
    old: Sequence[Stage], new: Sequence[Stage], policy: Policy, batch_tokens: int, steps_done: int
) -> None:
    """Raises FolderError that says what the longer plan would have changed, and at which step."""
    pairs = zip(_course(old, policy, batch_tokens), _course(new, policy, batch_tokens), strict=False)
    for step, (before, now) in enumerate(islice(pairs, steps_done)):
        for what, value in before.items():
            if value != now[what]:
                raise FolderError(
                    f"this run cannot be made longer: with more tokens {what} at step {step} "
                    f"would have been {_said(now[what])} instead of {_said(value)}; "
                    "start a new run with --out (a constant schedule, or wsd before its decay, can be made longer)"
                )


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _course(stages: Sequence[Stage], policy: Policy, batch_tokens: int) -> Iterator[dict[str, Any]]:
    """What depends on the plan's length, step by step."""
    steps = sum(stage.steps for stage in stages)
    places = ((stage, step) for stage in stages for step in range(stage.steps))
    for run_step, (stage, step) in enumerate(places):
        clock = Clock(step, stage.steps, step * batch_tokens, run_step, run_step * batch_tokens)
        # A loss that cannot say its weights may depend on the length in any way.
        weights = getattr(stage.loss, "rates", lambda clock: clock.steps)(clock)
        yield {
            "the stage": stage.name,
            "the learning rate's share of its peak": rate_at(stage, policy, clock, steps, batch_tokens),
            "the weight of its losses": weights,
            "the comparison": stage.measure.every if stage.measure else None,
        }
