"""What a recipe says, as frozen dataclasses, and the checks that need more than one key.

The method's own keys are decoded by the method (its fields are its hyper-parameters); everything else stands here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types as at

from .config import (
    AboveZero,
    BelowOne,
    Config,
    Count,
    NotNegative,
    Positive,
    Share,
    Temperature,
    override,
    read,
    salvage,
)
from .types import RecipeError

CAUSAL_FAMILIES = ("llama", "qwen3", "gpt2")
MASKED_FAMILIES = ("bert", "roberta")
LEAST_VOCAB = {"causal": 258, "masked": 260}
"""256 bytes and the special tokens."""
MOST_PARAMETERS = 1e13
"""More is a slip of the finger."""


class Text(Config):
    """Documents of one domain: files, or a data set of a hub (or a local folder in a hub's layout)."""

    path: str = ""
    """A file, a folder (every file in it that we read) or a glob."""
    hub: str = ""
    """A Hugging Face data set id or a local data set folder, streamed."""
    split: str = "train"
    """Which split of `hub`."""
    source: str = "text"
    """The domain's name: batches, validation and reports are per source."""
    field: str = "text"
    """The key or column that holds the text (jsonl, parquet, csv, hub)."""
    format: Literal["auto", "text", "jsonl", "parquet", "csv"] = "auto"
    """What the files are; `auto` goes by their names."""


class Data(Config):
    """Text and how it becomes sequences."""

    train: tuple[Text, ...]
    """What is learned from; several entries may share a source."""
    valid: tuple[Text, ...] = ()
    """Text that is only measured on; its sources need not be those of `train`."""
    valid_fraction: BelowOne = 0.0
    """Instead of `valid`: this share of the training documents, chosen by their hash."""
    sequence: Positive = 512
    """Positions per sequence."""
    objective: Literal["causal", "masked"] = "causal"
    """Predict the next token, or tokens that were masked."""
    mask_rate: Annotated[float, at.Gt(0.0), at.Lt(1.0)] = 0.15
    """Masked objective: share of positions that are predicted (80 % masked, 10 % random, 10 % kept)."""
    masks: Literal["epoch", "static"] = "epoch"
    """Masked objective: new masks in every epoch, or the same for ever, so that a store of signals serves every epoch."""
    mask_seed: Count = 0
    """Of the training masks: runs whose `seed`s differ see the same masks, and can learn from one store."""


class TrainTokenizer(Config):
    """A byte-level BPE tokenizer trained on the training text."""

    vocab: Positive
    """Number of ids, special tokens included; at least 256 and the special tokens."""
    sample_mb: Positive = 100
    """It sees this much text from each source, in order."""


class Tokenizer(Config):
    """Trained here or loaded from a folder or a hub; without either it is the teacher's."""

    train: TrainTokenizer | None = None
    """Train one on the training text."""
    load: str = ""
    """A folder that holds tokenizer.json, or a hub id."""


class Student(Config):
    """The successor: built from sizes, or loaded."""

    load: str = ""
    """Go on from the model in this folder or hub id; the sizes below are then not used."""
    family: Literal["", "llama", "qwen3", "gpt2", "bert", "roberta"] = ""
    """The architecture: llama, qwen3 and gpt2 are causal, bert and roberta masked."""
    hidden: Positive = 256
    """Width; a multiple of `heads`."""
    layers: Annotated[int, at.Gt(0), at.Le(10_000)] = 4
    """Number of blocks."""
    heads: Positive = 4
    """Attention heads per block."""
    kv_heads: Count = 0
    """Key-value heads (llama, qwen3); 0 is as many as heads."""
    feed_forward: Count = 0
    """Inner width of the feed-forward blocks; 0 is the family's usual multiple of `hidden`."""
    vocab: Count = 0
    """Rows of the embedding, if more than the tokenizer has; 0 is as many."""
    dropout: Share = 0.0
    """The same share at every place where the family drops."""
    tied: bool = True
    """Whether the head shares the embedding's weights."""
    remote_code: bool = False
    """Run Python code that comes with the loaded folder. Only for folders that you trust."""


class TeacherModel(Config):
    """A predecessor and how it is asked: a model, a store of what it said, or several others together."""

    load: str = ""
    """A folder or a hub id."""
    store: str = ""
    """A folder: `bequest teach` keeps there what the model says, and `bequest train` learns from it, without the model."""
    server: str = ""
    """URL of a vLLM server that serves the model of `load`: `bequest teach` asks it and reads no weights."""
    route: dict[str, str] = field(default_factory=dict)
    """Another teacher's name for each source: the texts of a source are taught by its own teacher."""
    ensemble: dict[str, AboveZero] = field(default_factory=dict)
    """Weights of other teachers by name: the weighted mean of what they say. Only the weights' proportions count."""
    keep: Count = 0
    """Keep only the K likeliest entries of a live model and one bucket for the rest; 0 keeps all."""
    control: Literal["none", "renormalise", "shuffle", "uniform"] = "none"
    """A placebo in the teacher's place: the rest dropped, other rows' signals, or label smoothing."""
    remote_code: bool = False
    """Run Python code that comes with the loaded folder. Only for folders that you trust."""

    @property
    def live(self) -> bool:
        """Whether the model itself is asked."""
        return bool(self.load) and not self.store and self.control != "uniform"


class Teach(Config):
    """What `bequest teach` keeps of every answer."""

    kind: Literal["sampled", "topk"] = "sampled"
    """Unbiased draws from the teacher, or its likeliest ids with their log-probabilities and the mass of the rest."""
    draws: Annotated[int, at.Ge(1), at.Le(4096)] = 50
    """sampled: draws per row; 50 give about 12 different ids of a trained teacher."""
    keep: Count | None = None
    """At most so many ids per row: topk 32 unless given. sampled: only the likeliest so many can be drawn (no limit)."""
    top_p: Annotated[float, at.Gt(0.0), at.Le(1.0)] = 1.0
    """First only the likeliest ids that make up this mass. For sampled it needs `keep`; draws are then biased."""
    temperatures: tuple[Temperature, ...] = ()
    """At which the signals can be asked for; empty is what the method asks at. sampled holds one."""
    values: Literal["6bit", "fp32"] = "6bit"
    """Log-probabilities in 6 bits (steps of 1/4 nat) and scalars in 16 (steps of 1/1024 nat), or all in fp32."""
    sequences: Literal["asked", "all"] = "asked"
    """The sequences that this recipe asks about, or whole epochs: for recipes with another seed, or a longer schedule."""
    seed: Count = 0
    """Of the draws."""
    shard_tokens: Positive = 262_144
    """Tokens per shard: what a killed harvest loses at most."""


class OptimiserSettings(Config):
    """AdamW, or Muon for the matrices and AdamW for everything else."""

    name: Literal["adamw", "muon"] = "adamw"
    """Which of the two."""
    lr: AboveZero = 1e-3
    """Peak learning rate; Muon's updates are scaled so that AdamW's rates suit it."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """AdamW's decay rates of its two moments."""
    eps: AboveZero = 1e-8
    """AdamW's; keeps a division by zero away."""
    weight_decay: NotNegative = 0.1
    """Not for norms, biases and embeddings."""
    momentum: Share = 0.95
    """Muon's."""


class ScheduleSettings(Config):
    """The learning rate's course over the run. `warmup` and `decay`: below 1 a share of the run, from 1 on tokens."""

    name: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Warm-up-stable-decay, or a fall over the whole run, or none."""
    warmup: NotNegative = 0.02
    """The first part, in which the rate rises from zero."""
    decay: NotNegative = 0.2
    """wsd only: the last part of the run, in which the rate falls linearly."""
    floor: Share = 0.0
    """The share of the peak at which it ends."""


class Train(Config):
    """How long, how large, how fast."""

    tokens: Positive
    """Tokens of the whole run; text is read again when it ends."""
    batch_tokens: Positive = 8192
    """Tokens per step; a multiple of `data.sequence`."""
    micro_batch_tokens: Count = 0
    """What is held in memory at once; 0 is the whole batch. It changes nothing but memory and rounding."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 runs the model under autocast; weights and sums stay fp32."""
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 is no limit."""
    save_every_tokens: Count = 0
    """0 saves at the end and when stopped."""
    keep: Positive = 2
    """How many checkpoints to go on from are kept."""
    log_every_steps: Positive = 1
    """How often a step is written to metrics.jsonl."""
    compile: bool = False
    """Whether PyTorch compiles the student's blocks: a slower start, faster steps."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU when there is one."""
    threads: Annotated[int, at.Ge(0), at.Le(4096)] = 0
    """CPU threads; 0 is PyTorch's own choice."""


class Eval(Config):
    """When validation runs. How often changes no bit of training."""

    every_tokens: Count = 0
    """0 evaluates at the end only."""
    tokens: Count = 0
    """Use whole documents from the start of each source, about this many tokens; 0 is all."""


class Tracker(Config):
    """Somewhere else to watch the run; `metrics.jsonl` is always written."""

    name: Literal["tensorboard", "wandb", "mlflow", "trackio"]
    """Which one; it must be installed: pip install 'bequest[wandb]'."""
    project: str = "bequest"
    """Under which name the tracker files the run (wandb, mlflow, trackio)."""


class Recipe(Config):
    """A whole run."""

    name: str
    """The run folder is runs/<name> unless --out says otherwise."""
    seed: Count = 0
    """Of the fresh weights, the order of the text, dropout and training masks."""
    data: Data
    tokenizer: Tokenizer | None = None
    student: Student
    teachers: dict[str, TeacherModel] = field(default_factory=dict)
    """Predecessors by the name under which the method asks for them; a path alone stands for {load: PATH}."""
    teach: Teach = Teach()
    """For teachers that have both `load` and `store`."""
    method: dict[str, Any]
    """A method's name, or a mapping with `name` and the method's own keys."""
    train: Train
    eval: Eval = Eval()
    trackers: tuple[Tracker, ...] = ()
    """Where else to watch; a name alone stands for {name: NAME}."""


MAY_CHANGE = (
    "eval",
    "trackers",
    "teach",
    "train.tokens",
    "train.threads",
    "train.keep",
    "train.save_every_tokens",
    "train.log_every_steps",
)
"""What may differ when a run is resumed (a longer `train.tokens` only under a schedule that allows it)."""


def load(path: Path, assignments: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a file, with overrides such as `data.sequence=512` applied.

    Raises RecipeError, one sentence per mistake that names the key and the file. Relative paths stay relative to the working folder.
    """
    recipe, mistakes = examine(path, assignments)
    if recipe is None or mistakes:
        raise RecipeError(*mistakes)
    return recipe


def examine(path: Path, assignments: tuple[str, ...] = ()) -> tuple[Recipe | None, list[str]]:
    """The recipe, or what can be read of it (None: too little), and a sentence for every mistake that needs no other file."""
    raw = _shorthands(override(_shorthands(read(path)), assignments))
    recipe, mistakes = salvage(Recipe, raw, str(path))
    impossible = problems(recipe) if recipe else []
    left_out = {key.split(".")[-1] for key in mistakes}  # what they are about is not known
    sure = [f"{path}: {sentence}" for sentence in impossible if not left_out & set(re.findall(r"\w+", sentence))]
    return recipe, [*mistakes.values(), *sure]


def _shorthands(raw: dict[str, Any]) -> dict[str, Any]:
    """`teachers: {teacher: PATH}` is `{teacher: {load: PATH}}`; `method: ki` and `trackers: [wandb]` are names."""
    teachers = raw.get("teachers")
    if isinstance(teachers, dict):
        raw["teachers"] = {name: {"load": spec} if isinstance(spec, str) else spec for name, spec in teachers.items()}
    if isinstance(raw.get("trackers"), list):
        raw["trackers"] = [{"name": one} if isinstance(one, str) else one for one in raw["trackers"]]
    if isinstance(raw.get("method"), str):
        raw["method"] = {"name": raw["method"]}
    return raw


def problems(recipe: Recipe) -> list[str]:
    """Every impossible combination in a recipe, one sentence each."""
    data, student, train = recipe.data, recipe.student, recipe.train
    found = []
    for place, texts in (("data.train", data.train), ("data.valid", data.valid)):
        for number, text in enumerate(texts):
            if bool(text.path) == bool(text.hub):
                found.append(f"{place}.{number} needs either path or hub")
    if not data.train:
        found.append("data.train is empty; name at least one file, folder, glob or data set")
    if data.valid and data.valid_fraction:
        found.append("data.valid and data.valid_fraction exclude each other; keep one")
    if not data.valid and not data.valid_fraction:
        found.append("there is nothing to validate on; give data.valid, or data.valid_fraction such as 0.01")
    schedule = train.schedule
    if schedule.name == "wsd" and schedule.warmup < 1 and schedule.decay < 1 and schedule.warmup + schedule.decay > 1:
        found.append(
            "train.schedule.warmup and train.schedule.decay overlap; as shares of the run they add up to 1 at most"
        )
    if not recipe.name or set(recipe.name) & set("/\\\0") or recipe.name in (".", ".."):
        found.append(f"name {recipe.name!r} cannot be a folder's name; use letters, digits and dashes")
    tokenizer = recipe.tokenizer
    if tokenizer and bool(tokenizer.train) == bool(tokenizer.load):
        found.append("tokenizer needs either train or load")
    if tokenizer and tokenizer.train and tokenizer.train.vocab < LEAST_VOCAB[data.objective]:
        found.append(
            f"tokenizer.train.vocab {tokenizer.train.vocab} is too small; "
            f"byte-level BPE needs at least {LEAST_VOCAB[data.objective]}"
        )
    for name, teacher in recipe.teachers.items():
        found += _teacher_problems(name, teacher, recipe)
    if recipe.teach.kind == "sampled" and recipe.teach.top_p < 1 and not recipe.teach.keep:
        found.append("teach.top_p with kind sampled needs teach.keep, such as 100: the most ids that can be drawn")
    if recipe.teach.kind == "sampled" and len(recipe.teach.temperatures) > 1:
        found.append(
            "teach.temperatures has several, but draws are bound to one; harvest a store for each, or use teach.kind topk"
        )
    if tokenizer is None and not student.load and not any(t.load or t.store for t in recipe.teachers.values()):
        found.append("there is no tokenizer to use; give tokenizer, a teacher or student.load")
    found += _student_problems(student, data.objective)
    if train.batch_tokens % data.sequence:
        found.append(f"train.batch_tokens {train.batch_tokens} must be a multiple of data.sequence {data.sequence}")
    if train.micro_batch_tokens % data.sequence:
        found.append(
            f"train.micro_batch_tokens {train.micro_batch_tokens} must be a multiple of data.sequence {data.sequence}"
        )
    if train.tokens < train.batch_tokens:
        found.append(
            f"train.tokens {train.tokens} is less than one batch of {train.batch_tokens}; "
            "raise it or lower train.batch_tokens"
        )
    if not isinstance(recipe.method.get("name"), str):
        found.append("method needs a name, for example {name: ki}")
    return found


def _teacher_problems(name: str, teacher: TeacherModel, recipe: Recipe) -> list[str]:
    found, key = [], f"teachers.{name}"
    ways = [bool(teacher.load or teacher.store), bool(teacher.route), bool(teacher.ensemble)]
    if not any(ways) and teacher.control != "uniform":
        found.append(f"{key} needs load, the folder or hub id of a model (or store, route or ensemble)")
    if sum(ways) > 1:
        found.append(f"{key} is several things at once; keep one of load (or store), route and ensemble")
    if teacher.keep and not (teacher.load and not teacher.store):
        found.append(f"{key}.keep is for live models alone; what a store keeps is said in teach")
    for other in dict.fromkeys([*teacher.route.values(), *teacher.ensemble]):
        if other not in recipe.teachers:
            found.append(f"{key} names the teacher {other!r}, which is not there; add it to teachers")
        elif recipe.teachers[other].route or recipe.teachers[other].ensemble:
            found.append(f"{key} names the teacher {other!r}, which is itself several; name models and stores")
    if teacher.route:
        for source in dict.fromkeys(text.source for text in recipe.data.train):
            if source not in teacher.route:
                found.append(f"{key}.route has no teacher for the source {source!r} of data.train; add one")
    stores = [Path(t.store).absolute() for n, t in recipe.teachers.items() if t.store and n != name]
    if teacher.store and Path(teacher.store).absolute() in stores:
        found.append(f"{key}.store is another teacher's store, too; give each its own folder")
    return found + (_server_problems(key, teacher, recipe) if teacher.server else [])


def _server_problems(key: str, teacher: TeacherModel, recipe: Recipe) -> list[str]:
    found, teach = [], recipe.teach
    if not teacher.server.startswith(("http://", "https://")):
        found.append(f"{key}.server {teacher.server!r} is no URL; write it like http://localhost:8000")
    if not (teacher.load and teacher.store):
        found.append(
            f"{key}.server needs load, the folder or hub id of the model that it serves, and store, where to keep its answers"
        )
    if recipe.data.objective != "causal":
        found.append(f"{key}.server tells next tokens alone; leave it out, or set data.objective to causal")
    if teach.kind == "sampled" or any(t != 1 for t in teach.temperatures):
        found.append(
            f"{key}.server tells only the likeliest ids at temperature 1; "
            "set teach.kind to topk and teach.temperatures to [1], or leave the server out"
        )
    return found


def _student_problems(student: Student, objective: str) -> list[str]:
    if bool(student.load) == bool(student.family):
        return ["student needs either family (with sizes) or load"]
    if student.load:
        return []
    found = []
    size = student.layers * 4 * student.hidden * (student.hidden + (student.feed_forward or student.hidden))
    if size + student.vocab * student.hidden > MOST_PARAMETERS:
        found.append("the student would have more than 1e13 parameters; lower student.hidden, layers or feed_forward")
    families = CAUSAL_FAMILIES if objective == "causal" else MASKED_FAMILIES
    if student.family not in families:
        found.append(
            f"student.family {student.family} does not fit data.objective {objective}; it takes {', '.join(families)}"
        )
    if student.hidden % student.heads:
        found.append(f"student.hidden {student.hidden} must be a multiple of student.heads {student.heads}")
    elif student.family in ("llama", "qwen3") and student.hidden // student.heads % 2:
        found.append(
            f"student.hidden / student.heads is {student.hidden // student.heads}; rotary positions need an even number"
        )
    if student.kv_heads and student.heads % student.kv_heads:
        found.append(f"student.heads {student.heads} must be a multiple of student.kv_heads {student.kv_heads}")
    if student.kv_heads and student.family not in ("llama", "qwen3"):
        found.append(f"student.kv_heads has no meaning for family {student.family}; leave it out")
    return found


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors about a recipe name its file, wherever they are found."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(*(p if p.startswith(f"{path}:") else f"{path}: {p}" for p in error.problems)) from None
