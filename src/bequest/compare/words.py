"""A sweep's results in words, for its page, its fragment of markdown and the project's own pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NONE = "-"
Found = Mapping[str, Any]
"""A part of results.json or clock.json."""
MEASURES = {"loss": "loss", "bits_per_byte": "bits per byte"}
SHORT = {
    "tokens": "tokens",
    "student_flops": "student FLOPs",
    "all_flops": "all FLOPs",
    "counted_flops": "counted FLOPs",
}
"""The axes of results.json in a table's head."""


def bounds(found: Sequence[float | None], spec: str, unit: str = "") -> tuple[str, str]:
    """A mean, and where the true one lies, which is empty where no interval was asked for."""
    mean, low, high = found
    return f"{mean:{spec}}{unit}", "" if low is None else f"{low:{spec}} to {high:{spec}}"


def loss(found: Sequence[float | None] | None) -> tuple[str, str]:
    """A final loss and its interval."""
    return bounds(found, ".4f") if found else (NONE, "")


def gap(verdict: Found | None) -> tuple[str, str]:
    """How much lower or higher an arm ends than the baseline, and its interval."""
    return bounds(verdict["gap"], "+.4f") if verdict and verdict["gap"] else (NONE, "")


def ratio(verdict: Found | None) -> tuple[str, str]:
    """How many times an arm's cost the baseline needs, and its interval; none where the verdict refuses it."""
    return bounds(verdict["ratio"], ".2f", "x") if verdict and not verdict["refusal"] else (NONE, "")


def joined(words: tuple[str, str]) -> str:
    """A mean with its interval in brackets."""
    return f"{words[0]} ({words[1]})" if words[1] else words[0]


def count(number: int) -> str:
    """How many; a run that diverged does not say."""
    return f"{number:,}" if number else NONE


def flops(number: float | None) -> str:
    """To three digits."""
    return NONE if number is None else f"{number:.3g}"


def rate(arm: Found) -> str:
    """An arm's learning rate; one on the edge of those tried is marked."""
    return f"{arm['rate']:g}" + (" (edge)" if arm["rate_on_edge"] else "")


def finals(arm: Found) -> list[Found]:
    """The runs that are an arm's result, by seed."""
    return [run for run in arm["runs"] if run["budget"] == arm["settings"]["budgets"][0]]


def tokens(arm: Found) -> str:
    """How many an arm's result has seen, the mean over seeds."""
    seen = [run["curve"][-1]["tokens"] for run in finals(arm) if run["curve"]]
    return count(round(sum(seen) / len(seen)) if seen else 0)


def tried(results: Found) -> Iterator[tuple[str, dict[float, float | None]]]:
    """Who tried several learning rates: each with what it gave."""
    own = {name: arm["tried"] for name, arm in results["arms"].items() if arm["tuned_by"] == name}
    other = {name: one["tried"] for name, one in results["predecessors"].items() if name not in results["arms"]}
    for name, rates in (other | own).items():
        if rates:
            yield name, dict(rates)


def trial(loss: float | None) -> str:
    """What a learning rate gave."""
    return "diverged" if loss is None else f"{loss:.4f}"


def predecessors(results: Found) -> list[list[str]]:
    """A table of who taught, its head first; empty where nobody did."""
    head = ["predecessor", "parameters", "learning rate", "tokens", MEASURES[results["measure"]]]
    rows = [[*head, "all FLOPs", "counted FLOPs"]]
    for name, one in results["predecessors"].items():
        row = [name, count(one["parameters"]), f"{one['rate']:g}", count(one["tokens"]), f"{one['loss']:.4f}"]
        rows.append([*row, flops(one["all_flops"]), flops(one["counted_flops"])])
    return rows if len(rows) > 1 else []


def lives(results: Found) -> Iterator[tuple[str, list[list[str]]]]:
    """Tables of what arms that live in stages have learned and forgotten: what each is, and its rows, the head first."""
    found = {name: arm["life"] for name, arm in results["arms"].items() if arm.get("life")}
    if not found:
        return
    parts = max((one["parts"] for one in found.values()), key=len)
    base = results["baseline"]
    for title, key, spec, first in (
        ("AP, the perplexity averaged over the domains learned so far, after", "AP", ".2f", 0),
        (f"AP as a multiple of {base}'s, after", "AP ratio", ".3f", 0),
        ("AP+, how much perplexity on earlier domains has risen since each was learned, after", "AP+", "+.2f", 1),
        (f"AP+ less {base}'s, after", "AP+ gap", "+.2f", 1),
    ):
        rows = [["arm", *parts[first:]]]
        for name, one in found.items():
            if any(one[key]):
                rows.append([name, *(joined(bounds(value, spec)) if value else NONE for value in one[key])])
        if len(rows) > 1:
            yield title, rows


def spent(clock: Found) -> str:
    """The seconds of all runs, and what they cost if there is a price."""
    price, seconds = clock["price"], clock["seconds"]
    money = f", {seconds / 3600 * price['per_hour']:,.2f} {price['currency']}" if price else ""
    return f"All runs together took {seconds:,.0f} seconds of training{money}."


def by_chance(results: Found) -> str:
    """What a reader of many intervals should keep in mind; empty where there are none."""
    if results["confidence"] is None:
        return ""
    others = len(results["arms"]) - 1
    return (
        f"{others} arm{'s' if others > 1 else ''} against one baseline at {results['confidence']:.0%}: if none differed, "
        f"{others * (1 - results['confidence']):.1f} would seem to by chance."
    )
