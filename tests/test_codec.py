"""Entries <-> bytes: exact where it must be, as small as it can be, and rubbish is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bequest.teach.codec import STEP, Codec, Entries
from bequest.teach.layout import RUNS, Layout, fitted
from bequest.teach.signals import Form, entries, signal
from bequest.types import DataError

VOCABULARIES = (2, 5, 256, 50257, 131073, 262144, 1 << 20)


def coder(vocabulary: int, draws: int, scalars: int, values="6bit", frequent: int = 3) -> Codec:
    """A codec whose layout is neither in the ids' order nor of equal buckets."""
    order = np.random.default_rng(1).permutation(vocabulary)[:frequent]
    return Codec(vocabulary, draws, scalars, Layout(vocabulary, 3, 2, tuple(order.tolist())), values)


def random_entries(codec: Codec, sizes, rng) -> Entries:
    """Uniformly random sets of these sizes, with the values that the codec's kind has."""
    sizes = np.asarray(sizes, np.int64)
    ids = [np.sort(rng.choice(codec.vocabulary, k, replace=False)) for k in sizes]
    if codec.draws:
        values = [1 + rng.multinomial(codec.draws - k, np.full(k, 1 / k)) for k in sizes]
    else:
        values = [-15.75 * rng.random(k) for k in sizes]
    scalars = rng.uniform(-31, 31, (len(sizes), codec.scalars)).astype(np.float32)
    return Entries(sizes, np.concatenate(ids), np.concatenate(values).astype(np.float32), scalars)


def decoded(codec: Codec, block: bytes, rows: int) -> Entries:
    """Entries, the ids of every row in ascending order."""
    found = codec.decode(np.frombuffer(block, np.uint8), rows)
    order = np.lexsort([found.ids_E, np.repeat(np.arange(rows), found.sizes_R)])
    return Entries(found.sizes_R, found.ids_E[order], found.values_E[order], found.scalars_RS)


def assert_same(found: Entries, kept: Entries, value_error: float, scalar_error: float) -> None:
    assert np.array_equal(found.sizes_R, kept.sizes_R)
    assert np.array_equal(found.ids_E, kept.ids_E)
    assert np.abs(found.values_E - kept.values_E).max(initial=0) <= value_error
    assert np.abs(found.scalars_RS - kept.scalars_RS).max(initial=0) <= scalar_error


def shapes(vocabulary: int) -> dict[str, list[int]]:
    """Kept ids per row: ragged with none and all of them, one each, one row, many rows."""
    all_of_them = min(vocabulary, 5000)
    few = min(vocabulary, 40)
    return {
        "ragged": [0, 1, all_of_them, 0, few, 2, 0],
        "one id each": [1] * 9,
        "one row": [few],
        "one empty row": [0],
        "no rows": [],
        "many rows": [(7 * n) % (few + 1) for n in range(300)],
    }


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("values", ["6bit", "fp32"])
def test_round_trip_of_likeliest(vocabulary, values):
    rng, codec = np.random.default_rng(vocabulary), coder(vocabulary, 0, 3, values)
    for sizes in shapes(vocabulary).values():
        kept = random_entries(codec, sizes, rng) if sum(sizes) else empty(codec, len(sizes))
        found = decoded(codec, codec.encode(kept), len(sizes))
        quantised = values == "6bit"
        assert_same(found, kept, STEP / 2 if quantised else 0.0, 1 / 2048 + 1e-6 if quantised else 0.0)


def empty(codec: Codec, rows: int) -> Entries:
    scalars = np.ones((rows, codec.scalars), np.float32)
    return Entries(np.zeros(rows, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), scalars)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_round_trip_of_draws(vocabulary):
    rng, codec = np.random.default_rng(vocabulary), coder(vocabulary, 50, 2)
    for sizes in ([1], [min(vocabulary, 50)], [1 + n % min(vocabulary, 50) for n in range(200)]):
        kept = random_entries(codec, sizes, rng)
        found = decoded(codec, codec.encode(kept), len(sizes))
        assert_same(found, kept, 0.0, 1 / 2048 + 1e-6)


def test_every_id_of_a_whole_vocabulary():
    for vocabulary in (2, 5, 50257):
        codec = coder(vocabulary, 0, 1)
        kept = random_entries(codec, [vocabulary, 0, vocabulary], np.random.default_rng(0))
        assert_same(decoded(codec, codec.encode(kept), 3), kept, STEP / 2, 1e-3)


def test_extreme_ids_and_values_are_clipped_not_wrapped():
    codec = coder(1 << 20, 0, 2)
    ids, values = np.array([0, (1 << 20) - 1]), np.array([0.0, -1000.0], np.float32)
    scalars = np.array([[-np.inf, 100.0]], np.float32)
    found = decoded(codec, codec.encode(Entries(np.array([2]), ids, values, scalars)), 1)
    assert found.ids_E.tolist() == ids.tolist()
    assert found.values_E.tolist() == [0.0, -15.75]
    assert found.scalars_RS[0, 0] == -np.inf
    assert found.scalars_RS[0, 1] == pytest.approx(32.0, abs=1e-2)


def suited(vocabulary: int, draws: int, sample: Entries) -> Codec:
    """A codec that was fitted to a sample."""
    row_E = np.repeat(np.arange(len(sample.sizes_R)), sample.sizes_R)
    return Codec(vocabulary, draws, 2, fitted(vocabulary, row_E, sample.ids_E, 10_000))


@pytest.mark.parametrize(("ids", "bytes_per_row"), [(12, 34), (32, 78), (128, 269)])
def test_size_is_near_the_information_bound(ids, bytes_per_row):
    """Of sets that could be any: no id is more frequent than another."""
    rng = np.random.default_rng(ids)
    for draws in (0, 256):
        sample, kept = (random_entries(coder(50257, draws, 2), [ids] * 500, rng) for _ in range(2))
        codec = suited(50257, draws, sample)
        size = len(codec.encode(kept))
        assert size / codec.bound(kept) <= 1.05
        assert draws or size / 500 == pytest.approx(bytes_per_row, abs=1.0)


def test_frequent_ids_take_less_than_the_bound():
    rng = np.random.default_rng(0)
    order = rng.permutation(5000)
    sets = lambda: [np.unique(order[(5000 * rng.random(30) ** 8).astype(int)]) for _ in range(400)]
    sample, kept = (
        Entries(
            np.array([len(s) for s in some]), np.concatenate(some), np.zeros(sum(map(len, some)), np.float32), scalars
        )
        for some, scalars in ((sets(), np.zeros((400, 2), np.float32)) for _ in range(2))
    )
    codec = suited(5000, 0, sample)
    assert len(codec.encode(kept)) < 0.96 * codec.bound(kept)  # values and scalars, half of it, are the same
    assert len(codec.layout.frequent) >= 256


@pytest.mark.parametrize("vocabulary", [2, 5, 300, 50257, 1 << 20])
@pytest.mark.parametrize("run", RUNS[:4])
def test_a_layout_is_an_order_cut_into_buckets(vocabulary, run):
    layout = Layout(vocabulary, 2, run, coder(vocabulary, 0, 1, frequent=20).layout.frequent)
    ids = np.arange(vocabulary)
    ranks = layout.ranks(ids)
    assert np.array_equal(np.sort(ranks), ids)
    assert np.array_equal(layout.ids(ranks), ids)
    assert ranks[list(layout.frequent)].tolist() == list(range(len(layout.frequent)))
    assert layout.edges[-1] >= vocabulary > layout.edges[-2]


CODECS = [coder(5, 0, 1), coder(300, 0, 2), coder(300, 7, 2), coder(50257, 50, 2), coder(1 << 20, 0, 2, "fp32")]


def assert_refused_or_possible(codec: Codec, block: bytes, rows: int) -> None:
    """Bytes either raise DataError or are entries that a harvest could have kept."""
    try:
        found = decoded(codec, block, rows)
    except DataError:
        return
    assert found.sizes_R.shape == (rows,)
    assert len(found.ids_E) == len(found.values_E) == found.sizes_R.sum()
    assert found.scalars_RS.shape == (rows, codec.scalars)
    assert found.ids_E.min(initial=0) >= 0
    assert found.ids_E.max(initial=0) < codec.vocabulary
    for first, size in zip(np.cumsum(found.sizes_R) - found.sizes_R, found.sizes_R, strict=True):
        row = slice(first, first + size)
        assert (np.diff(found.ids_E[row]) > 0).all()  # no id twice
        assert not codec.draws or found.values_E[row].sum() == codec.draws


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(CODECS), st.binary(max_size=60), st.integers(0, 5))
def test_rubbish_is_refused(codec, block, rows):
    assert_refused_or_possible(codec, block, rows)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(CODECS), st.integers(0, 2**32), st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=3)
)
def test_damaged_blocks_are_refused_or_possible(codec, seed, flips):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, rng.integers(1, 5))
    block = bytearray(codec.encode(random_entries(codec, sizes, rng)))
    for place, bits in flips:
        block[place % len(block)] ^= bits
    assert_refused_or_possible(codec, bytes(block), len(sizes))
    assert_refused_or_possible(codec, bytes(block), len(sizes) + 1)
    assert_refused_or_possible(codec, bytes(block[:-1]), len(sizes))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
def test_quantising_costs_little(temperature, scale):
    """KL(exact signal || quantised signal), buckets with the rest, for flat and for peaked teachers."""
    logits = scale * torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(200, dtype=torch.long)
    said = {}
    for values in ("fp32", "6bit"):
        form = Form(kind="topk", vocabulary=1000, keep=32, top_p=1.0, draws=0, temperatures=(1.0, 2.0), values=values)
        codec = form.codec(Layout(1000, 5))
        kept = decoded(codec, codec.encode(entries(logits, target, form, None)), 200)
        found = signal(kept, form, temperature)
        said[values] = torch.cat([found.logp_NK, found.logrest_N[:, None]], 1).double()
    exact, quantised = said["fp32"], said["6bit"]
    extra = (exact.exp() * (exact - quantised)).sum(-1)
    assert extra.min() > -1e-4
    assert extra.mean() <= 0.005
