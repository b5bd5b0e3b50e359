"""Every way we know to hand `bequest train` something bad: one sentence, exit code 2, and nothing half-written."""

import ctypes
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import laws
import pytest
from conftest import World, make_model, make_vocabulary, sentences, write_jsonl

from bequest import cli, config
from bequest.files import locked

PLAIN, KI = {"name": "plain"}, {"name": "ki", "until": 0.5}


@dataclass
class Box:
    """One attempt: a folder of its own, a valid recipe to spoil, and where the run would go."""

    world: World
    folder: Path
    old: dict[str, Path]
    """Runs that may be copied: one that was stopped at step 9, one that is finished."""
    raw: dict[str, Any]
    text: bytes | None = None
    """The recipe file's content, if not `raw`."""
    overrides: list[str] = field(default_factory=list)
    out: Path = Path()
    around: Any = field(default_factory=nullcontext)
    may_begin: bool = False
    """Whether a run folder is left (only what is known after training has begun)."""

    def begun(self, which: str = "stopped") -> Path:
        """An earlier run of this very recipe."""
        self.raw = self.world.raw(PLAIN)
        shutil.copytree(self.old[which], self.out)
        return self.out

    def text_file(self, name: str, content: bytes) -> Path:
        """Train on this file alone."""
        path = self.folder / name
        path.write_bytes(content)
        self.raw["data"]["train"] = [{"path": str(path)}]
        return path

    def teacher(self, objective: str = "causal") -> Path:
        """Inherit from a copy of the teacher, which may be spoiled."""
        path = self.folder / "teacher"
        shutil.copytree(self.world.teacher[objective], path)
        self.raw = self.world.raw(KI, teachers__teacher={"load": str(path)})
        return path


CASES: dict[str, tuple[Callable[[Box], object], tuple[str, ...]]] = {}


def case(*words: str) -> Callable[[Callable[[Box], object]], Callable[[Box], object]]:
    """A case whose sentence holds these words."""

    def add(spoil: Callable[[Box], object]) -> Callable[[Box], object]:
        CASES[spoil.__name__.replace("_", " ")] = (spoil, words)
        return spoil

    return add


# Overrides: what is assigned, and words of the sentence.
OVERRIDES = [
    ("student.heads=3", "student.hidden 16 must be a multiple of student.heads 3"),
    ("student.heads=16", "rotary positions need an even number"),
    ("student.heads=0", "student.heads must be greater than 0, not 0"),
    ("student.hidden=-16", "student.hidden must be greater than 0"),
    ("student.hidden=16.5", "student.hidden must be a valid integer"),
    ("student.hidden=10000000", "more than 1e13 parameters"),
    ("student.layers=100000", "student.layers must be less than or equal to 10000"),
    ("student.kv_heads=3", "student.heads 2 must be a multiple of student.kv_heads 3"),
    ("student.family=mamba", "student.family must be"),
    ("student.family=bert", "does not fit data.objective causal"),
    ("student.vocab=10", "student.vocab 10 is less than"),
    ("student.vocab=100000000000000", "more than 1e13 parameters"),
    ("student.dropout=1.1", "student.dropout must be less than or equal to 1"),
    ("student.dropout=.nan", "student.dropout"),
    ("student.load=/nowhere", "student needs either family"),
    ("data.objective=masked", "does not fit data.objective masked"),
    ("data.sequence=0", "data.sequence must be greater than 0"),
    ("data.sequence='32'", "data.sequence must be a valid integer, not the text '32'"),
    ("data.sequence=thirty", "not the text 'thirty'"),
    ("data.sequence=true", "data.sequence must be a valid integer"),
    ("data.sequence=", "data.sequence must be a valid integer, not nothing"),
    ("data.sequence=.inf", "data.sequence"),
    ("data.sequence=48", "must be a multiple of data.sequence 48"),
    ("data.valid_fraction=0.1", "exclude each other"),
    ("data.valid=[]", "nothing to validate on"),
    ("data.train=[]", "data.train is empty"),
    ("data.train=corpus.txt", "data.train"),
    ("data.train.0={}", "data.train.0 needs either path or hub"),
    ("data.train.0.path=3", "data.train.0.path must be a valid string, not 3"),
    ("data.train.0.format=xml", "data.train.0.format must be"),
    ("data.train.0.field=body", "no text under the key 'body' (its keys are text)"),
    ("data.train.0.path=/nowhere.txt", "no text at /nowhere.txt"),
    ("data.train.0.path=~nobody-of-this-name/x.txt", "no text at ~nobody-of-this-name/x.txt"),
    ('data.train.0.path="a\\0b.txt"', "no text at a\\x00b.txt"),
    ('data.train.0.path="a\\nb.txt"', "no text at a\\nb.txt"),
    ("data.train.0.path=/dev/null", "neither a file nor a folder"),
    (f"data.train.0.path={'x' * 300}.txt", "name is too long"),
    ("train.tokens=0", "train.tokens must be greater than 0"),
    ("train.tokens=100", "train.tokens 100 is less than one batch of 128"),
    ("train.tokens=1e30", "train.tokens must be less than"),
    ("train.tokens=1e400", "train.tokens"),
    (f"train.tokens={'9' * 5000}", "train.tokens"),
    (f"train.tokens={'9' * 400}", "train.tokens must be less than"),
    ("train.batch_tokens=100", "must be a multiple of data.sequence 32"),
    ("train.micro_batch_tokens=100", "must be a multiple of data.sequence 32"),
    ("train.optimiser.lr=0", "train.optimiser.lr must be greater than 0"),
    ("train.optimiser.lr=.inf", "train.optimiser.lr must be a finite number"),
    ("train.optimiser.lr=-.inf", "train.optimiser.lr must be a finite number"),
    ("train.optimiser.lr=.nan", "train.optimiser.lr must be a finite number"),
    ("train.optimiser.lr=fast", "train.optimiser.lr must be a valid number, not the text 'fast'"),
    ("train.optimiser.betas=[0.9]", "train.optimiser.betas"),
    ("train.optimiser.betas=[1, 2]", "train.optimiser.betas.0 must be less than 1, not 1"),
    ("train.optimiser.betas=[1.0, 0.9]", "train.optimiser.betas"),
    ("train.optimiser.name=sgd", "train.optimiser.name must be 'adamw' or 'muon'"),
    ("train.schedule.warmup=-1", "train.schedule.warmup must be greater than or equal to 0"),
    ("train.clip=-1", "train.clip must be greater than or equal to 0"),
    ("train.keep=0", "train.keep must be greater than 0"),
    ("train.threads=100000", "train.threads must be less than or equal to 4096"),
    ("train.threads=-1", "train.threads must be greater than or equal to 0"),
    ("train.compile=1", "train.compile must be a valid boolean"),
    ("train.precision=fp16", "train.precision must be 'auto', 'bf16' or 'fp32'"),
    ("train.device=cuda", "PyTorch sees no GPU"),
    ("train.device=tpu", "train.device must be"),
    ("train=fast", "train must be a mapping of keys to values, not the text 'fast'"),
    ("train=[]", "train must be a mapping"),
    ("seed=-1", "seed must be greater than or equal to 0"),
    ("seed=1e30", "seed must be less than"),
    ("name=a/b", "cannot be a folder's name"),
    ("name=''", "cannot be a folder's name"),
    ("name=..", "cannot be a folder's name"),
    ("name=7", "name must be a valid string, not 7"),
    ('name="\\ud800"', "half a surrogate pair"),
    ("trian.tokens=512", "unknown key 'trian'; did you mean 'train'?"),
    ("tokens=512", "unknown key 'tokens'; did you mean"),
    ("train.lr=0.1", "unknown key 'train.lr'; did you mean 'train.optimiser.lr'?"),
    ("student.sequence=32", "unknown key 'student.sequence'; did you mean 'data.sequence'?"),
    ("train.optimizer={lr: 0.1}", "unknown key 'train.optimizer'; did you mean 'train.optimiser'?"),
    ("eval.zzz=1", "unknown key 'eval.zzz'; the keys here are every_tokens, tokens"),
    ("method=kii", "there is no method 'kii'; did you mean 'ki'?"),
    ("method=", "method"),
    ("method=[ki]", "method must be a"),
    ("method.name=3", "method needs a name"),
    ("method.name=''", "there is no method ''"),
    ("method.name=../ki", "there is no method '../ki'"),
    ("method.name=plain.x", "there is no method 'plain.x'"),
    ("method.nmae=ki", "unknown key 'method.nmae'"),
    ("method.until=0.5", "unknown key 'method.until'"),
    ("method={name: ki, untill: 0.5}", "unknown key 'method.untill'; did you mean 'method.until'?"),
    ("method={name: ki, until: half}", "method.until must be a valid number, not the text 'half'"),
    ("method={name: ki, temperature: 0}", "method.temperature must be greater than or equal to 0.01"),
    ("method={name: dwt, soft: .inf}", "method.soft must be a finite number"),
    ("teachers={}", "there is no tokenizer to use"),
    ("teachers=[a]", "teachers must be a"),
    ("teachers={teacher: }", "teachers.teacher must be a mapping"),
    ("teachers={teacher: {}}", "teachers.teacher needs load"),
    ("teachers={teacher: {lod: x}}", "unknown key 'teachers.teacher.lod'; did you mean 'teachers.teacher.load'?"),
    ("teachers.teacher.load=/nowhere", "there is no model at /nowhere"),
    ("teachers.teacher.load=''", "teachers.teacher needs load"),
    ('teachers.teacher.load="a\\0b"', "there is no folder a\\x00b"),
    ("teachers.teacher.load=not a model", "there is no folder not a model"),
    ("teachers.teacher.keep=-1", "teachers.teacher.keep must be greater than or equal to 0"),
    ("teachers.teacher.control=mix", "teachers.teacher.control must be"),
    ("teachers.teacher={store: /nowhere, control: untrained}", "teachers.teacher.control untrained is made from"),
    ("tokenizer={}", "tokenizer needs either train or load"),
    ("tokenizer={train: {vocab: 100}}", "tokenizer.train.vocab 100 is too small"),
    ("tokenizer={load: /nowhere}", "cannot load a tokenizer from /nowhere"),
    ("tokenizer={load: /dev/null}", "cannot load a tokenizer from /dev/null"),
    ("tokenizer=ki", "tokenizer must be a mapping"),
    ("train.tokens", "not of the form key=value"),
    ("=3", "not of the form key=value"),
    ("a\nb=3", "not of the form key=value"),
    ("train..tokens=3", "unknown key 'train.'"),
    ("train.tokens=[1", "override train.tokens"),
    ("train.tokens={a: 1, a: 2}", "stands twice"),
    ("train.tokens=&a [*a]", "override train.tokens"),
    ("train.tokens=!!binary aGVsbG8=", "override train.tokens"),
    ("train.tokens.x=3", "train.tokens is 1536, it has no keys"),
    ("data.train.7.path=x", "data.train is a list of 2"),
    ("data.train.-1.path=x", "data.train is a list of 2"),
    ("data.train.²=x", "data.train is a list of 2"),
]


def _override(text: str) -> Callable[[Box], object]:
    return lambda box: box.overrides.append(text)


for assignment, expected in OVERRIDES:
    CASES[repr(assignment)[1:-1][:50]] = (_override(assignment), (expected,))

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{', '.join([f'*{chr(97 + n)}'] * 9)}]}}\n" for n in range(9)
)
RECIPES = {
    "empty": (b"", "this is nothing"),
    "only a comment": (b"# nothing\n", "this is nothing"),
    "a list": (b"- a\n- b\n", "this is a list"),
    "a text": (b"hello", "this is the text 'hello'"),
    "a number": (b"7", "this is 7"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "zeros": (b"\0" * 100, "not valid YAML"),
    "utf-16": ("name: x".encode("utf-16"), "not UTF-8"),
    "duplicate keys": (b"name: a\nname: b\n", "line 2: not valid YAML (the key 'name' stands twice)"),
    "tabs": (b"name: a\ndata:\n\tsequence: 3\n", "line 3: not valid YAML"),
    "unclosed": (b"name: [a, b\n", "not valid YAML"),
    "unclosed quote": (b'name: "a\n', "not valid YAML"),
    "bad indentation": (b"name: a\n  b: c\n", "not valid YAML"),
    "billion laughs": (LAUGHS.encode(), "not valid YAML"),
    "billion merges": (MERGES.encode(), "not valid YAML"),
    "alias of itself": (b"name: &a [*a]\n", "not valid YAML"),
    "mapping that holds itself": (b"&a name: x\nb: &b {c: *b}\n", "not valid YAML"),
    "merge of itself": (b"a: &a {<<: *a}\n", "not valid YAML"),
    "unknown alias": (b"name: *nobody\n", "not valid YAML"),
    "3000 brackets": (b"name: " + b"[" * 3000, "too many brackets"),
    "3000 closed brackets": (b"name: " + b"[" * 3000 + b"]" * 3000, "too many brackets"),
    "220 closed brackets": (b"method: " + b"[" * 220 + b"]" * 220, "too many brackets"),
    "3000 nested keys": (b"{a: " * 3000, "too many brackets"),
    "tag binary": (b"name: !!binary aGVsbG8=\n", "not valid YAML"),
    "tag python": (b"name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    "tag set": (b"name: !!set {a, b}\n", "not valid YAML"),
    "tag float of a list": (b"name: !!float [1]\n", "not valid YAML"),
    "tag bool of a text": (b"name: !!bool perhaps\n", "not valid YAML"),
    "tag map of a list": (b"name: !!map [1, 2]\n", "not valid YAML"),
    "tag of its own": (b"name: !mine x\n", "not valid YAML"),
    "tag of the whole": (b"!!omap\n- a: 1\n", "not valid YAML"),
    "two documents": (b"name: a\n---\nname: b\n", "not valid YAML"),
    "character too large": (b'name: "\\UFFFFFFFF"\n', "not valid YAML"),
    "character that is none": (b'name: "\\U00110000"\n', "not valid YAML"),
    "half a surrogate pair": (b'name: "\\ud800"\n', "half a surrogate pair"),
    "key with a line break": (b'name: a\n"da\\nta": {}\n', "not valid YAML"),
    "merge of a number": (b"<<: 3\n", "not valid YAML"),
    "value key": (b"name: =\n", "not valid YAML"),
    "a version of tomorrow": (b"%YAML 7.0\n---\nname: a\n", "not valid YAML"),
    "5000 digits": (b"seed: " + b"9" * 5000, "not valid YAML"),
    "html": (b"<!DOCTYPE html>\n<html><body class='x'>404: not found</body></html>\n", "recipe.yaml"),
    "json that breaks off": (b'{"name": "a", "data": {"tr', "not valid YAML"),
    "too little": (b"name: a\n", "the key 'data' is missing"),
    "keys at the wrong level": (b"name: a\nsequence: 3\n", "the key 'data' is missing (and 4 more;"),
}


def _recipe(content: bytes) -> Callable[[Box], object]:
    return lambda box: setattr(box, "text", content)


for title, (content, expected) in RECIPES.items():
    CASES[f"recipe: {title}"] = (_recipe(content), (expected,))


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


LINES = "".join(json.dumps({"text": t}) + "\n" for t in sentences(1, 200)).encode()
TEXTS: dict[str, tuple[str, bytes | Callable[[], bytes], str]] = {
    "empty": ("a.txt", b"", "no document with text"),
    "blank": ("a.txt", b" \n\n \n", "no document with text"),
    "empty jsonl": ("a.jsonl", b"", "no document with text"),
    "blank documents": ("a.jsonl", b'{"text": " "}\n' * 9, "no document with text"),
    "one word": ("a.txt", b"word", "give more text or lower data.sequence"),
    "binary": ("a.txt", bytes(range(128)) * 9, "line 1: binary data"),
    "invalid utf-8": ("a.txt", b"fine\n\xff\xfe bad\n", "line 2: not UTF-8"),
    "latin-1": ("a.txt", "größe\n".encode("latin-1") * 9, "line 1: not UTF-8"),
    "not json": ("a.jsonl", b"hello\n", "line 1: not JSON"),
    "not json in the middle": ("a.jsonl", LINES + b"oops\n" + LINES, "line 201: not JSON"),
    "no text field": ("a.jsonl", b'{"body": "x"}\n', "(its keys are body)"),
    "no text field in the middle": ("a.jsonl", LINES + b"{}\n" + LINES, "line 201: no text under the key 'text'"),
    "text that is a number": ("a.jsonl", b'{"text": 3}\n', "is 3, not text"),
    "text that is null": ("a.jsonl", b'{"text": null}\n', "is null, not text"),
    "lists": ("a.jsonl", b"[1, 2]\n", "line 1: not an object"),
    "one json document": ("a.jsonl", json.dumps([{"text": "a"}], indent=1).encode(), "line 1: not JSON"),
    "half a line": ("a.jsonl", LINES[:-20], "line 200: not JSON"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: half a surrogate pair"),
    "surrogate key": ("a.jsonl", b'{"\\ud800\\n": "x"}\n', "line 1: no text under the key"),
    "deep json": ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: not JSON"),
    "gz that ends early": ("a.jsonl.gz", gzip.compress(LINES)[:-100], "breaks off or is damaged"),
    "gz without checksum": ("a.jsonl.gz", gzip.compress(LINES)[:-4], "breaks off or is damaged"),
    "gz that is none": ("a.jsonl.gz", LINES, "breaks off or is damaged"),
    "gz that is damaged": ("a.jsonl.gz", gzip.compress(LINES)[:500] + b"\0" * 500, "breaks off or is damaged"),
    "gz that is empty": ("a.jsonl.gz", b"", "no document with text"),
    "zst that ends early": ("a.jsonl.zst", lambda: zstd(LINES)[:-100], "breaks off or is damaged"),
    "zst that is none": ("a.jsonl.zst", LINES, "breaks off or is damaged"),
    "zst that is empty": ("a.jsonl.zst", b"", "no document with text"),
    "csv without the column": ("a.csv", b"body,n\nhello,1\n", "no text in the column 'text' (there are body, n)"),
    "csv that is empty": ("a.csv", b"", "a.csv"),
    "csv that is binary": ("a.csv", bytes(range(256)) * 9, "a.csv"),
    "csv with a ragged row": ("a.csv", b"text,n\nhello,1\na,b,c,d\n", "a.csv"),
    "csv of numbers": ("a.csv", b"text\n1\n2\n", "no text in the column 'text'"),
    "parquet that is none": ("a.parquet", LINES, "a.parquet: cannot be read"),
    "parquet that is empty": ("a.parquet", b"", "a.parquet: cannot be read"),
    "unknown kind": ("a.bin", b"hello", "cannot tell what kind of file"),
    "no kind": ("corpus", b"hello", "cannot tell what kind of file"),
}


def _text(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Box], object]:
    return lambda box: box.text_file(name, content if isinstance(content, bytes) else content())


for title, (name, content, expected) in TEXTS.items():
    CASES[f"text: {title}"] = (_text(name, content), (expected, name))


@case("line 3: not UTF-8")
def validation_text_is_bad(box: Box) -> None:
    path = box.folder / "v.txt"
    path.write_bytes(b"a\nb\n\xff\n")
    box.raw["data"]["valid"] = [{"path": str(path)}]


@case("no document with text", "v.txt")
def validation_text_is_empty(box: Box) -> None:
    (box.folder / "v.txt").write_text("")
    box.raw["data"]["valid"] = [{"path": str(box.folder / "v.txt")}]


@case("leaves no document of")
def share_of_validation_chooses_nothing(box: Box) -> None:
    write_jsonl(box.folder / "a.jsonl", sentences(1, 3))
    box.raw["data"] |= {"train": [{"path": str(box.folder / "a.jsonl")}], "valid": [], "valid_fraction": 1e-9}


@case("neither a file nor a folder")
def text_is_a_fifo(box: Box) -> None:
    os.mkfifo(box.folder / "a.txt")
    box.raw["data"]["train"] = [{"path": str(box.folder / "a.txt")}]


@case("no text at")
def folder_without_text(box: Box) -> None:
    (box.folder / "texts").mkdir()
    box.raw["data"]["train"] = [{"path": str(box.folder / "texts")}]


@case("no text at")
def link_to_nowhere(box: Box) -> None:
    (box.folder / "a.txt").symlink_to("nowhere.txt")
    box.raw["data"]["train"] = [{"path": str(box.folder / "a.txt")}]


@case("no text at")
def link_to_itself(box: Box) -> None:
    (box.folder / "a.txt").symlink_to("a.txt")
    box.raw["data"]["train"] = [{"path": str(box.folder / "a.txt")}]


@case("a.txt", "Permission denied")
def unreadable_text(box: Box) -> None:
    box.text_file("a.txt", b"hello").chmod(0)
    box.around = weak_root()


@case("Permission denied", "shut")
def unreadable_folder_of_texts(box: Box) -> None:
    (box.folder / "shut").mkdir(mode=0)
    box.raw["data"]["train"] = [{"path": str(box.folder / "shut")}]
    box.around = weak_root()


@case("permission denied", "shut")
def text_in_an_unreadable_folder(box: Box) -> None:
    (box.folder / "shut").mkdir(mode=0)
    box.raw["data"]["train"] = [{"path": str(box.folder / "shut" / "a.txt")}]
    box.around = weak_root()


@case("Permission denied", "table.csv")
def unreadable_csv(box: Box) -> None:
    box.text_file("table.csv", b"text\nhello\n").chmod(0)
    box.around = weak_root()


@case("cannot read the recipe", "Permission denied")
def unreadable_recipe(box: Box) -> None:
    box.text = b"name: x\n"
    box.around = weak_root(unreadable=box.folder / "recipe.yaml")


@case("parquet", "cannot be read")
def parquet_that_breaks_off(box: Box) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": sentences(1, 50)}).to_parquet(box.folder / "whole")
    box.text_file("a.parquet", (box.folder / "whole").read_bytes()[:-50])


@case("no text in the column 'text' (there are body)")
def parquet_without_the_column(box: Box) -> None:
    from datasets import Dataset

    Dataset.from_dict({"body": sentences(1, 5)}).to_parquet(box.folder / "a.parquet")
    box.raw["data"]["train"] = [{"path": str(box.folder / "a.parquet")}]


@case("nowhere")
def hub_that_is_not_there(box: Box) -> None:
    box.raw["data"]["train"] = [{"hub": "nobody/nowhere"}]


@case("cannot be read", "hub")
def hub_folder_without_that_split(box: Box) -> None:
    (box.folder / "hub").mkdir()
    write_jsonl(box.folder / "hub" / "train.jsonl", sentences(1, 5))
    box.raw["data"]["train"] = [{"hub": str(box.folder / "hub"), "split": "nothing"}]


@case("cannot be read", "hub")
def hub_folder_that_is_empty(box: Box) -> None:
    (box.folder / "hub").mkdir()
    box.raw["data"]["train"] = [{"hub": str(box.folder / "hub")}]


@case("damaged", "delete that folder")
def damaged_token_store(box: Box) -> None:
    """Ours, not the user's: but a disk may damage it."""
    cache = box.folder / "cache"
    os.environ["BEQUEST_CACHE"] = str(cache)
    box.world.run(box.folder / "first", PLAIN)
    store = next((cache / "tokens").iterdir())
    (store / "tokens").write_bytes(b"")
    for path in (cache / "tokens").iterdir():
        (path / "tokens").write_bytes(b"")


@case("damaged", "progress.json")
def damaged_token_store_progress(box: Box) -> None:
    cache = box.folder / "cache"
    os.environ["BEQUEST_CACHE"] = str(cache)
    box.world.run(box.folder / "first", PLAIN)
    for path in (cache / "tokens").iterdir():
        (path / "progress.json").write_text('{"documents": "many"}')


@case("cannot use", "cache")
def cache_under_a_file(box: Box) -> None:
    (box.folder / "cache").write_text("")
    os.environ["BEQUEST_CACHE"] = str(box.folder / "cache")


@case("cannot load a tokenizer")
def trained_tokenizer_is_damaged(box: Box) -> None:
    os.environ["BEQUEST_CACHE"] = str(box.folder / "cache")
    changes = {"tokenizer": {"train": {"vocab": 300}}, "teachers": {}}
    box.world.run(box.folder / "first", PLAIN, **changes)
    for path in (box.folder / "cache" / "tokenizers").glob("*/tokenizer.json"):
        path.write_text(path.read_text()[:100])
    box.raw = box.world.raw(PLAIN, **changes)


# Teachers.


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILS = {
    "missing": Path.unlink,
    "cut": _half,
    "empty": lambda path: path.write_bytes(b""),
    "a list": lambda path: path.write_text("[]"),
    "no object": lambda path: path.write_text("7"),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
}


def _spoil(name: str, how: Callable[[Path], object]) -> Callable[[Box], object]:
    return lambda box: how(box.teacher() / name)


for name in ("config.json", "model.safetensors", "tokenizer.json"):
    for title, how in SPOILS.items():
        CASES[f"teacher: {name} {title}"] = (_spoil(name, how), ("cannot", "teacher"))

CONFIGS: dict[str, dict[str, Any]] = {
    "without a type": {"model_type": None},
    "of an unknown type": {"model_type": "nobody"},
    "with a text for a size": {"hidden_size": "many"},
    "with a negative size": {"hidden_size": -16},
    "with other sizes": {"hidden_size": 32},
    "with more layers": {"num_hidden_layers": 3},
    "with an unknown activation": {"hidden_act": "nothing"},
    "without heads": {"num_attention_heads": 0},
    "with a text for positions": {"max_position_embeddings": "many"},
    "with a text for vocabulary": {"vocab_size": "many"},
    "with code of its own": {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}},
}


def _config(changes: dict[str, Any]) -> Callable[[Box], object]:
    def spoil(box: Box) -> None:
        path = box.teacher() / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        box.may_begin = True  # whether weights fit the config is only seen when they are loaded

    return spoil


for title, changes in CONFIGS.items():
    CASES[f"teacher: config {title}"] = (_config(changes), ("teacher",))


@case("there is no model at")
def teacher_is_not_there(box: Box) -> None:
    box.raw = box.world.raw(KI, teachers__teacher={"load": str(box.folder / "nobody")})


@case("cannot read a model from")
def teacher_is_a_file(box: Box) -> None:
    (box.folder / "file").write_text("hello")
    box.raw = box.world.raw(KI, teachers__teacher={"load": str(box.folder / "file")})


@case("cannot read a model from")
def teacher_is_an_empty_folder(box: Box) -> None:
    (box.folder / "empty").mkdir()
    box.raw = box.world.raw(KI, teachers__teacher={"load": str(box.folder / "empty")})


@case("cannot read a model from")
def teacher_is_a_run_folder(box: Box) -> None:
    box.raw = box.world.raw(KI, teachers__teacher={"load": str(box.old["finished"])})


@case("does not fit data.objective causal")
def masked_teacher_for_causal(box: Box) -> None:
    box.raw = box.world.raw(KI, teachers__teacher={"load": box.world.teacher["masked"]})


@case("does not fit data.objective masked")
def causal_teacher_for_masked(box: Box) -> None:
    box.raw = box.world.raw(
        KI,
        "masked",
        teachers__teacher={"load": box.world.teacher["causal"]},
        tokenizer={"load": box.world.teacher["masked"]},
    )


@case("no mask token")
def masked_without_mask_token(box: Box) -> None:
    box.raw = box.world.raw(PLAIN, "masked", teachers={}, tokenizer={"load": box.world.teacher["causal"]})


@case("another vocabulary")
def teacher_with_another_vocabulary(box: Box) -> None:
    other, path = make_vocabulary("causal", 320), box.folder / "teacher"
    make_model("llama", other).model.save_pretrained(path)
    other.tokenizer.save_pretrained(path)
    own = {"load": box.world.teacher["causal"]}
    box.raw = box.world.raw(KI, teachers__teacher={"load": str(path)}, tokenizer=own)


@case("another vocabulary")
def model_with_fewer_rows_than_its_tokenizer(box: Box) -> None:
    path = box.teacher()
    make_vocabulary("causal", 320).tokenizer.save_pretrained(path)


@case("has no BOS, EOS, CLS or SEP token")
def teacher_without_eos(box: Box) -> None:
    path = box.teacher()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path / name).exists():
            found = json.loads((path / name).read_text())
            gone = {"bos_token", "eos_token", "pad_token"}
            (path / name).write_text(json.dumps({k: v for k, v in found.items() if k not in gone}))


@case("at most 64 positions; lower data.sequence from 128")
def teacher_with_too_short_a_context(box: Box) -> None:
    box.raw = box.world.raw(KI, data__sequence=128)


@case("needs a teacher")
def method_without_its_teacher(box: Box) -> None:
    box.raw = box.world.raw(KI, teachers={"other": {"load": box.world.teacher["causal"]}})


@case("cannot load the model", "student")
def student_half_copied(box: Box) -> None:
    shutil.copytree(box.world.teacher["causal"], box.folder / "student")
    _half(box.folder / "student" / "model.safetensors")
    box.raw = box.world.raw(PLAIN, student={"load": str(box.folder / "student")}, teachers={})


@case("there is no model at")
def student_is_not_there(box: Box) -> None:
    box.raw = box.world.raw(PLAIN, student={"load": "./nowhere"}, teachers={})


@case("lacks weights")
def student_lacks_weights(box: Box) -> None:
    from safetensors.torch import load_file, save_file

    path = box.folder / "student"
    shutil.copytree(box.world.teacher["causal"], path)
    tensors = load_file(path / "model.safetensors")
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    box.raw = box.world.raw(PLAIN, student={"load": str(path)}, teachers={})


@case("not all finite numbers", "teacher")
def teacher_full_of_nan(box: Box) -> None:
    from safetensors.torch import load_file, save_file

    path = box.teacher() / "model.safetensors"
    save_file({k: v * float("nan") for k, v in load_file(path).items()}, path, {"format": "pt"})
    box.may_begin = True


@case("lineage.json is damaged")
def teacher_with_damaged_lineage(box: Box) -> None:
    (box.teacher() / "lineage.json").write_text('{"name": ')


@case("lineage.json is damaged")
def teacher_with_lineage_that_is_a_list(box: Box) -> None:
    (box.teacher() / "lineage.json").write_text("[]")


@case("ermission denied", "model.safetensors")
def unreadable_teacher(box: Box) -> None:
    (box.teacher() / "model.safetensors").chmod(0)
    box.around = weak_root()


# Output folders.


@case("cannot use", "choose another with --out")
def out_is_a_file(box: Box) -> None:
    box.out.write_text("mine")


@case("cannot use", "choose another with --out")
def out_is_under_a_file(box: Box) -> None:
    (box.folder / "file").write_text("mine")
    box.out = box.folder / "file" / "run"


@case("cannot use", "choose another with --out")
def out_is_a_link_to_nowhere(box: Box) -> None:
    box.out.symlink_to("nowhere")


@case("cannot use", "choose another with --out")
def out_name_is_too_long(box: Box) -> None:
    box.out = box.folder / ("x" * 300)


@case("cannot use", "choose another with --out")
def out_in_proc(box: Box) -> None:
    box.out = Path("/proc/bequest-run")


@case("Permission denied", "choose another with --out")
def out_is_read_only(box: Box) -> None:
    box.out.mkdir(mode=0o500)
    box.around = weak_root()


@case("Permission denied", "choose another with --out")
def out_under_a_read_only_folder(box: Box) -> None:
    (box.folder / "shut").mkdir(mode=0o500)
    box.out = box.folder / "shut" / "run"
    box.around = weak_root()


@case("is in use by another process")
def out_is_in_use(box: Box) -> None:
    box.out.mkdir()
    box.around = locked(box.out / ".lock", wait=False)


@case("belongs to another recipe: seed was 0 and is 7")
def out_belongs_to_another_recipe(box: Box) -> None:
    box.begun("finished")
    box.overrides = ["seed=7"]


@case("belongs to another recipe")
def out_belongs_to_another_method(box: Box) -> None:
    box.begun()
    box.overrides = ["method=ki"]


@case("can only be raised")
def fewer_tokens_than_before(box: Box) -> None:
    box.begun()
    box.overrides = ["train.tokens=1408"]


@case("cannot be made longer")
def longer_than_its_schedule_allows(box: Box) -> None:
    box.begun("finished")
    box.overrides = ["train.tokens=2560"]


# Damaged runs.


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def _damage(name: str, how: Callable[[Path], object]) -> Callable[[Box], object]:
    return lambda box: how(newest(box.begun()) / name)


for name in ("model.safetensors", "trainer.safetensors", "trainer.json", "config.json", "tokenizer.json"):
    for title, how in SPOILS.items():
        if (name, title) != ("trainer.json", "a list"):
            CASES[f"checkpoint: {name} {title}"] = (_damage(name, how), ("is damaged", name, "delete that folder"))


def _trainer(change: Callable[[dict[str, Any]], object]) -> Callable[[Box], object]:
    def spoil(box: Box) -> None:
        path = newest(box.begun()) / "trainer.json"
        trainer = json.loads(path.read_text())
        change(trainer)
        path.write_text(json.dumps(trainer))

    return spoil


TRAINERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "without a position": (lambda t: t.pop("position"), "is damaged (trainer.json)"),
    "with half a position": (lambda t: t["position"].pop("step"), "is damaged (trainer.json)"),
    "with a text for a position": (lambda t: t["position"].update(step="nine"), "is damaged (trainer.json)"),
    "with a position too many": (lambda t: t["position"].update(more=1), "is damaged (trainer.json)"),
    "without identity": (lambda t: t.pop("identity"), "is damaged (trainer.json)"),
    "without a ledger": (lambda t: t.pop("ledger"), "is damaged (trainer.json)"),
    "with a list for files": (lambda t: t.update(files=[]), "is damaged (trainer.json)"),
    "with no files": (lambda t: t.update(files={}), "is damaged (trainer.json)"),
    "of another text": (lambda t: t["identity"].update({"training text": ["x"]}), "is damaged (trainer.json)"),
    "of another tokenizer": (lambda t: t["identity"].update(tokenizer="x"), "is damaged (trainer.json)"),
    "of another teacher": (lambda t: t["identity"].update(teacher={}), "is damaged (trainer.json)"),
}
for title, (change, expected) in TRAINERS.items():
    CASES[f"checkpoint: trainer.json {title}"] = (_trainer(change), (expected,))


def _file(which: str, name: str, content: bytes) -> Callable[[Box], object]:
    return lambda box: (box.begun(which) / name).write_bytes(content)


FILES = {
    "summary.json cut": ("finished", "summary.json", b'{"name": "te', "summary.json is damaged; delete it"),
    "summary.json empty": ("finished", "summary.json", b"", "summary.json is damaged; delete it"),
    "summary.json null": ("finished", "summary.json", b"null", "summary.json is damaged; delete it"),
    "summary.json a list": ("finished", "summary.json", b"[1]", "summary.json is damaged; delete it"),
    "summary.json hollow": ("finished", "summary.json", b'{"name": "test"}', "summary.json is damaged; delete it"),
    "summary.json binary": ("finished", "summary.json", bytes(range(256)), "summary.json is damaged; delete it"),
    "metrics.jsonl no json": ("stopped", "metrics.jsonl", b"hello\n{}\n", "metrics.jsonl line 1 is damaged"),
    "metrics.jsonl lists": ("stopped", "metrics.jsonl", b"[]\n[]\n", "metrics.jsonl line 1 is damaged"),
    "metrics.jsonl a text for a step": (
        "stopped",
        "metrics.jsonl",
        b'{"step": "one", "tokens": 128}\n' * 2,
        "metrics.jsonl line 1 is damaged",
    ),
    "metrics.jsonl hollow": (
        "stopped",
        "metrics.jsonl",
        b'{"step": 1, "tokens": 128, "loss": null}\n' * 2,
        "metrics.jsonl line 1 is damaged",
    ),
    "metrics.jsonl binary": ("stopped", "metrics.jsonl", bytes(range(256)) * 9, "metrics.jsonl line 1 is damaged"),
    "history.jsonl cut": ("stopped", "history.jsonl", b'{"when": \n{}\n', "history.jsonl line 1 is damaged"),
    "history.jsonl binary": ("stopped", "history.jsonl", bytes(range(256)), "history.jsonl line 1 is damaged"),
    "history.jsonl hollow": ("stopped", "history.jsonl", b"{}\n", "history.jsonl line 1 is damaged"),
    "recipe.yaml empty": ("stopped", "recipe.yaml", b"", "run/recipe.yaml"),
    "recipe.yaml cut": ("stopped", "recipe.yaml", b"name: test\ndata: {tra", "run/recipe.yaml"),
    "recipe.yaml binary": ("stopped", "recipe.yaml", bytes(range(256)), "run/recipe.yaml"),
    "recipe.yaml hollow": ("stopped", "recipe.yaml", b"name: test\n", "run/recipe.yaml is damaged"),
}
for title, (which, name, content, expected) in FILES.items():
    CASES[f"run: {title}"] = (_file(which, name, content), (expected,))


@case("run/recipe.yaml", "train.tokens")
def run_recipe_without_tokens(box: Box) -> None:
    path = box.begun() / "recipe.yaml"
    raw = config.read(path)
    del raw["train"]["tokens"]
    config.write(raw, path)


@case("run/recipe.yaml", "train.tokens")
def run_recipe_with_a_text_for_tokens(box: Box) -> None:
    path = box.begun() / "recipe.yaml"
    raw = config.read(path)
    raw["train"]["tokens"] = "many"
    config.write(raw, path)


@case("run/recipe.yaml: Is a directory")
def run_recipe_is_a_folder(box: Box) -> None:
    run = box.begun()
    (run / "recipe.yaml").unlink()
    (run / "recipe.yaml").mkdir()


@case("cannot use", "metrics.jsonl")
def metrics_is_a_folder(box: Box) -> None:
    run = box.begun()
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()


@case("cannot use", "checkpoints")
def checkpoints_is_a_file(box: Box) -> None:
    box.out.mkdir()
    (box.out / "checkpoints").write_text("mine")
    box.may_begin = True


@case("is damaged", "notes")
def something_else_among_the_checkpoints(box: Box) -> None:
    (box.begun() / "checkpoints" / "step-notes").write_text("mine")


# Permissions, for root too: it does without the power to ignore them.


@contextmanager
def weak_root(unreadable: Path | None = None) -> Iterator[None]:
    """Within the block permissions hold even for root (capabilities belong to a thread and can be taken back)."""
    if unreadable:
        unreadable.chmod(0)
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    whole = sets[0]
    sets[0] = whole & ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = whole
        assert libc.capset(header, sets) == 0


# The test.


@pytest.fixture(scope="module")
def old(world, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("old")
    laws.stopped_at(world, folder / "stopped", 9, PLAIN, "causal")
    world.run(folder / "finished", PLAIN)
    return {name: folder / name for name in ("stopped", "finished")}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for locks."""
    found = folder.rglob("*") if os.path.isdir(folder) else ()
    return {str(p): p.read_bytes() for p in found if p.is_file() and p.name != ".lock"}


def left_behind(folder: Path) -> list[str]:
    """What looks half-written."""
    return [str(p) for p in folder.rglob("*") if p.suffix in (".tmp", ".old")]


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_nothing_half_written(world, old, tmp_path, monkeypatch, capfd, name):
    spoil, words = CASES[name]
    monkeypatch.setenv("BEQUEST_CACHE", os.environ["BEQUEST_CACHE"])
    monkeypatch.chdir(tmp_path)
    box = Box(world, tmp_path, old, world.raw(PLAIN), out=tmp_path / "run")
    spoil(box)
    if box.text is None:
        config.write(box.raw, tmp_path / "recipe.yaml")
    else:
        (tmp_path / "recipe.yaml").write_bytes(box.text)
    before = contents(box.out)
    monkeypatch.setattr(sys, "argv", ["bequest", "train", "recipe.yaml", *box.overrides, "--out", str(box.out)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left, box.around:
        cli.main()
    lines = capfd.readouterr().err.splitlines()
    assert left.value.code == 2, lines
    assert [line[:9] == "bequest: " for line in lines] == [False] * (len(lines) - 1) + [True], lines
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].isprintable()
    for word in words:
        assert word in lines[-1], lines
    if not box.may_begin:
        after = contents(box.out)
        assert sorted(after) == sorted(before)
        assert [path for path in before if after[path] != before[path]] == []
    assert not os.path.exists(box.out / "checkpoint") or any("/checkpoint/" in path for path in before)
    assert left_behind(tmp_path) == []
    assert left_behind(Path(os.environ["BEQUEST_CACHE"])) == []


def test_validation_text_that_is_trained_on_is_only_warned_of(world, tmp_path, monkeypatch, capfd):
    both = write_jsonl(tmp_path / "both.jsonl", [*sentences(1, 200)[:7], *sentences(3, 5)])
    raw = world.raw(PLAIN, data__valid=[{"path": str(both), "source": "one"}], eval__tokens=0)
    config.write(raw, tmp_path / "recipe.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bequest", "train", "recipe.yaml", "train.tokens=256"])
    capfd.readouterr()
    cli.main()
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "7 of 12 validation documents of the source 'one' also stand in the training text" in warnings[0]


# Other processes.


def start(recipe: Path, out: Path) -> subprocess.Popen:
    """The program; Ctrl-C works even if this test was started in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "bequest", "train", str(recipe), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_at_any_moment(world, tmp_path):
    """While it imports, prepares, trains or saves: one sentence, and the same command goes on."""
    recipe, out, rng = tmp_path / "recipe.yaml", tmp_path / "run", random.Random(0)
    config.write(world.raw(KI, train__tokens=12800, train__save_every_tokens=1280), recipe)
    codes = []
    for delay in (0.0, 0.5, *(rng.uniform(1.0, 4.0) for _ in range(3))):
        process = start(recipe, out)
        while process.poll() is None and "pydantic_core" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.01)  # until then it is Python's own affair
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        codes.append(process.returncode)
        assert process.returncode in (0, 130), errors
        assert "Traceback" not in errors
        said = [line for line in errors.splitlines() if line.startswith("bequest: ")]
        assert len(said) == (process.returncode == 130), errors
        if said:
            assert errors.splitlines()[-1] == said[0]
            assert "stopped" in said[0]
    assert codes.count(130) >= 2
    assert world.run(out, KI, train__tokens=12800, train__save_every_tokens=1280)["tokens"] == 12800
    assert left_behind(out) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size", [4, 40, 150, 300])
def test_full_disk(world, tmp_path, monkeypatch, capfd, size):
    """From the first file to a checkpoint: whatever the disk has no room for, one sentence, nothing half-written."""
    disk, recipe = tmp_path / "disk", tmp_path / "recipe.yaml"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        config.write(world.raw(PLAIN, train__save_every_tokens=128, train__keep=20), recipe)
        monkeypatch.setattr(sys, "argv", ["bequest", "train", str(recipe), "--out", str(disk / "run")])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert "the disk is full" in capfd.readouterr().err.splitlines()[-1]
        assert left.value.code == 2
        assert left_behind(disk) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert world.run(disk / "run", PLAIN, train__save_every_tokens=128, train__keep=20)["tokens"] == 1536
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
