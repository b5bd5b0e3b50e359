"""A whole sweep, as its users run it: processes, kills, results."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import run_main
from test_look import output

from bequest.cli.compare import _mine
from bequest.types import RecipeError

SWEEP = {
    "name": "tiny",
    "recipe": "base.yaml",
    "rates": [0.01],
    "seeds": [0],
    "confidence": None,
    "baseline": "scratch",
    "predecessors": {"small": {"set": {"student.layers": 1, "train.tokens": 1024}, "seeds": [0]}},
    "arms": {
        "scratch": {},
        "ki": {"stored": True, "set": {"method": {"name": "ki"}, "teachers.teacher.load": "arm:small"}},
    },
    "price": {"per_hour": 3.0, "currency": "EUR"},
}


def command(folder, *more):
    return [sys.executable, "-m", "bequest", "compare", "sweep.yaml", "--out", "out", "--jobs", "2", *more]


def compare(folder, *more, **environment):
    return subprocess.run(
        command(folder, *more),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=200,
    )


def at_work(folder: Path) -> list[int]:
    """The processes of runs in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                line, where = (process / "cmdline").read_bytes(), (process / "cwd").resolve()
            except OSError:
                continue
            if where == folder and b"bequest\0" in line:
                found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    found = tmp_path_factory.mktemp("sweep")
    raw = world.raw({"name": "plain"}, eval__every_tokens=256)
    raw |= {"teachers": {}, "tokenizer": {"load": world.teacher["causal"]}}
    (found / "base.yaml").write_text(json.dumps(raw))
    (found / "sweep.yaml").write_text(json.dumps(SWEEP))
    return found


@pytest.fixture(scope="module")
def whole(folder):
    """What an uninterrupted sweep says and leaves."""
    found = compare(folder)
    assert found.returncode == 0, found.stderr
    return found


def test_a_sweep_writes_what_came_out(folder, whole):
    results = json.loads((folder / "out" / "tiny" / "results.json").read_text())
    clock = json.loads((folder / "out" / "tiny" / "clock.json").read_text())
    assert set(results["arms"]) == {"scratch", "ki"}
    ki = results["arms"]["ki"]
    assert [run["seed"] for run in ki["runs"]] == [0]
    end = ki["runs"][0]["curve"][-1]
    assert end["student_flops"] < end["all_flops"] < end["counted_flops"]
    assert end["all_flops"] == end["student_flops"] + ki["runs"][0]["harvest_flops"]
    assert end["counted_flops"] == end["all_flops"] + results["predecessors"]["small"]["all_flops"]
    assert results["predecessors"]["small"]["loss"] == ki["teacher"]
    assert set(ki["verdicts"]) == {"tokens", "student_flops", "all_flops", "counted_flops"}
    for sentence in [*results["sentences"], *clock["sentences"]]:
        assert sentence["text"] in whole.stdout
    assert "about 3 runs" in whole.stderr
    assert (folder / "out" / "tiny" / "index.html").exists()
    command = next(run["command"] for run in results["arms"]["scratch"]["runs"])
    run = Path(command.split("--out ")[1].split()[0])
    assert (folder / run / "summary.json").exists()  # an ordinary run folder, made by an ordinary command


def test_finished_runs_are_never_repeated(folder, whole, monkeypatch, capsys):
    runs = folder / "out" / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.jsonl")}
    results = (folder / "out" / "tiny" / "results.json").read_bytes()
    monkeypatch.chdir(folder)
    output(monkeypatch, capsys, *command(folder)[3:])  # in this process: no run is made
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.jsonl")} == before
    assert (folder / "out" / "tiny" / "results.json").read_bytes() == results


def killed(folder: Path, with_its_runs: bool, moment: float) -> None:
    """Begin the sweep, or go on with it, and kill it some moments after one of its runs has begun to train."""
    finished = len(list((folder / "out" / "runs").glob("*/summary.json")))
    started = subprocess.Popen(command(folder), cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(list((folder / "out" / "runs").glob("*/metrics.jsonl"))) <= finished:
        assert started.poll() is None
        time.sleep(0.05)
    time.sleep(moment)
    started.send_signal(signal.SIGKILL)
    started.wait()
    if with_its_runs:
        for process in at_work(folder):
            os.kill(process, signal.SIGKILL)


def test_a_killed_sweep_goes_on_to_the_same_results(folder, whole):
    """Killed with its runs, then alone: those runs go on, and the next sweep waits for them instead of doing them twice."""
    kept = (folder / "out" / "tiny" / "results.json").read_bytes()
    shutil.rmtree(folder / "out")
    killed(folder, True, random.uniform(0.0, 1.0))
    killed(folder, False, random.uniform(0.0, 1.0))
    found = compare(folder)
    assert found.returncode == 0, found.stderr
    assert (folder / "out" / "tiny" / "results.json").read_bytes() == kept
    assert not at_work(folder)


def test_one_asked_to_stop_saves_its_runs(folder, whole, tmp_path):
    started = subprocess.Popen(
        [*command(folder)[:-4], "--out", str(tmp_path / "out"), "--jobs", "2"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((tmp_path / "out" / "runs").glob("*/log.txt")):
        assert started.poll() is None
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    assert "run the same command again" in started.communicate(timeout=60)[1]
    assert started.returncode == 128 + signal.SIGTERM
    assert not at_work(folder)


def test_arms_are_shared_out(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert _mine(("a", "b", "c"), None) == ("a", "b", "c")
    assert _mine(("a", "b", "c"), 1) == ("b",)
    with pytest.raises(RecipeError, match="--index 3: there are 3 arms, numbered from 0"):
        _mine(("a", "b", "c"), 3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _mine(("a", "b", "c"), None) == ("b",)


def test_a_run_folder_of_another_recipe_stops_the_sweep_with_a_sentence(folder, whole, monkeypatch, capsys):
    run = next(path for path in (folder / "out" / "runs").iterdir() if path.name.startswith("plain"))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("sequence: 32", "sequence: 64"))
    monkeypatch.chdir(folder)
    code, error = run_main(monkeypatch, capsys, *command(folder)[3:])
    (run / "recipe.yaml").write_text(recipe)
    assert code == 2
    assert "belongs to another recipe: data.sequence was 64 and is 32" in error
