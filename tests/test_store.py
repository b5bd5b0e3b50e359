"""Stores: what is harvested is what is learned from, whoever asks; damage and mistakes are named; kills leave no trace."""

import errno
import json
import math
import os
import random
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import laws
import numpy as np
import pytest
import torch
from conftest import World, losses, make_model, make_vocabulary, same_bits, sentences, weights, write_jsonl
from test_cli import run_main

from bequest import cli, config
from bequest.config import decode
from bequest.device import Place
from bequest.files import replace_bytes
from bequest.job.prepare import prepare
from bequest.job.teach import teach
from bequest.loss import terms
from bequest.recipe import Recipe
from bequest.sense import problems
from bequest.teach import harvest as harvests
from bequest.teach import store as stores
from bequest.teach.codec import STEP
from bequest.teach.live import Live
from bequest.teach.signals import Form
from bequest.teach.store import open_store
from bequest.teach.stored import Stored
from bequest.types import DataError, FolderError, ModelError, RecipeError, Rows

KI = {"name": "ki", "until": 1.0}
SMALL = {"train__tokens": 512, "train__save_every_tokens": 0}
TOPK = {"kind": "topk", "keep": 8, "shard_tokens": 128, "temperatures": [1.0, 2.0]}


def spec(world: World, folder: Path, objective: str = "causal", **more) -> dict:
    return {"load": world.teacher[objective], "store": str(folder), **more}


def harvest(world: World, folder: Path, objective: str = "causal", method=KI, **changes):
    """The store that a small recipe makes in a folder."""
    changes = {**SMALL, "teach": TOPK, "teachers__teacher": spec(world, folder, objective), **changes}
    return teach(world.recipe(method, objective, **changes))["teacher"]


def learn(world: World, out: Path, folder: Path, objective: str = "causal", method=KI, **changes) -> dict:
    """A run that has the store alone."""
    return world.run(out, method, objective, **{**SMALL, "teachers__teacher": {"store": str(folder)}, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def kept(world, tmp_path_factory) -> Path:
    """A store of four shards."""
    folder = tmp_path_factory.mktemp("kept") / "store"
    assert len(harvest(world, folder).manifest.shards) == 4
    return folder


@pytest.fixture
def copy(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "store"))


# What is learned from a store.


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_quantised_signals_are_within_their_step(world, tmp_path, objective, temperature):
    """Each log-probability within the step both ways (its own error and its normaliser's), hence loss and gradient, too."""
    path = laws.learned(world, objective)
    found = harvest(
        world, tmp_path / "store", objective, teachers__teacher={"load": path, "store": str(tmp_path / "store")}
    )
    changes = {"teachers__teacher": {"load": path, "store": str(tmp_path / "store")}, "teach": TOPK}
    batch = prepare(world.recipe(KI, objective, **SMALL, **changes)).batches[1]
    live = Live(lambda: laws.world_student(world, objective), world.vocabulary[objective].size, 8, nullcontext)
    said = [t(batch, temperature)[slice(None)] for t in (live, Stored(lambda: found))]
    buckets = []
    for one in said:
        order = one.ids_NK.argsort(-1)
        buckets.append(torch.cat([one.logp_NK.gather(1, order), one.logrest_N[:, None]], 1))
    assert torch.equal(*(one.ids_NK.sort(-1).values for one in said))
    delta = STEP / temperature + 1e-3
    assert (buckets[0] - buckets[1])[:, :-1].abs().max() <= delta
    assert (buckets[0] - buckets[1])[:, -1].abs().max() <= 2e-3

    student = torch.randn(len(batch.rows.index_N), world.vocabulary[objective].size)
    results = [laws.gradient(terms.Divergence(temperature, 1.0), student, one, batch.rows.target_N) for one in said]
    moved = (results[0][1] - results[1][1]).abs().sum(-1) * temperature
    assert moved.max() <= math.exp(delta) - 1
    assert moved.mean() <= STEP / 2
    predicted = (student / temperature).log_softmax(-1)
    farthest = (said[0].logp_NK - predicted.gather(1, said[0].ids_NK)).abs().amax(-1)
    assert ((results[0][0] - results[1][0]).abs() <= delta + (math.exp(delta) - 1) * farthest).all()


def test_a_store_of_everything_trains_like_its_teacher(world, tmp_path):
    every = {"kind": "topk", "keep": 0, "values": "fp32"}
    for objective, method in (("causal", {**KI, "temperature": 2.0}), ("masked", KI)):
        folder = tmp_path / objective
        harvest(world, folder / "store", objective, method, teach=every)
        learn(world, folder / "stored", folder / "store", objective, method, train__micro_batch_tokens=32)
        world.run(folder / "live", method, objective, **SMALL)
        for live, stored in zip(losses(folder / "live"), losses(folder / "stored"), strict=True):
            assert (live[1] is None) == (stored[1] is None)
            assert live[1] is None or stored[1] == pytest.approx(live[1], rel=1e-5)


def test_a_step_at_the_first_weights_equals_the_dense_one(world, tmp_path):
    store = harvest(world, tmp_path / "store", teach={"kind": "topk", "keep": 0, "values": "fp32"})
    batch = prepare(world.recipe(KI, **SMALL)).batches[0]
    live = Live(lambda: make_model("llama", world.vocabulary["causal"], 7), 300, 0, nullcontext)
    student = torch.randn(len(batch.rows.index_N), 300)
    dense, stored = (
        laws.gradient(terms.Divergence(1.0, 1.0), student, t(batch, 1.0)[slice(None)])
        for t in (live, Stored(lambda: store))
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(dense, stored, strict=True))


def test_a_temperature_that_is_not_held(world, tmp_path, kept):
    with pytest.raises(ModelError, match="hold temperature 1, 2, not 3"):
        learn(world, tmp_path / "run", kept, method={**KI, "temperature": 3.0})
    learn(world, tmp_path / "run", kept, method={**KI, "temperature": 2.0})


def test_windows_without_a_row(world):
    """A short masked window may have nothing to predict."""
    batch = prepare(world.recipe({"name": "plain"})).batches[0].of([0])
    none = torch.zeros(0, dtype=torch.long)
    batch = replace(batch, rows=Rows(none, none))
    live = Live(lambda: make_model("llama", world.vocabulary["causal"]), 300, 0, nullcontext)
    for kind in ({"kind": "topk", "keep": 8, "draws": 0}, {"kind": "sampled", "keep": 0, "draws": 5}):
        form = Form(vocabulary=300, top_p=1.0, temperatures=(1.0,), values="6bit", **kind)
        found = harvests.Here(live, Place("cpu", "fp32")).ask(batch, form, 0)
        assert len(found.sizes_R) == len(found.ids_E) == 0


# Students that the harvest did not know.


def little(folder: Path) -> dict:
    """A text of one source, small enough for several epochs."""
    path = write_jsonl(folder / "little.jsonl", sentences(4, 6))
    return {"data__train": [{"path": str(path)}], "eval__tokens": 100}


@pytest.mark.parametrize(
    ("objective", "more"),
    [("causal", {}), ("masked", {"data__masks": "static"}), ("masked", {})],
    ids=["causal", "static masks", "new masks"],
)
def test_other_seeds_batches_and_epochs_find_every_key(world, tmp_path, objective, more):
    text = {**little(tmp_path), **more}
    count = prepare(world.recipe(KI, objective, **SMALL, **text)).batches.count
    tokens = 128 * (2 * count // 4)
    changes = {**text, "train__tokens": tokens}
    shorter = {**KI, "until": 0.6}  # ends in the second epoch, which is kept whole
    harvest(world, tmp_path / "store", objective, shorter, teach={**TOPK, "sequences": "all"}, **changes)
    for seed, size in ((0, 128), (5, 32), (6, 256)):
        learn(
            world, tmp_path / str(seed), tmp_path / "store", objective, seed=seed, train__batch_tokens=size, **changes
        )
    longer = {**changes, "train__tokens": 2 * tokens, "seed": 7}
    if objective == "causal" or "data__masks" in more:
        learn(world, tmp_path / "longer", tmp_path / "store", objective, **longer)
    else:  # a third epoch has masks of its own
        with pytest.raises(DataError, match="lacks"):
            learn(world, tmp_path / "longer", tmp_path / "store", objective, **longer)


def test_what_was_not_asked_is_not_there(world, tmp_path, kept):
    with pytest.raises(DataError, match=r"the store .* lacks .*bequest teach RECIPE adds"):
        learn(world, tmp_path / "run", kept, seed=1)


def test_a_longer_schedule_only_adds_shards(world, copy):
    before, names = content(copy), {p.name: p.stat().st_mtime_ns for p in copy.glob("*.safetensors")}
    store = harvest(world, copy, train__tokens=1024)
    assert len(store.manifest.shards) == 8
    for name, when in names.items():
        assert (copy / name).read_bytes() == before[name]
        assert (copy / name).stat().st_mtime_ns == when
    assert harvest(world, copy).manifest == store.manifest


def test_a_schedule_that_is_a_little_longer_adds_only_what_is_missing(world, tmp_path):
    """Also where the last shard was not full, and where a shard is lost in between."""
    folder, seven = tmp_path / "store", {**TOPK, "shard_tokens": 7 * 32}
    harvest(world, folder, teach=seven)
    first = content(folder)
    store = harvest(world, folder, teach=seven, train__tokens=1024)
    assert [store.manifest.total("sequences"), len(store.manifest.shards)] == [32, 6]
    whole = content(folder)
    assert all(whole[name] == held for name, held in first.items() if name.endswith(".safetensors"))
    (folder / sorted(name for name in whole if name not in first)[0]).unlink()
    harvest(world, folder, teach=seven, train__tokens=1024)
    assert content(folder) == whole


def test_every_sequence_is_kept_once(kept):
    store = open_store(kept)
    keys = [bytes(key) for shard in store._index.shards for key in shard.keys]
    assert len(keys) == len(set(keys)) == store.manifest.total("sequences") == 16
    store.verify()


@pytest.mark.parametrize("control", ["renormalise", "shuffle", "smooth", "uniform"])
def test_controls_over_a_store(world, tmp_path, kept, control):
    plain = learn(world, tmp_path / "plain", kept)
    placebo = learn(world, tmp_path / "run", kept, teachers__teacher={"store": str(kept), "control": control})
    assert placebo["valid"] != plain["valid"]


def test_an_untrained_teachers_store_is_another_one(world, tmp_path, kept):
    fresh, folder = {"control": "untrained"}, tmp_path / "store"
    untrained = {"teachers__teacher": spec(world, folder, **fresh)}
    store = harvest(world, folder, **untrained)
    (teacher,) = (store.manifest.teacher,)
    assert teacher.weights == f"untrained {open_store(kept).manifest.teacher.weights}"
    assert (teacher.lineage["tokens"], teacher.lineage["flops"]) == (0, 0.0)
    said = [one.entries(one.sample(1)[0]).scalars_RS for one in (store, open_store(kept))]
    assert not np.array_equal(*said)
    learn(world, tmp_path / "run", folder, **untrained)
    with pytest.raises(FolderError, match=r"is another one: its teacher\.weights is 'untrained"):
        harvest(world, folder)
    for held, more in ((kept, fresh), (folder, {})):
        with pytest.raises(FolderError, match=r"is another one: its teacher\.weights"):
            learn(world, tmp_path / "other", held, teachers__teacher=spec(world, held, **more))


def test_an_untrained_teachers_store_stays_another_one_when_its_model_is_gone(world, tmp_path):
    model = Path(shutil.copytree(world.teacher["causal"], tmp_path / "model"))
    both = {"load": str(model), "store": str(tmp_path / "store")}
    harvest(world, tmp_path / "store", teachers__teacher={**both, "control": "untrained"})
    shutil.rmtree(model)
    learn(world, tmp_path / "run", tmp_path / "store", teachers__teacher={**both, "control": "untrained"})
    with pytest.raises(FolderError, match=r"is another one: its teacher\.weights"):
        learn(world, tmp_path / "other", tmp_path / "store", teachers__teacher=both)


def test_comparing_needs_the_model_beside_its_store(world, tmp_path):
    method, folder = {**KI, "compare_every": 0.25}, tmp_path / "store"
    harvest(world, folder, method=method)
    with pytest.raises(RecipeError, match="one model as teacher"):
        learn(world, tmp_path / "alone", folder, method=method)
    assert learn(world, tmp_path / "both", folder, method=method, teachers__teacher=spec(world, folder))["valid"]


def test_a_run_is_extended_with_its_store(world, tmp_path, copy):
    """More shards are no other store."""
    method = {"name": "ki", "shape": "constant", "start": 0.5}
    constant = {"method": method, "train__schedule": {"name": "constant", "warmup": 0.0}}
    harvest(world, copy, method=method)
    learn(world, tmp_path / "run", copy, **constant)
    with pytest.raises(DataError, match="lacks"):
        learn(world, tmp_path / "run", copy, **constant, train__tokens=1024)
    harvest(world, copy, method=method, train__tokens=1024)
    learn(world, tmp_path / "run", copy, **constant, train__tokens=1024)
    learn(world, tmp_path / "whole", copy, **constant, train__tokens=1024)
    assert same_bits(weights(tmp_path / "run"), weights(tmp_path / "whole"))


# Many writers, and kills.


def forked(recipe, rank: int = 0, ranks: int = 1, syncs: float = math.inf) -> int:
    """A process that harvests; it has everything imported already. It kills itself at its so-manieth fsync."""
    pid = os.fork()
    if pid == 0:
        code, original, done = 1, os.fsync, []

        def fsync(handle: int) -> None:
            done.append(handle)
            if len(done) >= syncs:
                os.kill(os.getpid(), signal.SIGKILL)
            original(handle)

        try:
            os.fsync = fsync
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
            teach(recipe)
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_at_once_make_the_bytes_of_one(world, tmp_path):
    changes = {**SMALL, "teach": {**TOPK, "shard_tokens": 32, "kind": "sampled", "keep": 0, "temperatures": []}}
    for _ in range(2):
        both, one = ({**changes, "teachers__teacher": spec(world, tmp_path / name)} for name in ("both", "one"))
        pids = [forked(world.recipe(KI, **both), rank, 2) for rank in (0, 1)]
        assert [ended(pid) for pid in pids] == [0, 0]
        teach(world.recipe(KI, **one))
        assert content(tmp_path / "both") == content(tmp_path / "one")
        shutil.rmtree(tmp_path / "both")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_twenty_times_then_the_same_bytes(world, tmp_path):
    changes = {"train__tokens": 3072, "teach": {"kind": "sampled", "shard_tokens": 32}}
    recipe = world.recipe(KI, **changes, teachers__teacher=spec(world, tmp_path / "killed"))
    teach(world.recipe(KI, **changes, teachers__teacher=spec(world, tmp_path / "whole")))
    whole, folder, rng, kills = content(tmp_path / "whole"), tmp_path / "killed", random.Random(0), 0
    for syncs in range(1, 11):  # before and after each file takes its name
        kills += ended(forked(recipe, syncs=syncs)) == -signal.SIGKILL
    for attempt in range(10):
        seen = set(content_names(folder))
        pid, until = forked(recipe), time.monotonic() + 20
        while attempt and set(content_names(folder)) <= seen and time.monotonic() < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.005 if attempt else 0.1))
        os.kill(pid, signal.SIGKILL)
        kills += ended(pid) == -signal.SIGKILL
    assert kills >= 18
    assert len(list(folder.glob("*.safetensors"))) < 96, "the last kill came too late to matter"
    teach(recipe)
    assert content(folder) == whole


def content_names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


# Damage.


def read_all(folder: Path) -> None:
    """Open a store and read every answer."""
    store = open_store(folder)
    for shard in store._index.shards:
        for key in shard.keys:
            store.entries(bytes(key))


def test_every_flipped_bit_is_noticed_and_mended(world, copy):
    whole = content(copy)
    names = sorted(name for name in whole if name.endswith(".safetensors"))
    rng = random.Random(0)
    places = [(n, p) for n in names for p in (0, 3, 8, 40, 120, len(whole[n]) - 1)]
    places += [(name := rng.choice(names), rng.randrange(len(whole[name]))) for _ in range(60)]
    for name, place in places:
        broken = bytearray(whole[name])
        broken[place] ^= 1 << rng.randrange(8)
        (copy / name).write_bytes(bytes(broken))
        with pytest.raises(DataError, match=rf"is damaged \({name}: .*delete that file and run bequest teach again"):
            read_all(copy)
        with pytest.raises(DataError, match=name):
            open_store(copy).verify()
        (copy / name).write_bytes(whole[name])
    read_all(copy)


@pytest.mark.parametrize("how", ["deleted", "truncated", "emptied", "flipped in its payload", "flipped in its index"])
def test_a_damaged_shard_is_named_and_mended(world, copy, tmp_path, how):
    whole = content(copy)
    path = sorted(copy.glob("*.safetensors"))[1]
    broken = bytearray(path.read_bytes())
    if how == "truncated":
        broken = broken[: len(broken) // 2]
    if how == "emptied":
        broken = bytearray()
    if "flipped" in how:
        broken[-20 if "payload" in how else 8 + int.from_bytes(broken[:8], "little") + 5] ^= 4
    path.write_bytes(bytes(broken))
    if how == "deleted":
        path.unlink()
    damaged = rf"is damaged \({path.name}: .*delete that file and run bequest teach again"
    with pytest.raises(DataError, match=f"lacks {path.name}" if how == "deleted" else damaged):
        learn(world, tmp_path / "run", copy)
    with pytest.raises(DataError, match=f"lacks {path.name}" if how == "deleted" else damaged):
        open_store(copy).verify()
    path.unlink(missing_ok=True)
    harvest(world, copy)
    assert content(copy) == whole
    learn(world, tmp_path / "run", copy)


def rewrite(folder: Path, sealed: bool, **changes) -> None:
    """Change fields of a manifest, with its seal or without."""
    found = json.loads((folder / "manifest.json").read_text())
    del found["seal"]
    found |= changes
    seal = config.fingerprint(found if sealed else {})
    (folder / "manifest.json").write_text(json.dumps(found | {"seal": seal}))


@pytest.mark.parametrize("spoil", ["edited", "cut", "no list", "binary", "empty"])
def test_a_manifest_that_was_changed(world, copy, tmp_path, spoil):
    path = copy / "manifest.json"
    if spoil == "edited":
        rewrite(copy, False, seed=4)
    else:
        text = path.read_bytes()
        path.write_bytes({"cut": text[:-30], "no list": b"[1]", "binary": b"\xff\xfe", "empty": b""}[spoil])
    for use in (lambda: learn(world, tmp_path / "run", copy), lambda: harvest(world, copy)):
        with pytest.raises(DataError, match=r"manifest\.json is damaged or was changed by hand"):
            use()


def test_a_manifest_of_a_newer_format(world, copy, tmp_path):
    rewrite(copy, True, format=stores.FORMAT + 1, more="keys")
    for use in (lambda: learn(world, tmp_path / "run", copy), lambda: harvest(world, copy)):
        with pytest.raises(DataError, match=r"has format 2, and this Bequest reads format 1"):
            use()


# Another store than the recipe means.


def test_other_recipes_are_refused(world, tmp_path, kept):
    """Each by the name of the first thing that differs."""
    cases = [
        ({"data__sequence": 16}, r"its packing\.sequence is 32, and here it is 16"),
        (
            {"teachers__teacher": {"load": laws.learned(world, "causal"), "store": str(kept)}},
            r"its teacher\.weights is",
        ),
    ]
    for changes, words in cases:
        for use in (lambda c: learn(world, tmp_path / "run", kept, **c), lambda c: harvest(world, kept, **c)):
            with pytest.raises(FolderError, match=f"the store .* is another one: {words}"):
                use(changes)
    for change, words in [
        ({"kind": "sampled", "keep": None, "temperatures": []}, r"its form\.kind is 'topk', and here it is 'sampled'"),
        ({"keep": 9}, r"its form\.keep is 8, and here it is 9"),
        ({"values": "fp32"}, r"its form\.values"),
        ({"seed": 3}, r"its seed is 0, and here it is 3"),
        ({"shard_tokens": 64}, r"its shard_tokens is 128, and here it is 64"),
        ({"temperatures": [1.0]}, r"its form\.temperatures"),
    ]:
        with pytest.raises(FolderError, match=f"the store .* is another one: {words}"):
            harvest(world, kept, teach={**TOPK, **change})
    assert open_store(kept).manifest.total("sequences") == 16


def test_another_configuration_under_the_same_path(world, tmp_path):
    model = Path(shutil.copytree(world.teacher["causal"], tmp_path / "model"))
    both = {"teachers__teacher": {"load": str(model), "store": str(tmp_path / "store")}}
    harvest(world, tmp_path / "store", **both)
    said = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(said | {"transformers_version": "0"}))
    learn(world, tmp_path / "run", tmp_path / "store", **both)
    (model / "config.json").write_text(json.dumps(said | {"rms_norm_eps": 0.5}))
    with pytest.raises(FolderError, match=r"is another one: its teacher\.weights is"):
        learn(world, tmp_path / "other", tmp_path / "store", **both)


def test_a_store_is_enough_when_its_model_is_gone(world, tmp_path):
    model = Path(shutil.copytree(world.teacher["causal"], tmp_path / "model"))
    both = {"teachers__teacher": {"load": str(model), "store": str(tmp_path / "store")}}
    harvest(world, tmp_path / "store", **both)
    shutil.rmtree(model)
    learn(world, tmp_path / "run", tmp_path / "store", **both)
    both["teachers__teacher"]["load"] = str(tmp_path / "another")
    with pytest.raises(FolderError, match="is another one"):
        learn(world, tmp_path / "other", tmp_path / "store", **both)


def test_a_temperature_twice_is_held_once(world, tmp_path):
    store = harvest(world, tmp_path / "store", teach={**TOPK, "temperatures": [1.0, 1.0]})
    assert store.manifest.form.temperatures == (1.0,)
    learn(world, tmp_path / "run", tmp_path / "store")


@pytest.mark.parametrize("where", ["model", "./store/../model", "other/../store", "a\0b"])
def test_a_folder_of_its_own(world, tmp_path, where):
    (tmp_path / "other").mkdir()
    entry = {"load": str(tmp_path / "model"), "store": str(tmp_path / "store")}
    changes = {"a": entry, "teacher": entry | {"store": str(tmp_path / where)}}
    raw = world.raw({"name": "plain"}) | {"teachers": changes}
    assert any(".store " in one for one in problems(decode(Recipe, raw, "a test")))


def test_other_weights_under_the_same_path(world, tmp_path):
    model = Path(shutil.copytree(world.teacher["causal"], tmp_path / "model"))
    both = {"teachers__teacher": {"load": str(model), "store": str(tmp_path / "store")}}
    harvest(world, tmp_path / "store", **both)
    make_model("llama", world.vocabulary["causal"], seed=8).model.save_pretrained(model)
    for use in (
        lambda: learn(world, tmp_path / "run", tmp_path / "store", **both),
        lambda: harvest(world, None, **both),
    ):
        with pytest.raises(FolderError, match=r"is another one: its teacher\.weights is '\w+', and here it is '\w+'"):
            use()


def test_another_tokenizer(world, tmp_path, kept):
    other = make_vocabulary("causal", 290)
    other.tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(FolderError, match=r"is another one: its tokenizer is"):
        learn(world, tmp_path / "run", kept, tokenizer={"load": str(tmp_path / "tokenizer")})


def test_other_masks(world, tmp_path):
    harvest(world, tmp_path / "store", "masked")
    for changes in ({"data__mask_seed": 1}, {"data__masks": "static"}, {"data__mask_rate": 0.3}):
        with pytest.raises(FolderError, match=r"is another one: its packing\.objective is 'masks of 0.15, seed 0"):
            learn(world, tmp_path / "run", tmp_path / "store", "masked", **changes)
    causal = {"tokenizer": {"load": world.teacher["masked"]}}
    with pytest.raises(FolderError, match=r"its packing\.objective is 'masks of .*here it is 'every next token"):
        learn(world, tmp_path / "run", tmp_path / "store", "causal", **causal)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.sequence=16", "its packing.sequence is 32, and here it is 16"),
        ("teachers.teacher.store=nothing", "there is no store in nothing; bequest teach RECIPE makes one"),
        ("seed=1", "lacks"),
        ("method.temperature=3.0", "hold temperature 1, 2, not 3"),
    ],
)
def test_learning_mistakes_are_one_sentence(world, tmp_path, monkeypatch, capsys, kept, change, words):
    monkeypatch.chdir(tmp_path)
    config.write(world.raw(KI, **SMALL, teachers__teacher={"store": str(kept)}), tmp_path / "recipe.yaml")
    code, error = run_main(monkeypatch, capsys, "train", "recipe.yaml", change, "--out", "run")
    assert (code, error.splitlines()[-1].startswith("bequest: ")) == (2, True)
    assert words in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("teach.kind=sampled", "its form.kind is 'topk', and here it is 'sampled'"),
        ("teachers.teacher.store=''", "no teacher has both load and store"),
        ("teachers.teacher.store=/proc/store", "cannot use /proc/store"),
        ("teachers.teacher.store=recipe.yaml", "cannot use recipe.yaml as a store (File exists)"),
        ("teachers.teacher.store=recipe.yaml/store", "cannot use recipe.yaml/store as a store"),
        ("method.temperature=3.0", "at temperature 3, which teach.temperatures leaves out"),
        ("teach.top_p=0.5", "its form.top_p is 1.0, and here it is 0.5"),
        ("method=plain", "the method plain asks no teacher that has a store"),
    ],
)
def test_harvesting_mistakes_are_one_sentence(world, tmp_path, monkeypatch, capsys, copy, change, words):
    monkeypatch.chdir(tmp_path)
    raw = world.raw(KI, **SMALL, teachers__teacher=spec(world, copy), teach={**TOPK, "temperatures": [1.0, 2.0]})
    config.write(raw, tmp_path / "recipe.yaml")
    if "sampled" in change:
        config.write({**raw, "teach": {**TOPK, "temperatures": [1.0]}}, tmp_path / "recipe.yaml")
    code, error = run_main(monkeypatch, capsys, "teach", "recipe.yaml", change)
    assert (code, error.splitlines()[-1].startswith("bequest: ")) == (2, True)
    assert words in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_full_and_forbidden_disks_are_one_sentence(world, tmp_path, monkeypatch, capsys, number, after):
    """Whatever could not be written: the same command goes on when there is room."""
    raw = world.raw(KI, **SMALL, teachers__teacher=spec(world, tmp_path / "store"), teach=TOPK)
    config.write(raw, tmp_path / "recipe.yaml")
    writes = []

    def full(path, content):
        writes.append(path)
        if len(writes) > after:
            raise OSError(number, os.strerror(number), str(path))
        replace_bytes(path, content)

    monkeypatch.setattr(stores, "replace_bytes", full)
    monkeypatch.setattr(stores, "replace_text", lambda path, text: full(path, text.encode()))
    code, error = run_main(monkeypatch, capsys, "teach", tmp_path / "recipe.yaml")
    assert code == 2
    assert error.splitlines()[-1].startswith(f"bequest: cannot use {tmp_path / 'store'}")
    monkeypatch.undo()
    harvest(world, tmp_path / "store")
    harvest(world, tmp_path / "fresh")
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


def test_harvest_and_train_in_one_command(world, tmp_path, monkeypatch, capsys):
    folder, changes = tmp_path / "store", {**SMALL, "teach": TOPK}
    recipe = tmp_path / "recipe.yaml"
    config.write(world.raw(KI, teachers__teacher=spec(world, folder), **changes), recipe)
    command = ["bequest", "train", str(recipe), "--teach", "--out"]
    for run, more in (("first", []), ("second", ["train.tokens=1024"])):
        monkeypatch.setattr("sys.argv", [*command, str(tmp_path / run), *more])
        cli.main()
    assert f"teacher: {folder}" in capsys.readouterr().out
    assert open_store(folder).manifest.total("sequences") == 32
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert (summary["teacher_flops"], summary["harvest_flops"] > 0) == (0, True)
    config.write(world.raw(KI, **changes), recipe)
    code, error = run_main(monkeypatch, capsys, "train", recipe, "--teach", "--out", tmp_path / "third")
    assert (code, error.count("\n")) == (2, 1)
    assert "no teacher has both load and store" in error


def test_a_store_alone_is_enough(world, tmp_path):
    model = Path(shutil.copytree(world.teacher["causal"], tmp_path / "model"))
    both = {"teachers__teacher": {"load": str(model), "store": str(tmp_path / "store")}}
    harvest(world, tmp_path / "store", **both)
    learn(world, tmp_path / "beside", tmp_path / "store", **both)
    shutil.rmtree(model)
    shutil.copytree(tmp_path / "store", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "store")
    summary = learn(world, tmp_path / "alone", tmp_path / "elsewhere")
    assert summary["teacher_flops"] == 0
    assert losses(tmp_path / "beside") == losses(tmp_path / "alone")
    lineage = json.loads((tmp_path / "alone" / "checkpoint" / "lineage.json").read_text())
    assert [one["as"] for one in lineage["predecessors"]] == ["teacher"]


def test_a_manifest_counts_what_is_there(world, kept):
    manifest = open_store(kept).manifest
    recipe = world.recipe(KI, **SMALL)
    rows = sum(len(prepare(recipe).batches[step].rows.index_N) for step in range(4))
    assert manifest.total("rows") == rows
    assert manifest.total("kept") == 8 * rows
    assert manifest.total("bytes") == sum(p.stat().st_size for p in kept.glob("*.safetensors"))
    assert manifest.total("nats") / rows == pytest.approx(math.log(300), rel=0.05)  # a teacher that knows nothing
    assert 0.9 < manifest.total("rest") / rows < 1.0
    assert manifest.total("flops") > 0
