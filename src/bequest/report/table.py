"""Tables at the end of a run, and the sentence that says what inheriting saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def of_run(summary: Mapping[str, Any]) -> Table:
    """Losses of one run."""
    return of_valid(f"{summary['name']}: {summary['tokens']:,} tokens", summary["valid"])


def of_valid(title: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    """A validation, source by source."""
    table = Table(title=title, title_justify="left")
    for column in ("source", "loss", "perplexity", "bits per byte"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source, valid in found.items():
        bits = valid.get("bits_per_byte")
        table.add_row(
            source, f"{valid['loss']:.4f}", f"{valid['perplexity']:.2f}", "-" if bits is None else f"{bits:.4f}"
        )
    return table


def cost(summary: Mapping[str, Any]) -> str:
    """One line on what a run has cost."""
    student, teacher = summary["student_flops"], summary["teacher_flops"]
    harvest = summary.get("harvest_flops", 0.0)
    scoring = summary.get("scoring_flops", 0.0)
    scores = f", {scoring:.3g} of them to choose text" if scoring else ""
    once = f"; harvesting its stores took {harvest:.3g} more, once" if harvest else ""
    return (
        f"{student + teacher:.3g} FLOPs ({teacher / (student + teacher):.1%} the teachers' forward passes{scores}{once}), "
        f"{summary['wall_s']:.0f} s of training at {summary['tokens_per_s']:,.0f} tokens/s, "
        f"peak memory {summary['peak_rss_mb']:,.0f} MB"
    )


def show(table: Table) -> None:
    """Print a table to standard output, in full width where the output is not a terminal."""
    out = Console(highlight=False)
    Console(highlight=False, width=None if out.is_terminal else 120).print(table)


def validations(metrics: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The validation lines of a metrics file."""
    return [line for line in metrics if "valid" in line]


def reached(curve: Sequence[Mapping[str, Any]], source: str, target: float) -> tuple[float, float] | None:
    """Tokens and all-in FLOPs at which a curve of validations first reaches a loss, interpolated; None if it never does."""
    points = [(v["valid"][source]["loss"], v["tokens"], v["student_flops"] + v["teacher_flops"]) for v in curve]
    for before, after in zip([points[0], *points], points, strict=False):
        if after[0] <= target:
            way = 0.0 if before[0] <= target else (before[0] - target) / (before[0] - after[0])
            return before[1] + way * (after[1] - before[1]), before[2] + way * (after[2] - before[2])
    return None


def losses_of_teachers(summary: Mapping[str, Any], source: str) -> list[float]:
    """How well a run's predecessors predict a source's held-out text."""
    return [found[source]["loss"] for found in summary.get("teachers", {}).values() if source in found]


def savings(
    baseline: Sequence[Mapping[str, Any]],
    inheriting: Sequence[Mapping[str, Any]],
    source: str,
    teachers: Iterable[float] = (),
) -> str:
    """What share of the baseline's cost the inheriting run needed to reach the baseline's final loss.

    A predecessor whose own loss (`teachers`) is there already has saved nothing: whoever wants that loss has it.
    """
    last = baseline[-1]
    target = last["valid"][source]["loss"]
    if any(loss <= target for loss in teachers):
        return "The predecessor itself is already as good as the scratch run at its end, or better: no saving can be stated."
    found = reached(inheriting, source, target)
    if found is None:
        return "The inheriting run never reached the scratch run's final loss."
    tokens, flops = found[0] / last["tokens"], found[1] / (last["student_flops"] + last["teacher_flops"])
    return (
        f"The inheriting run reached the scratch run's final loss after {tokens:.0%} of its tokens "
        f"({flops:.0%} of its FLOPs with the teacher's forward passes counted)."
    )
