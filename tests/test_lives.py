"""What a sweep says of arms that live in stages."""

import math
from types import SimpleNamespace

import pytest

from bequest.compare import page, words
from bequest.compare.lives import life
from bequest.compare.outcome import measured


def lived(*losses, parts=("a", "b")):
    """A result with some AP's logarithms, and AP+ of the second part."""
    aps = [math.exp(loss) for loss in losses[: len(parts)]]
    return SimpleNamespace(life={"parts": list(parts), "AP": aps, "AP+": [None, *losses[len(parts) :]]})


def test_intervals_over_seeds_are_paired_with_the_baselines():
    own = {0: lived(1.0, 2.0, 5.0), 1: lived(1.2, 2.2, 7.0)}
    base = {0: lived(1.1, 2.1, 4.0), 1: lived(1.3, 2.3, 6.0)}
    found = life(own, base, 0.95)
    assert found["AP"][0][0] == pytest.approx(math.exp(1.1))
    assert found["AP ratio"][1] == pytest.approx([math.exp(-0.1)] * 3)  # the seeds differ, the pairs do not
    assert found["AP+"][0][0] == pytest.approx(6.0)
    assert found["AP+ gap"][0] == pytest.approx([1.0] * 3)


def test_other_parts_and_single_seeds_have_no_ratio():
    own = {0: lived(1.0, 2.0, 5.0), 1: lived(1.2, 2.2, 7.0)}
    assert life(own, {0: lived(1.0, 2.0, 5.0)}, 0.95)["AP ratio"] == [None, None]
    other = {seed: lived(1.0, 2.0, 5.0, parts=("a", "c")) for seed in own}
    assert life(own, other, 0.95)["AP+ gap"] == [None]
    assert life({0: lived(1.0, 2.0, 5.0)}, {0: lived(1.0, 2.0, 5.0)}, None)["AP ratio"][0] == [1.0, None, None]


def test_an_arm_with_a_run_of_one_part_has_none():
    assert life({0: lived(1.0, 2.0, 5.0), 1: SimpleNamespace(life=None)}, {}, 0.95) is None


def test_tables():
    own = life({0: lived(1.0, 2.0, 5.0)}, {}, None)
    results = {"baseline": "naive", "arms": {"naive": {"life": own}, "other": {}}}
    tables = dict(words.lives(results))
    assert [len(rows) for rows in tables.values()] == [2, 2]
    assert next(iter(tables.values())) == [["arm", "a", "b"], ["naive", f"{math.e:.2f}", f"{math.e**2:.2f}"]]
    assert list(words.lives({"baseline": "x", "arms": {"x": {}}})) == []
    assert "Learned and forgotten" in "".join(page._lives(results))


def test_all_sources_are_their_mean():
    valid = {"one": {"loss": 2.0}, "two": {"loss": 4.0}}
    assert measured(valid, "one", "loss") == 2.0
    assert measured(valid, "all", "loss") == 3.0
