"""Trackers see what the metrics file gets, go on after a resume, and change no bit of training."""

import json
import sqlite3
from importlib.util import find_spec

import laws
import pytest
from test_cli import run_main

from bequest import config
from bequest.job.train import train
from bequest.report import trackers
from bequest.types import RecipeError

from test_job import same_bits, weights  # isort: skip

PLAIN = {"name": "plain"}
ALL = ("tensorboard", "wandb", "mlflow", "trackio")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", ALL)
def test_a_real_tracker_changes_no_bit(world, tmp_path, name):
    if find_spec(trackers.PACKAGES[name]) is None:
        pytest.skip(f"{name} is not installed")
    world.run(tmp_path / "plain", PLAIN)
    laws.stopped_at(world, tmp_path / "run", 5, PLAIN, "causal", trackers=[{"name": name}])
    world.run(tmp_path / "run", PLAIN, trackers=[{"name": name}])
    assert same_bits(weights(tmp_path / "plain"), weights(tmp_path / "run"))
    SEEN[name](tmp_path)


def seen_by_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    found = {e.step: e.value for e in events.Scalars("loss")}
    assert found == pytest.approx(losses, rel=1e-6)
    assert "valid/one/loss" in events.Tags()["scalars"]


def seen_by_wandb(folder):
    assert list((folder / "run" / "wandb").glob("offline-run-*/*.wandb"))


def seen_by_mlflow(folder):
    with sqlite3.connect(folder / "run" / "mlflow.db") as database:
        runs = database.execute("select count(*) from runs").fetchone()[0]
        steps = {row[0] for row in database.execute("select step from metrics where key = 'loss'")}
    assert runs == 1  # the resumed run went on in the same place
    assert {1, 5, 6} <= steps


def seen_by_trackio(folder):
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as found:
        assert found.execute("select count(*) from metrics").fetchone()[0] > 5


SEEN = {
    "tensorboard": seen_by_tensorboard,
    "wandb": seen_by_wandb,
    "mlflow": seen_by_mlflow,
    "trackio": seen_by_trackio,
}


def test_a_missing_extra_says_what_to_install(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    config.write(world.raw(PLAIN, trackers=["wandb"]), tmp_path / "recipe.yaml")
    code, error = run_main(monkeypatch, capsys, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert "trackers: wandb needs an extra package; run pip install 'bequest[wandb]'" in error
    assert not (tmp_path / "run").exists()


class Failing:
    def __init__(self, *arguments):
        pass

    def log(self, step, values):
        if step > 3:
            raise OSError("the server is away")

    def close(self):
        pass


def test_one_that_fails_is_let_go(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trackers.OPEN, "tensorboard", Failing)
    world.run(tmp_path / "run", PLAIN, trackers=[{"name": "tensorboard"}])
    assert capsys.readouterr().err.count("tensorboard failed (the server is away); training goes on") == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_one_that_cannot_start_is_an_error(world, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError("no route")

    monkeypatch.setitem(trackers.OPEN, "tensorboard", refuse)
    with pytest.raises(RecipeError, match="tensorboard cannot start \\(no route\\)"):
        train(world.recipe(PLAIN, trackers=[{"name": "tensorboard"}]), tmp_path / "run")


def test_lines_become_numbers():
    line = {"step": 3, "stage": "train", "parts": {"distil": 1.5}, "valid": {"wiki": {"loss": 2.0}}}
    assert dict(trackers.flat(line)) == {"step": 3, "parts/distil": 1.5, "valid/wiki/loss": 2.0}
