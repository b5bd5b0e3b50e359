"""What arms that live in stages have learned and forgotten: AP and AP+ after every part, over seeds, beside the baseline's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .outcome import Result
from .statistics import Interval, interval

Ends = list[float | None]


def life(own: Mapping[int, Result], base: Mapping[int, Result], confidence: float | None) -> dict[str, Any] | None:
    """Of an arm's results by seed; None where a run was not of several parts.

    AP is averaged as a logarithm, and its ratio to the baseline's pair by pair of seeds; AP+ as it is. After the first part
    there is nothing to have been forgotten.
    """
    lives = {seed: result.life for seed, result in own.items() if result.life}
    if len(lives) < len(own):
        return None
    parts = next(iter(lives.values()))["parts"]
    others = {seed: base[seed].life for seed in lives if seed in base and base[seed].life}
    alike = {seed: one for seed, one in others.items() if one and one["parts"] == parts}
    return {
        "parts": parts,
        "AP": [_interval(_logs([one["AP"][t] for one in lives.values()], confidence)) for t in range(len(parts))],
        "AP+": [
            _interval(interval([one["AP+"][t] for one in lives.values()], confidence)) for t in range(1, len(parts))
        ],
        "AP ratio": [
            _interval(_logs([lives[s]["AP"][t] / alike[s]["AP"][t] for s in alike], confidence))
            if len(alike) > (1 if confidence else 0)
            else None
            for t in range(len(parts))
        ],
        "AP+ gap": [
            _interval(interval([lives[s]["AP+"][t] - alike[s]["AP+"][t] for s in alike], confidence))
            if len(alike) > (1 if confidence else 0)
            else None
            for t in range(1, len(parts))
        ],
    }


def _logs(values: Sequence[float], confidence: float | None) -> Interval:
    return interval([math.log(value) for value in values], confidence).exp()


def _interval(found: Interval) -> Ends:
    return [found.mean, found.low, found.high]
