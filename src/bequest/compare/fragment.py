"""A sweep's results as markdown, for a project's own pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import words
from .words import Found


def fragment(results: Found, clock: Found) -> str:
    """A section: what was asked, how, and what came out."""
    return "\n".join(_parts(results, clock))


def _parts(results: Found, clock: Found) -> Iterator[str]:
    yield f"### {_text(results['name'])}\n"
    if results["question"]:
        yield f"{_text(' '.join(results['question'].split()))}\n"
    yield f"```text\n{results['command']}\n```\n"
    yield from arms(results, list(results["arms"]))
    for title, rows in words.lives(results):
        yield f"{_text(title)}:\n"
        yield from _table(rows[0], rows[1:])
    if found := words.predecessors(results):
        yield from _table(found[0], found[1:])
    if tried := list(words.tried(results)):
        cells = [
            [name, ", ".join(f"{rate:g}: {words.trial(loss)}" for rate, loss in rates.items())] for name, rates in tried
        ]
        yield from _table(
            ["arm", f"learning rates tried and the {words.MEASURES[results['measure']]} each gave"], cells
        )
    if results["sentences"]:
        yield from (f"- {_text(sentence['text'])}" for sentence in results["sentences"])
        yield ""
    if chance := words.by_chance(results):
        yield f"{chance}\n"
    said = "".join(f"{_text(sentence['text'])} " for sentence in clock["sentences"])
    yield f"By the clock: {said}{_text(words.spent(clock))}\n"


def arms(results: Found, names: Sequence[str]) -> Iterator[str]:
    """The table of some arms."""
    head = ["arm", "parameters", "learning rate", f"final {words.MEASURES[results['measure']]}", "gap at equal tokens"]
    rows = []
    for name in names:
        arm = results["arms"][name]
        verdicts = arm["verdicts"]
        own = f"{name} (baseline)" if name == results["baseline"] else name
        row = [own, words.count(arm["parameters"]), words.rate(arm), words.joined(words.loss(arm["final"]))]
        row.append(words.joined(words.gap(verdicts.get("tokens"))))
        rows.append(row + [_ratio(verdicts.get(axis)) for axis in results["axes"]])
    yield from _table(head + [f"ratio: {words.SHORT[axis]}" for axis in results["axes"]], rows)


def _ratio(verdict: Found | None) -> str:
    """With its ceiling, if it has one."""
    most = verdict and not verdict["refusal"] and verdict["ceiling"]
    return words.joined(words.ratio(verdict)) + (f", ceiling {most:.2f}x" if most else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |\n|" + "---|" * len(head)
    yield from ("| " + " | ".join(map(_text, row)) + " |" for row in rows)
    yield ""


def _text(text: str) -> str:
    """Text that markdown takes as it is."""
    return text.replace("|", "\\|").replace("<", "\\<")
