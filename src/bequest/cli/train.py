"""`bequest train`."""

from __future__ import annotations

from pathlib import Path

from .. import sense


def command(path: Path, overrides: tuple[str, ...], out: Path | None, push: str | None) -> None:
    """Train a recipe, print the table of what came out, and put the model on a hub if asked to."""
    recipe = sense.load(path, overrides)
    from ..job.train import train  # a mistake in the recipe should not wait for torch
    from ..report import lives, table

    folder = out or Path("runs") / recipe.name
    with sense.named(path):
        summary = train(recipe, folder)
    if summary.get("was_finished"):
        print(
            f"{folder} is finished already; "
            "give it more train.tokens (if its schedule allows) or another --out to train again"
        )
    table.show(table.of_run(summary))
    if "life" in summary:
        print(lives.told(summary["life"]))
    if "change" in summary:
        changes = (f"{source} {change:+.4f}" for source, change in summary["change"].items())
        print(f"loss since the loaded model: {', '.join(changes)}")
    print(table.cost(summary))
    print(f"the model: {summary['checkpoint']}")
    print(f"the report: {folder / 'report.html'}")
    if push:
        from ..job.push import push as push_to

        print(f"pushed to {push_to(folder / 'checkpoint', push)}")
