"""The thread that makes the next batch: it changes no bit, hides no error and never looks past a measure."""

import threading
from dataclasses import dataclass, field

import pytest
import torch
from conftest import losses, same_bits, weights

from bequest.job.teach import teach
from bequest.teach.stored import Stored
from bequest.train import run as spine
from bequest.train.ahead import Ahead
from bequest.train.plan import Measure, Stage
from bequest.types import Batch, Clock, DataError, Rows


@dataclass
class Counted:
    """Batches and a loss that note which steps were made and prepared, and in which thread."""

    bad: int = -1
    made: list[int] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def at(self, clock: Clock) -> Batch:
        step = clock.step
        self.made.append(step)
        self.threads.add(threading.current_thread().name)
        if step == self.bad:
            raise DataError(f"step {step} cannot be made")
        tokens = torch.full((1, 4), step)
        none = torch.zeros(0, dtype=torch.long)
        return Batch(tokens, tokens * 0, Rows(none, none), 1, True, ("a",), (b"k" * 16,))

    def prepare(self, batch: Batch, clock: Clock) -> None:
        assert int(batch.tokens_BT[0, 0]) == clock.step
        assert clock.tokens == 4 * clock.step
        self.prepared.append(clock.step)


def stage_of(counted: Counted, steps: int = 6, every: int = 0) -> Stage:
    measure = Measure(every, lambda model, journal: {}) if every else None
    return Stage("one", counted, counted, steps, measure=measure)


def clock(step: int) -> Clock:
    return Clock(step, 6, tokens=4 * step, run_step=step, run_tokens=4 * step)


def settled(ahead: Ahead) -> None:
    """Wait for what the thread is making."""
    ahead._thread.submit(int).result()


def test_every_step_is_made_once_one_ahead():
    counted = Counted()
    with Ahead(stage_of(counted)) as ahead:
        for step in range(6):
            assert int(ahead(clock(step)).tokens_BT[0, 0]) == step
            settled(ahead)
            assert counted.made == list(range(min(step + 2, 6)))
    assert counted.prepared == counted.made
    assert threading.main_thread().name not in counted.threads


def test_never_past_the_next_measure():
    counted = Counted()
    with Ahead(stage_of(counted, every=3)) as ahead:
        for step in range(6):
            ahead(clock(step))
            settled(ahead)
            assert max(counted.made) == (step if step % 3 == 2 else min(step + 1, 5))


def test_any_step_can_be_the_next():
    """A resumed stage begins in the middle; what was made ahead for another step is not given."""
    with Ahead(stage_of(Counted())) as ahead:
        for step in (4, 1, 2, 2, 5, 0):
            assert int(ahead(clock(step)).tokens_BT[0, 0]) == step


def test_errors_come_with_their_own_step():
    counted = Counted(bad=2)
    with Ahead(stage_of(counted)) as ahead:
        ahead(clock(0))
        ahead(clock(1))
        with pytest.raises(DataError, match="step 2 cannot be made"):
            ahead(clock(2))


def test_an_error_in_a_step_that_never_comes_is_none():
    counted = Counted(bad=1)
    with Ahead(stage_of(counted)) as ahead:
        ahead(clock(0))
        settled(ahead)
    assert counted.made == [0, 1]


def test_an_error_in_the_step_leaves_no_thread():
    ahead = Ahead(stage_of(Counted()))

    def step() -> None:
        with ahead:
            ahead(clock(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert not any(thread.is_alive() for thread in ahead._thread._threads)


class InTime(Ahead):
    """Makes each batch when it is asked for."""

    def __call__(self, clock: Clock) -> Batch:
        return self._make(clock)


def stored(world, tmp_path) -> dict:
    changes = {"teachers__teacher": {"load": world.teacher["causal"], "store": str(tmp_path / "store")}}
    teach(world.recipe({"name": "ki", "until": 0.7}, **changes))
    return changes


@pytest.mark.parametrize("kind", ["stored", "measured"])
def test_prefetch_changes_no_bit(world, tmp_path, monkeypatch, kind):
    method = {"name": "ki", "until": 0.7}
    if kind == "stored":
        changes = stored(world, tmp_path)
    else:
        method = {"name": "ki", "shape": "constant", "start": 0.5, "compare_every": 0.25}
        changes = {"teachers__teacher": world.weak_teacher()}
    changes["student__dropout"] = 0.1
    world.run(tmp_path / "ahead", method, **changes)
    monkeypatch.setattr(spine, "Ahead", InTime)
    world.run(tmp_path / "in-time", method, **changes)
    assert same_bits(weights(tmp_path / "ahead"), weights(tmp_path / "in-time"))
    assert losses(tmp_path / "ahead") == losses(tmp_path / "in-time")


def test_a_runs_reading_errors_reach_its_caller(world, tmp_path, monkeypatch):
    """A store that is damaged while a run reads it: the error of the step, and the run goes on afterwards."""
    changes = stored(world, tmp_path)
    original, reads = Stored._entries, []

    def failing(self, key, source):
        reads.append(threading.current_thread().name)
        if len(reads) > 17:
            raise self.store.damaged(self.store.manifest.shards[0].name, "a test")
        return original(self, key, source)

    monkeypatch.setattr(Stored, "_entries", failing)
    with pytest.raises(DataError, match=r"is damaged \(\w+\.safetensors: a test\)"):
        world.run(tmp_path / "run", {"name": "ki", "until": 0.7}, **changes)
    assert all(name.startswith("ahead") for name in reads)  # decoding never keeps a step waiting
    monkeypatch.undo()
    world.run(tmp_path / "run", {"name": "ki", "until": 0.7}, **changes)
    world.run(tmp_path / "whole", {"name": "ki", "until": 0.7}, **changes)
    assert same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))
