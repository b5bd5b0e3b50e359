"""What stored signals cost: bytes, codec speed, share of a step, error, and harvest against a bare forward pass.

    .venv/bin/python bench/signals.py [--tokens N] [--teacher NAME]

Run from the root of the repository with ../shared beside it. One JSON line per format and teacher (stories260K: 512 ids;
gpt2: 50,257 ids, trained by bench/signals/teacher-gpt2.yaml first if it is not there, about 30 minutes).

bequest      real stores, harvested and read back. Bytes are those of the manifest and the shards over rows; their fixed
             part (about 2 kB) shrinks with more tokens. Codec speeds are one thread's, `read` is index, file, checksum and
             decoding. share_of_step is reading, decoding and building the signal, one after the other, over a training
             step of bench/signals/ki.yaml's student; stall_of_step is what the training loop really waits for its batch.
             harvest_over_forward is in wall time, ..._cpu in processor time, which other jobs disturb less.
parquet      the same entries before quantisation, int32 ids and fp16 values without scalars: a row per token, a row group
             per sequence.
safetensors  the same columns, end to end. Both peers' decoding begins at an open file.
distillkit   published sizes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy
import torch

from bequest import sense
from bequest.data.tokenizer import saved
from bequest.device import Place, place
from bequest.job.models import opener
from bequest.job.prepare import Prepared, find_method, inputs, new_student, prepare
from bequest.job.teach import Harvest, plan
from bequest.job.train import settings_of
from bequest.model import build
from bequest.model.tiled import rows_at_once
from bequest.optim import Policy
from bequest.recipe import Recipe
from bequest.teach import store as stores
from bequest.teach.codec import Entries
from bequest.teach.harvest import FORWARD_TOKENS, Here, harvest
from bequest.teach.live import Live
from bequest.teach.signals import joined, signal, split
from bequest.teach.store import Store, open_store
from bequest.teach.stored import Stored
from bequest.train import run as spine
from bequest.types import Batch, Clock, Signal

SHARED = Path("../shared/data")
TEXTS = {"stories260K": SHARED / "corpora/books.valid.jsonl.gz", "gpt2": SHARED / "corpora/wiki.valid.jsonl.gz"}
"""Not what a teacher was trained on, but nearest to it."""
TEACHERS = {"stories260K": SHARED / "models/stories260K", "gpt2": Path("runs/signals-teacher-gpt2/checkpoint")}
TOKENS = {"stories260K": 32_768, "gpt2": 16_384}
VARIANTS = {
    "sampled-50": ["teach.draws=50"],
    "sampled-12": ["teach.draws=12"],
    "topk-10": ["teach.kind=topk", "teach.keep=10"],
    "topk-32": ["teach.kind=topk", "teach.keep=32"],
    "topk-128": ["teach.kind=topk", "teach.keep=128"],
    "adaptive-topk-50": ["teach.kind=topk", "teach.keep=50", "teach.top_p=0.95"],
}
PEERED = ("topk-32", "topk-128", "sampled-50")
PUBLISHED = {"topk-50": 114, "topk-128": 312}
ROUNDS, REPETITIONS, STEPS = 3, 5, 3


@dataclass
class Subject:
    """A teacher, a variant, and all that the library needs to harvest it."""

    variant: str
    recipe: Recipe
    where: Place
    prepared: Prepared
    work: Harvest
    teacher: Live
    folder: Path

    def harvested(self) -> Store:
        """A new store; it replaces the one that was there."""
        for file in [*self.folder.glob("*.safetensors"), self.folder / stores.MANIFEST]:
            file.unlink(missing_ok=True)
        found = stores.create(self.folder, self.work.manifest, self.tokenizer)
        list(harvest(found, Here(self.teacher, self.where), self.work.asked, 0, 1))
        return found

    @cached_property
    def tokenizer(self) -> dict[str, bytes]:
        """Its files, as they stand in every store."""
        return dict(saved(self.prepared.vocabulary.tokenizer))

    @cached_property
    def parts(self) -> list[Batch]:
        """The batches of which a harvest asks."""
        size = FORWARD_TOKENS // self.recipe.data.sequence
        parts = (part for one in self.work.asked for part in one.shards(size))
        return [part.batches.of(part.places) for part in parts]

    @torch.no_grad()
    def forward(self) -> None:
        """What a harvest cannot do without: features and logits."""
        size = rows_at_once(self.work.manifest.form.vocabulary, self.where.device)
        for batch in self.parts:
            with self.where.autocast():
                features_ND = self.teacher.model(batch)
                for first in range(0, len(features_ND), size):
                    self.teacher.head.logits(features_ND[first : first + size])


def subjects(teacher: str, tokens: int, folder: Path) -> Iterator[Subject]:
    """Every variant of a teacher."""
    live = None
    for variant, changes in VARIANTS.items():
        recipe = sense.load(
            Path("bench/signals/ki.yaml"),
            (
                f"data.train.0.path={TEXTS[teacher]}",
                f"data.valid.0.path={TEXTS[teacher]}",
                f"teachers.teacher.load={TEACHERS[teacher]}",
                f"teachers.teacher.store={folder / variant}",
                "method.until=1.0",
                f"train.tokens={tokens}",
                *changes,
            ),
        )
        where = place("cpu", recipe.train.precision)
        prepared, (work,) = plan(recipe)
        load = partial(opener(recipe, "cpu"), work.spec)
        live = live or Live(load, prepared.vocabulary.size, 0, where.autocast)
        yield Subject(variant, recipe, where, prepared, work, live, folder / variant)


def measure(teacher: str, tokens: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Every line of a teacher."""
    chosen = list(subjects(teacher, tokens, folder))
    harvests = against_forward(chosen)
    kept = {one.variant: open_store(one.folder) for one in chosen}
    blocks = {one.variant: said(one, kept[one.variant]) for one in chosen}
    peers = {(v, name): Peer(name, blocks[v], folder / f"{v}.{name}") for v in PEERED for name in Peer.KINDS}
    speeds = codec_speeds(chosen, kept, blocks, peers)
    for one in chosen:
        yield {
            **line("bequest", teacher, one.variant),
            **sizes(kept[one.variant], blocks[one.variant]),
            **speeds["bequest", one.variant],
            **share_of_step(one),
            "extra_kl": extra_kl(one, kept[one.variant], blocks[one.variant]),
            **harvests[one.variant],
        }
    for (variant, name), peer in peers.items():
        per_token = peer.path.stat().st_size / rows_of(blocks[variant])
        yield {**line(name, teacher, variant), "bytes_per_token": round(per_token, 2), **speeds[name, variant]}


def line(name: str, teacher: str, variant: str) -> dict[str, Any]:
    return {"name": name, "teacher": teacher, "variant": variant}


def keys_of(one: Subject) -> list[bytes]:
    return [key for asked in one.work.asked for key in asked.keys]


def said(one: Subject, store: Store) -> list[Entries]:
    """What the teacher says about each sequence, not yet quantised; the store must hold these very bytes."""
    length, codec = one.recipe.data.sequence, store.codec(keys_of(one)[0])
    blocks = []
    for batch in one.parts:
        rows = np.bincount(batch.rows.index_N // length, minlength=len(batch.keys)).tolist()
        blocks += split(Here(one.teacher, one.where).ask(batch, store.manifest.form, store.manifest.seed), rows)
    for key, block in zip(keys_of(one), blocks, strict=True):
        again = codec.decode(np.frombuffer(codec.encode(block), np.uint8), len(block.sizes_R))
        assert all(np.array_equal(column, vars(again)[name]) for name, column in vars(store.entries(key)).items())
    return blocks


def rows_of(blocks: list[Entries]) -> int:
    return sum(len(block.sizes_R) for block in blocks)


def sizes(store: Store, blocks: list[Entries]) -> dict[str, Any]:
    """Bytes on disk against what the entries need."""
    rows = rows_of(blocks)
    files = [store.folder / stores.MANIFEST, *store.folder.glob("*.safetensors")]
    per_token = sum(file.stat().st_size for file in files) / rows
    whole = joined(blocks)
    bound = store.codec(store.sample(1)[0]).bound(whole) / rows
    return {
        "rows": rows,
        "bytes_per_token": round(per_token, 3),
        "bound_bytes_per_token": round(bound, 3),
        "over_bound": round(per_token / bound, 4),
        "mean_kept": round(len(whole.ids_E) / rows, 2),
        "teacher_nats": round(store.manifest.total("nats") / rows, 3),
    }


def against_forward(chosen: list[Subject]) -> dict[str, dict[str, float]]:
    """Harvests and bare forward passes in turn."""
    times: dict[str, list[tuple[float, float]]] = {}
    chosen[0].forward()
    for _ in range(ROUNDS):
        for number, one in enumerate(chosen):
            if number % 2 == 0:
                times.setdefault("", []).append(timed(chosen[0].forward))
            times.setdefault(one.variant, []).append(timed(one.harvested))
    wall, cpu = ({n: statistics.median(t[i] for t in ts) for n, ts in times.items()} for i in (0, 1))
    rows = sum(len(batch.rows.index_N) for batch in chosen[0].parts)
    return {
        one.variant: {
            "harvest_over_forward": round(wall[""] / wall[one.variant], 3),
            "harvest_over_forward_cpu": round(cpu[""] / cpu[one.variant], 3),
            "harvest_tokens_per_s": round(rows / wall[one.variant]),
            "forward_tokens_per_s": round(rows / wall[""]),
        }
        for one in chosen
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor, all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def codec_speeds(
    chosen: list[Subject],
    kept: dict[str, Store],
    blocks: dict[str, list[Entries]],
    peers: dict[tuple[str, str], Peer],
) -> dict[tuple[str, str], dict[str, int]]:
    """Tokens per second, best of several repetitions in turn; sequences are read in random order, with warm pages."""
    works: dict[tuple[str, str, str], Callable[[], object]] = {}
    for one in chosen:
        store, entries = kept[one.variant], blocks[one.variant]
        codec, order = store.codec(keys_of(one)[0]), random.Random(0).sample(keys_of(one), len(entries))
        encoded = [(np.frombuffer(codec.encode(block), np.uint8), len(block.sizes_R)) for block in entries]
        works["bequest", one.variant, "encode"] = partial(each, codec.encode, [(block,) for block in entries])
        works["bequest", one.variant, "decode"] = partial(each, codec.decode, encoded)
        works["bequest", one.variant, "read"] = partial(each, store.entries, [(key,) for key in order])
    for (variant, name), peer in peers.items():
        order = random.Random(0).sample(range(len(blocks[variant])), len(blocks[variant]))
        works[name, variant, "encode"] = partial(peer.encode, blocks[variant])
        works[name, variant, "decode"] = partial(each, peer.decode, [(number,) for number in order])
    best = dict.fromkeys(works, float("inf"))
    for _ in range(REPETITIONS):
        for key, work in works.items():
            best[key] = min(best[key], timed(work)[0])
    found: dict[tuple[str, str], dict[str, int]] = {}
    for (name, variant, what), seconds in best.items():
        found.setdefault((name, variant), {})[f"{what}_tokens_per_s"] = round(rows_of(blocks[variant]) / seconds)
    return found


def each(work: Callable[..., object], arguments: list[tuple[Any, ...]]) -> None:
    for some in arguments:
        work(*some)


class Peer:
    """The same entries in another format, in a file."""

    KINDS = ("parquet-zstd", "parquet", "safetensors")

    def __init__(self, name: str, blocks: list[Entries], path: Path) -> None:
        self.name = name
        self.path = path
        path.write_bytes(self.encode(blocks))
        self._file: Any = safetensors.safe_open(path, "np") if name == "safetensors" else pq.ParquetFile(path)
        self._rows = np.cumsum([0, *(len(block.sizes_R) for block in blocks)])
        self._ends = np.cumsum([0, *(len(block.ids_E) for block in blocks)])
        for number, block in enumerate(blocks):
            sizes_R, ids_E, _ = self.decode(number)
            assert np.array_equal(sizes_R, block.sizes_R)
            assert np.array_equal(ids_E, block.ids_E)

    def encode(self, blocks: list[Entries]) -> bytes:
        """The file's bytes."""
        if self.name == "safetensors":
            return safetensors.numpy.save(_columns(joined(blocks)))
        sink = pa.BufferOutputStream()
        compression = "zstd" if self.name == "parquet-zstd" else "none"
        with pq.ParquetWriter(sink, _table(blocks[0]).schema, compression=compression) as writer:
            for block in blocks:
                writer.write_table(_table(block))
        return sink.getvalue().to_pybytes()

    def decode(self, number: int) -> tuple[Any, Any, Any]:
        """Sizes, ids and values of one sequence."""
        if self.name == "safetensors":
            places = {"sizes": self._rows, "ids": self._ends, "values": self._ends}
            return tuple(self._file.get_slice(n)[int(p[number]) : int(p[number + 1])] for n, p in places.items())
        table = self._file.read_row_group(number)
        ids, values = (table[name].combine_chunks() for name in ("ids", "values"))
        return np.diff(ids.offsets.to_numpy()), ids.flatten().to_numpy(), values.flatten().to_numpy()


def _columns(block: Entries) -> dict[str, Any]:
    return {
        "sizes": block.sizes_R.astype(np.uint16),
        "ids": block.ids_E.astype(np.int32),
        "values": block.values_E.astype(np.float16),
    }


def _table(block: Entries) -> pa.Table:
    columns, edges = _columns(block), pa.array(np.cumsum([0, *block.sizes_R]), pa.int32())
    return pa.table({n: pa.ListArray.from_arrays(edges, pa.array(columns[n])) for n in ("ids", "values")})


def extra_kl(one: Subject, store: Store, blocks: list[Entries]) -> float:
    """Mean KL of what is read from what was said, both in buckets."""
    form, total = store.manifest.form, 0.0
    for key, block in zip(keys_of(one), blocks, strict=True):
        said = (ascending(block), ascending(store.entries(key)))
        true, read = (signal(found, form, form.temperatures[0]) for found in said)
        assert true.ids_NK is not None
        assert torch.equal(true.ids_NK, read.ids_NK)
        total += float((buckets(true).exp() * (buckets(true) - buckets(read)).nan_to_num()).sum())
    return round(total / rows_of(blocks), 6)


def ascending(found: Entries) -> Entries:
    """The ids of every row in ascending order."""
    order = np.lexsort([found.ids_E, np.repeat(np.arange(len(found.sizes_R)), found.sizes_R)])
    return Entries(found.sizes_R, found.ids_E[order], found.values_E[order], found.scalars_RS)


def buckets(said: Signal) -> torch.Tensor:
    """Kept entries and the rest, if there is one; float64."""
    logp_NK = said.logp_NK.double()
    return logp_NK if said.logrest_N is None else torch.cat([logp_NK, said.logrest_N.double()[:, None]], 1)


class Watched(spine.Ahead):
    """Notes how long the training loop waits for its batches."""

    waits: list[float] = []  # noqa: RUF012

    def __call__(self, clock: Clock) -> Batch:
        started = time.perf_counter()
        batch = super().__call__(clock)
        self.waits.append(time.perf_counter() - started)
        return batch


def share_of_step(one: Subject) -> dict[str, float]:
    """Signals from the store against whole training steps, the first of which is left out."""
    recipe = replace(one.recipe, train=replace(one.recipe.train, tokens=STEPS * one.recipe.train.batch_tokens))
    prepared, policy = prepare(recipe), Policy(recipe.train.schedule, recipe.train.batch_tokens, recipe.train.tokens)
    given = inputs(recipe, prepared, one.where, Path(), opener(recipe, "cpu"))
    state, seconds = spine.State(new_student(recipe, prepared.vocabulary), planned=recipe.train.tokens), []
    Watched.waits.clear()
    spine.Ahead = Watched  # type: ignore[misc]
    watch = lambda state, event: seconds.append(state.ledger.seconds)
    spine.run(tuple(find_method(recipe).plan(given)), state, settings_of(recipe, one.where, policy), (watch,))
    step, wait = statistics.median(np.diff(seconds[:STEPS])), statistics.median(Watched.waits[1:])
    signals = statistics.median(answered(one, prepared.batches[number]) for number in range(STEPS))
    return {
        "share_of_step": round(signals / step, 5),
        "stall_of_step": round(wait / step, 5),
        "signals_ms": round(1000 * signals, 2),
        "step_ms": round(1000 * step, 1),
        "student_parameters": sum(p.numel() for p in state.model.parameters()),
    }


def answered(one: Subject, batch: Batch) -> float:
    """Seconds from a question to the signal of all its rows, the file's index open."""
    teacher = Stored(partial(open_store, one.folder))
    teacher.store.missing(())

    def answer() -> None:
        teacher.prepare(batch, 1.0)
        teacher(batch, 1.0)

    return min(timed(answer)[0] for _ in range(3))


def require(teacher: str) -> None:
    """Everything that a teacher's lines need, made or named."""
    missing = [str(path) for path in (*TEXTS.values(), TEACHERS["stories260K"]) if not path.exists()]
    if missing:
        sys.exit(f"bench/signals.py needs {', '.join(missing)}; put the folder shared beside the repository")
    if not TEACHERS[teacher].exists():
        print("training the teacher bench/signals/teacher-gpt2.yaml first, about 30 minutes", file=sys.stderr)
        command = [sys.executable, "-m", "bequest", "train", "bench/signals/teacher-gpt2.yaml"]
        subprocess.run(command, check=True, stdout=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="What stored signals cost; one JSON line per format and teacher.")
    parser.add_argument("--tokens", type=int, help="asked about, a multiple of 4096; more than 8192 for full speed")
    parser.add_argument("--teacher", choices=TEACHERS, help="this one alone")
    chosen = parser.parse_args()
    build.quiet()
    torch.set_num_threads(1)
    for teacher in [chosen.teacher] if chosen.teacher else TEACHERS:
        require(teacher)
        with tempfile.TemporaryDirectory() as folder:
            for found in measure(teacher, chosen.tokens or TOKENS[teacher], Path(folder)):
                print(json.dumps(found), flush=True)
    for variant, size in PUBLISHED.items():
        source = "published layout of its exact_k codec for 64k ids; speeds not measured"
        print(json.dumps({**line("distillkit", "", variant), "bytes_per_token": size, "source": source}))


if __name__ == "__main__":
    main()
