"""Trackers: what the metrics file gets, shown where people usually watch. They only watch, and one that fails is let go.

Each is opened with the run's name and folder, so that a resumed run goes on in the same place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..config import differences, fingerprint
from ..recipe import Tracker
from ..types import RecipeError
from .progress import console

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
Line = Mapping[str, Any]


class Opened(Protocol):
    """A tracker at work."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def require(trackers: Sequence[Tracker]) -> None:
    """Raises RecipeError when a tracker's package is not installed."""
    missing = [t.name for t in trackers if find_spec(PACKAGES[t.name]) is None]
    if missing:
        raise RecipeError(
            *(f"trackers: {name} needs an extra package; run pip install 'bequest[{name}]'" for name in missing)
        )


@contextmanager
def opened(
    trackers: Sequence[Tracker], run: str, folder: Path, recipe: Mapping[str, Any], step: int
) -> Iterator[Sequence[Callable[[Line], None]]]:
    """Listeners for the lines of the metrics file; `step` is where a resumed run goes on.

    Raises RecipeError when a tracker cannot be opened.
    """
    with ExitStack() as stack:
        listeners: list[_Listener] = []
        for tracker in trackers:
            try:
                found = OPEN[tracker.name](tracker.project, run, folder, recipe, step)
            except _errors(tracker.name) as error:
                raise RecipeError(
                    f"trackers: {tracker.name} cannot start ({_first(error)}); mend that or leave it out"
                ) from None
            listener = _Listener(tracker.name, found)
            stack.callback(listener.close)
            listeners.append(listener)
        yield listeners


class _Listener:
    def __init__(self, name: str, tracker: Opened) -> None:
        self.name, self.tracker = name, tracker
        self.failed = False

    def __call__(self, line: Line) -> None:
        if not self.failed:
            self._try(lambda: self.tracker.log(line["step"], {k: v for k, v in flat(line) if k != "step"}))

    def close(self) -> None:
        self._try(self.tracker.close)

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except _errors(self.name) as error:
            self.failed = True
            console().print(
                f"warning: {self.name} failed ({_first(error)}); training goes on without it", soft_wrap=True
            )


def flat(line: Line, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line, inner ones as `valid/wiki/loss`."""
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value


def _errors(name: str) -> tuple[type[Exception], ...]:
    """What a tracker raises when it, its server or its disk fails."""
    if name == "wandb":
        import wandb

        return (OSError, wandb.errors.Error)
    if name == "mlflow":
        import mlflow

        return (OSError, mlflow.exceptions.MlflowException)
    return (OSError, ValueError, RuntimeError)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class _TensorBoard:
    def __init__(self, project: str, run: str, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a resumed run writes again takes the place of what was written before.
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, project: str, run: str, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        import wandb

        identity = fingerprint([project, run, str(folder.resolve())])
        self.run = wandb.init(
            project=project, name=run, id=identity, resume="allow", dir=folder, config=dict(recipe),
            settings=wandb.Settings(silent=True),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, project: str, run: str, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        mlflow.set_experiment(project)
        kept = folder / "mlflow-run"
        known = kept.read_text() if kept.exists() else None
        self.mlflow: Any = mlflow
        self.run = mlflow.start_run(run_id=known, run_name=None if known else run)
        kept.write_text(self.run.info.run_id)
        if not known:
            mlflow.log_params({key: value for key, (_, value) in differences({}, dict(recipe)).items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class _Trackio:
    def __init__(self, project: str, run: str, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        import trackio

        self.run: Any = trackio.init(project=project, name=run, resume="allow", config=dict(recipe))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


OPEN: dict[str, Callable[[str, str, Path, Mapping[str, Any], int], Opened]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
