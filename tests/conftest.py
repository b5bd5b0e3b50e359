"""Small worlds for tests: text from a fixed grammar, tokenizers and models made in code, recipes over them."""

import copy
import json
import os
import random
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

if not torch.cuda.is_available():  # then Triton's kernels are interpreted; it asks once, when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

from bequest import sense
from bequest.config import decode
from bequest.data import tokenizer as tokenizers
from bequest.job.train import train
from bequest.model import build
from bequest.recipe import Recipe, Student
from bequest.types import Doc

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared" / "data"
CAUSAL, MASKED = ("llama", "qwen3", "gpt2"), ("bert", "roberta")


def sentences(seed: int, documents: int, words: int = 60) -> list[str]:
    """Text with something to learn: a word depends on the one before it."""
    rng = random.Random(seed)
    nouns = ["house", "teacher", "river", "student", "garden", "letter", "größe", "市", "bird", "engine"]
    verbs = ["sees", "builds", "finds", "writes", "leaves", "counts"]
    texts = []
    for _ in range(documents):
        noun, out = rng.choice(nouns), []
        for _ in range(rng.randrange(5, words)):
            verb = verbs[(nouns.index(noun) + rng.randrange(2)) % len(verbs)]
            noun = nouns[(nouns.index(noun) * 3 + verbs.index(verb)) % len(nouns)]
            out.append(f"the {noun} {verb}" if rng.random() < 0.7 else f"{rng.randrange(1000)} the {noun} {verb}")
        texts.append(" ".join(out) + ".\n")
    return texts


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    return path


def make_vocabulary(objective: str = "causal", vocab: int = 300):
    docs = [Doc(t, "text") for t in sentences(0, 50)]
    return tokenizers.vocabulary(tokenizers.train([docs], vocab, 1 << 20, objective), "a test")


def make_model(family: str, vocabulary, seed: int = 0, **sizes):
    torch.manual_seed(seed)
    sizes = {"hidden": 16, "layers": 2, "heads": 2, **sizes}
    return build.build(Student(family=family, **sizes), vocabulary, 64)


class World:
    """A folder with text, one teacher per objective, and recipes over them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.train = write_jsonl(folder / "train.jsonl", sentences(1, 200))
        self.other = write_jsonl(folder / "other.jsonl", sentences(2, 60))
        self.valid = write_jsonl(folder / "valid.jsonl", sentences(3, 30))
        self.vocabulary = {"causal": make_vocabulary("causal"), "masked": make_vocabulary("masked")}
        self.teacher = {"causal": self.save("llama", "causal"), "masked": self.save("bert", "masked")}

    def save(self, family: str, objective: str, **sizes) -> str:
        path = self.folder / f"{family}-{objective}-{len(sizes)}"
        model = make_model(family, self.vocabulary[objective], seed=7, **sizes)
        model.model.save_pretrained(path)
        self.vocabulary[objective].tokenizer.save_pretrained(path)
        return str(path)

    def weak_teacher(self) -> dict:
        """A teacher that has learned a very little: a student passes it after a few steps."""
        out = self.folder / "weak"
        if not out.exists():
            self.run(out, {"name": "plain"}, seed=5, train__tokens=256)
        return {"load": str(out / "checkpoint")}

    def raw(self, method: dict, objective: str = "causal", **changes) -> dict:
        raw = {
            "name": "test",
            "data": {
                "train": [{"path": str(self.train), "source": "one"}, {"path": str(self.other), "source": "two"}],
                "valid": [{"path": str(self.valid), "source": "one"}],
                "sequence": 32,
                "objective": objective,
            },
            "student": {
                "family": "llama" if objective == "causal" else "roberta",
                "hidden": 16,
                "layers": 2,
                "heads": 2,
            },
            "teachers": {"teacher": {"load": self.teacher[objective]}},
            "method": method,
            "train": {
                "tokens": 1536,
                "batch_tokens": 128,
                "precision": "fp32",
                "optimiser": {"lr": 0.01},
                "save_every_tokens": 512,
            },
            "eval": {"tokens": 1000},
        }
        for key, value in changes.items():
            at = raw
            *path, last = key.split("__")
            for part in path:
                at = at.setdefault(part, {})
            at[last] = value
        return copy.deepcopy(raw)

    def recipe(self, method: dict, objective: str = "causal", **changes) -> Recipe:
        recipe = decode(Recipe, self.raw(method, objective, **changes), "a test")
        assert sense.problems(recipe) == []
        return recipe

    def run(self, out: Path, method: dict, objective: str = "causal", **changes) -> dict:
        return train(self.recipe(method, objective, **changes), out)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    os.environ["BEQUEST_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def vocabulary():
    return make_vocabulary()


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.exists():
        pytest.skip("the shared corpora and models are not beside this checkout")
    return SHARED


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "checkpoint" / "model.safetensors")


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(out: Path) -> list[tuple]:
    from bequest.report import metrics

    lines = list(metrics.read(out / "metrics.jsonl"))
    return [(x["step"], x.get("loss"), str(x.get("parts")), str(x.get("valid"))) for x in lines]
