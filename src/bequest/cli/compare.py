"""`bequest compare`."""

from __future__ import annotations

import os
from pathlib import Path

from .. import sense
from ..compare import sweep as sweeps
from ..types import RecipeError


def command(path: Path, out: Path, jobs: int | None, index: int | None) -> None:
    """Do a sweep's runs and write what came out."""
    sweep = sweeps.load(path)
    from ..compare import answer, fair, output  # a mistake in the sweep should not wait for torch
    from ..compare.course import Course
    from ..compare.progress import Progress
    from ..compare.work import Workshop, default_jobs

    with sense.named(path):
        fair.require(sweep)
        course = Course(sweep, out, fair.source_of(sweep))
    arms, mine = tuple(sweep.arms), _mine(tuple(sweep.arms), index)
    count = jobs or default_jobs()
    with Progress(course, count) as progress:
        Workshop(course, count, progress, progress.finished).work(mine)
    if course.due(arms):
        print(
            f"the runs of {', '.join(mine) or 'no arm'} are done; bequest compare {path} does the others and writes the results"
        )
        return
    sides = answer.sides(course)
    found, clock = answer.results(course, sides, path), answer.clock(course, sides)
    folder = out / sweep.name
    output.write(found, clock, folder)
    for sentence in [*found["sentences"], *clock["sentences"]]:
        print(sentence["text"])
    print(f"the results: {folder / 'index.html'}")


def _mine(arms: tuple[str, ...], index: int | None) -> tuple[str, ...]:
    """The arms that this process is to do: all, or its share under torchrun or in an array of cluster jobs."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if index is not None:
        if index >= len(arms):
            raise RecipeError(f"--index {index}: there are {len(arms)} arms, numbered from 0")
        return (arms[index],)
    return arms[rank::ranks]
