"""Fine-tuning on a labelled task."""

import json
import random

import pytest
from conftest import write_jsonl

from bequest.cli.look import probe as command
from bequest.job import probe as probes
from bequest.job.probe import Score, Texts, _task, mean, score
from bequest.types import Clock, DataError


def probe(*arguments):
    return list(probes.probe(*arguments))


def write(path, labels, seed=0):
    """Texts whose words tell the label."""
    rng = random.Random(seed)
    words = lambda label: " ".join(["river", "engine"][label] for _ in range(rng.randrange(2, 6)))
    lines = [json.dumps({"text": words(label), "label": label}) for label in labels]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def task(world):
    return write(world.folder / "task.jsonl", [0, 1] * 40), write(world.folder / "dev.jsonl", [1, 0] * 10, 5)


@pytest.mark.parametrize(("objective", "epochs", "rate"), [("causal", 15, 1e-2), ("masked", 60, 3e-3)])
def test_it_learns_a_task(world, task, objective, epochs, rate):
    training, dev = map(str, task)
    scores = probe(world.teacher[objective], training, dev, 2, epochs, rate)
    assert min(one.accuracy for one in scores) > 0.9
    assert scores == probe(world.teacher[objective], training, dev, 2, epochs, rate)  # the same seeds, the same bits
    guess = probe(world.teacher[objective], training, dev, 1, 1, 1e-9)
    assert guess[0].accuracy <= 0.7  # it is learned, not read off


def test_every_text_is_seen_once_in_an_epoch(world, task, vocabulary):
    found = _task(str(task[0]), vocabulary, 7, 16)
    texts = Texts(found, True, 0, seed=3, size=10)
    epochs = [[key for step in range(8) for key in texts.at(Clock(8 * e + step, 16)).keys] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [n.to_bytes(8, "little") for n in range(80)]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("causal", [True, False])
def test_rows_are_the_ends_or_the_begins(world, task, vocabulary, causal):
    found = _task(str(task[0]), vocabulary, 7, 16)
    batch = Texts(found, causal, 0, seed=0).of([3, 1, 4])
    tokens = batch.tokens_BT.flatten()[batch.rows.index_N].tolist()
    assert tokens == ([vocabulary.end] * 3 if causal else [7] * 3)
    assert batch.rows.target_N.tolist() == [found.labels[n] for n in (3, 1, 4)]
    assert (batch.segments_BT == -1).sum(1).tolist() == [
        batch.tokens_BT.shape[1] - len(found.ids[n]) for n in (3, 1, 4)
    ]


def test_scores_by_hand():
    found = score([0, 0, 1, 1], [0, 1, 1, 1])
    assert found == Score(0.75, pytest.approx((2 / 3 + 4 / 5) / 2))
    assert score([2, 2], [0, 0]) == Score(0.0, 0.0)
    assert mean([Score(0.5, 0.2), Score(0.7, 0.4)]) == (
        Score(pytest.approx(0.6), pytest.approx(0.3)),
        Score(pytest.approx(0.02**0.5), pytest.approx(0.02**0.5)),
    )


def test_the_command_says_every_seed(world, task, capsys):
    command(world.teacher["causal"], str(task[0]), task[1], 2, 1, 1e-3)
    said = capsys.readouterr().out
    assert said.count("seed ") == 2
    assert "2 seeds: accuracy" in said


def test_files_that_are_no_task(world, task, tmp_path):
    unlabelled = write_jsonl(tmp_path / "unlabelled.jsonl", ["a text"])
    for bad, sentence in ((unlabelled, "line 1: no label"), (tmp_path / "none.jsonl", "No such file")):
        with pytest.raises(DataError, match=sentence):
            probe(world.teacher["causal"], str(bad), str(task[1]), 1, 1, 1e-3)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 2}\n')
    with pytest.raises(DataError, match="the label '2', which nothing was trained on"):
        probe(world.teacher["causal"], str(task[0]), str(other), 1, 1, 1e-3)
    single = write(tmp_path / "single.jsonl", [1, 1])
    with pytest.raises(DataError, match="one label, '1', alone"):
        probe(world.teacher["causal"], str(single), str(task[1]), 1, 1, 1e-3)
    with pytest.raises(DataError, match=r"no prompt for the source 'wiki' \(there are: none at all\)"):
        probe(world.teacher["causal"], "wiki=task.jsonl", str(task[1]), 1, 1, 1e-3)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no labelled text"):
        probe(world.teacher["causal"], str(tmp_path / "empty.jsonl"), str(task[1]), 1, 1, 1e-3)
