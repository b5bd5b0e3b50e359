"""`bequest generate` and `bequest eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..job import look
from ..job import probe as probes
from ..model import build
from ..report import table


def generate(checkpoint: str, text: str, tokens: int, temperature: float, seed: int) -> None:
    """Print a continuation, or a masked text filled in."""
    build.quiet()
    if not look.is_masked(checkpoint):
        print(look.generate(checkpoint, text, tokens, temperature, seed))
        return
    words, filled = look.fill(checkpoint, text)
    print(words)
    for number, one in enumerate(filled, 1):
        choices = (f"{token!r} {p:.1%}" for token, p in zip(one.tokens, one.probabilities, strict=True))
        print(f"mask {number}: {', '.join(choices)}")


def evaluate(checkpoint: str, data: Sequence[str], sequence: int) -> None:
    """Print losses per source."""
    build.quiet()
    found = look.evaluate(checkpoint, [look.text_entry(argument) for argument in data], sequence)
    table.show(table.of_valid(checkpoint, found))


def probe(checkpoint: str, task: str, dev: Path, seeds: int, epochs: int, rate: float) -> None:
    """Print what a model gets right after fine-tuning: each seed, then mean and standard deviation."""
    build.quiet()
    scores: list[probes.Score] = []
    for one in probes.probe(checkpoint, task, str(dev), seeds, epochs, rate):
        if not scores:
            print(f"{checkpoint}, fine-tuned on {task}, right about {dev}:")
        print(f"seed {len(scores)}: accuracy {one.accuracy:.4f}, macro-F1 {one.macro_f1:.4f}", flush=True)
        scores.append(one)
    if seeds == 1:
        return
    mean, spread = probes.mean(scores)
    print(
        f"{seeds} seeds: accuracy {mean.accuracy:.4f} (sd {spread.accuracy:.4f}), "
        f"macro-F1 {mean.macro_f1:.4f} (sd {spread.macro_f1:.4f})"
    )
