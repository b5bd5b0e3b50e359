"""`bequest generate` and `bequest eval`."""

from __future__ import annotations

from collections.abc import Sequence

from ..job import look
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
