"""Tokenizer, token store, packing, objectives, batches."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from conftest import make_vocabulary, sentences

from bequest.data import tokenizer, tokens
from bequest.data.batches import Batches, permuted
from bequest.data.objective import Causal, Masked
from bequest.data.pack import Pack
from bequest.types import DataError, Doc, ModelError


def docs(seed: int, count: int, source: str = "one"):
    return [Doc(t, source) for t in sentences(seed, count)]


def store(folder, vocabulary, seed=1, count=40, source="one"):
    return tokens.build(folder / f"{source}-{seed}-{count}", source, lambda: docs(seed, count, source), vocabulary)


# tokenizer


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_trained_tokenizer_round_trips_any_text(objective):
    vocabulary = make_vocabulary(objective)
    text = "größe 市 \U0001f600 <|endoftext|> <mask> \n\n  x"
    (ids,) = vocabulary.encode([text])
    assert vocabulary.tokenizer.decode(ids) == text
    assert not set(ids) & set(vocabulary.special)


def test_saved_tokenizer_is_the_same(tmp_path, vocabulary):
    vocabulary.tokenizer.save_pretrained(tmp_path)
    again = tokenizer.load(str(tmp_path))
    assert (again.identity, again.strings, again.begin, again.end) == (
        vocabulary.identity,
        vocabulary.strings,
        vocabulary.begin,
        vocabulary.end,
    )
    assert again.encode(["the house sees"]) == vocabulary.encode(["the house sees"])


def test_tokenizer_faults(tmp_path):
    with pytest.raises(ModelError, match="cannot load a tokenizer"):
        tokenizer.load(str(tmp_path))


def test_tokenizer_without_borders_is_refused(tmp_path, vocabulary):
    vocabulary.tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if not k.endswith("_token")})
    )
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no BOS, EOS, CLS or SEP"):
        tokenizer.load(str(tmp_path))


# token store


def test_store_holds_every_document(tmp_path, vocabulary):
    found = store(tmp_path, vocabulary)
    texts = sentences(1, 40)
    starts = [0, *found.ends[:-1]]
    for start, end, text in zip(starts, found.ends, texts, strict=True):
        ids = list(found.tokens[start:end])
        assert (ids[0], ids[-1]) == (vocabulary.begin, vocabulary.end)
        assert vocabulary.tokenizer.decode(ids[1:-1]) == text
    assert found.text_bytes[-1] == sum(len(t.encode()) for t in texts)


def test_store_is_made_once_and_knows_its_tokens(tmp_path, vocabulary):
    first = store(tmp_path, vocabulary)
    again = tokens.build(tmp_path / "one-1-40", "one", lambda: pytest.fail("read again"), vocabulary)
    assert again.digest == first.digest != store(tmp_path, vocabulary, seed=2).digest


def test_first_takes_whole_documents(tmp_path, vocabulary):
    whole = store(tmp_path, vocabulary)
    part = whole.first(1000)
    assert len(part.tokens) == part.ends[-1] >= 1000 > whole.ends[len(part.ends) - 2]
    assert whole.first(10**9).digest == whole.digest != part.digest


def test_empty_source(tmp_path, vocabulary):
    with pytest.raises(DataError, match="holds no document"):
        tokens.build(tmp_path / "empty", "one", list, vocabulary)


def test_damaged_store(tmp_path, vocabulary):
    store(tmp_path, vocabulary)
    (tmp_path / "one-1-40" / "ends").write_bytes(b"12345678")
    with pytest.raises(DataError, match="is damaged"):
        store(tmp_path, vocabulary)


def _slow_build(folder):
    tokens.PIECE_BYTES = 2000

    def slow():
        for doc in docs(1, 400):
            time.sleep(0.002)
            yield doc

    tokens.build(folder, "one", slow, make_vocabulary())


def test_killed_while_tokenising_goes_on(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE_BYTES", 2000)
    whole = tokens.build(tmp_path / "whole", "one", lambda: docs(1, 400), vocabulary)
    for wait in (0.25, 0.4):
        process = multiprocessing.get_context("fork").Process(target=_slow_build, args=(tmp_path / "killed",))
        process.start()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    done = json.loads((tmp_path / "killed" / "progress.json").read_text())
    assert 0 < done["documents"] < 400
    again = tokens.build(tmp_path / "killed", "one", lambda: docs(1, 400), vocabulary)
    assert again.digest == whole.digest
    assert np.array_equal(again.tokens, whole.tokens)
    assert np.array_equal(again.ends, whole.ends)


# packing


@pytest.mark.parametrize("length", [7, 32, 5000])
def test_every_token_is_a_target_once(tmp_path, vocabulary, length):
    found = store(tmp_path, vocabulary)
    pack = Pack(found, length, 1)
    targets = []
    for number in range(len(pack)):
        window, segments = pack.window(number)
        targets += list(window[1:][segments[1:] >= 0])
    assert targets == list(found.tokens[1:])


def test_segments_are_documents(tmp_path, vocabulary):
    found = store(tmp_path, vocabulary)
    pack = Pack(found, 32, 1)
    document_of = np.searchsorted(found.ends, np.arange(len(found.tokens)), side="right")
    for number in range(len(pack)):
        _, segments = pack.window(number)
        real = document_of[number * 32 : number * 32 + 33]
        assert list(segments[: len(real)]) == list(real - real[0])
        assert (segments[len(real) :] == -1).all()


# objectives


def test_causal_targets_stay_inside_their_document(tmp_path, vocabulary):
    pack = Pack(store(tmp_path, vocabulary), 32, 1)
    for number in range(len(pack)):
        window, segments = pack.window(number)
        inputs, _, positions, targets = Causal()(window, segments, (0,))
        assert vocabulary.begin not in targets or vocabulary.begin == vocabulary.end
        for position, target in zip(positions, targets, strict=True):
            assert segments[position] == segments[position + 1] >= 0
            assert window[position + 1] == target
            assert inputs[position] == window[position]


def test_masked_shares_and_repeatability(tmp_path):
    vocabulary = make_vocabulary("masked")
    pack = Pack(store(tmp_path, vocabulary, count=400), 128, 0)
    objective = Masked(vocabulary, 0.15)
    chosen = fate = masked = kept = eligible = 0
    for number in range(len(pack)):
        window, segments = pack.window(number)
        tokens_T, _, positions, targets = objective(window, segments, 1)
        again = objective(window, segments, 1)
        assert np.array_equal(tokens_T, again[0])
        assert np.array_equal(targets, window[positions])
        assert not np.isin(targets, vocabulary.special).any()
        untouched = np.setdiff1d(np.arange(128), positions)
        assert np.array_equal(tokens_T[untouched], window[untouched])
        eligible += ((segments >= 0) & ~np.isin(window, vocabulary.special)).sum()
        chosen += len(positions)
        masked += (tokens_T[positions] == vocabulary.mask).sum()
        kept += (tokens_T[positions] == targets).sum()
        fate += np.isin(tokens_T[positions], vocabulary.special).sum()
    assert chosen / eligible == pytest.approx(0.15, abs=0.01)
    assert masked / chosen == pytest.approx(0.8, abs=0.02)
    assert kept / chosen == pytest.approx(0.1, abs=0.02)
    assert fate == masked
    other = objective(*pack.window(0), 2)
    assert not np.array_equal(other[2], objective(*pack.window(0), 1)[2])


# batches


@pytest.mark.parametrize("count", [1, 2, 3, 17, 1000, 4097])
def test_order_is_a_permutation(count):
    everything = permuted(np.arange(count), count, 5)
    assert sorted(everything) == list(range(count))
    if count > 16:
        assert not np.array_equal(everything, permuted(np.arange(count), count, 6))
        assert not np.array_equal(everything, np.arange(count))


def batches(tmp_path, vocabulary, **more):
    packs = tuple(Pack(store(tmp_path, vocabulary, seed, 60, name), 64, 1) for seed, name in ((1, "one"), (2, "two")))
    return Batches(packs, Causal(), 4, **{"seed": 0, **more})


def test_a_batch_is_a_function_of_its_step(tmp_path, vocabulary):
    all_of_them = batches(tmp_path, vocabulary)
    for step in (0, 3, 1000):
        assert torch.equal(all_of_them[step].tokens_BT, batches(tmp_path, vocabulary)[step].tokens_BT)
        assert torch.equal(all_of_them.skip(step)[2].tokens_BT, all_of_them[step + 2].tokens_BT)
    assert not torch.equal(all_of_them[0].tokens_BT, batches(tmp_path, vocabulary, seed=1)[0].tokens_BT)


def test_every_sequence_once_per_epoch(tmp_path, vocabulary):
    found = batches(tmp_path, vocabulary)
    sequences = found.count
    keys = [k for step in range(-(-2 * sequences // 4)) for k in found[step].keys][: 2 * sequences]
    first, second = keys[:sequences], keys[sequences:]
    assert sorted(first) == sorted(second)
    assert len(set(first)) == sequences
    assert first != second


def test_one_source_per_sequence(tmp_path, vocabulary):
    found = batches(tmp_path, vocabulary)
    assert {s for step in range(20) for s in found[step].sources} == {"one", "two"}
    assert {s for step in range(20) for s in found.only("two")[step].sources} == {"two"}


def test_reserved_sequences_are_never_trained_on(tmp_path, vocabulary):
    whole = batches(tmp_path, vocabulary)
    rest, held = whole.reserve(10)
    reserved = {k for batch in held for k in batch.keys}
    assert len(reserved) == 10
    trained = {k for batch in rest.once() for k in batch.keys}
    assert trained | reserved == {k for batch in whole.once() for k in batch.keys}
    assert not trained & reserved
    assert {k for batch in batches(tmp_path, vocabulary, seed=9).reserve(10)[1] for k in batch.keys} == reserved


def test_keys_know_the_text_and_the_packing(tmp_path, vocabulary):
    a, b = (Pack(store(tmp_path, vocabulary), length, 1) for length in (64, 96))
    keys = [{k for batch in Batches((p,), Causal(), 1, 0).once() for k in batch.keys} for p in (a, b)]
    assert not keys[0] & keys[1]
    mixed = Batches((Pack(store(tmp_path, vocabulary), 64, 1),), Causal(), 3, seed=4)
    assert {k for batch in mixed.once() for k in batch.keys} == keys[0]


def test_micro_batches_cut_rows_with_their_sequences(tmp_path, vocabulary):
    batch = batches(tmp_path, vocabulary)[0]
    parts = list(batch.micro(3))
    assert [len(p.keys) for p in parts] == [3, 1]
    assert torch.equal(torch.cat([p.rows.target_N for p in parts]), batch.rows.target_N)
    assert torch.equal(
        torch.cat([p.tokens_BT.flatten()[p.rows.index_N] for p in parts]), batch.tokens_BT.flatten()[batch.rows.index_N]
    )
    assert {p.rows_total for p in parts} == {len(batch.rows.index_N)}
