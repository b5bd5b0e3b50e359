"""What a recipe says, as frozen dataclasses.

The method's own keys are decoded by the method (its fields are its hyper-parameters); everything else stands here. What
needs more than one key to be wrong is in sense.py.
"""

from __future__ import annotations

from dataclasses import field
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
)

LEAST_VOCAB = {"causal": 258, "masked": 260}
"""256 bytes and the special tokens."""


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
    part: tuple[Share, Share] = (0.0, 1.0)
    """Which of its documents, by their hash, from one share up to another: [0, 0.1] and [0.1, 1] have none in common."""
    stage: str = ""
    """data.train: the stage of the run's life in which it is learned; stages come in the order in which they are first named."""


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
    prompts: bool = False
    """Whether each source of `train` has a token of its own, learned like any other and never predicted, before its text (ELLE)."""
    prompt_drop: BelowOne = 0.0
    """The share of training sequences without it, so that a model can be asked about text of an unknown source."""


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
    control: Literal["none", "renormalise", "shuffle", "smooth", "uniform", "untrained"] = "none"
    """A placebo in the teacher's place: the rest dropped, other rows' signals, label smoothing (two kinds), or fresh weights."""
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
    """sampled: draws per row; 50 give about 13 to 35 different ids, the fewer the surer the teacher is."""
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


class Life(Config):
    """How a run whose data.train has several stages goes from one to the next."""

    shares: tuple[AboveZero, ...] = ()
    """Of the run's steps, in proportion, one for each stage; empty is equal shares."""
    replay: BelowOne = 0.0
    """The share of every later batch that is drawn from the memory of earlier sources, in place of new text."""
    memory: Annotated[float, at.Gt(0.0), at.Le(1.0)] = 0.06
    """The share of each source's sequences that is its memory; ELLE keeps a 17th."""
    sampling: Literal["uniform", "progress", "forgetting"] = "uniform"
    """Which memory is drawn from: all in turn, where the loss falls most (ELLE's released code), or where most was forgotten."""
    look_every: Annotated[float, at.Gt(0.0), at.Le(1.0)] = 0.1
    """Sampling other than uniform: how often losses are measured on reserved training text, as a share of a stage."""
    kl: NotNegative = 0.0
    """Weight of KL(model of the stage before || student) on every batch of a later stage."""
    temperature: Temperature = 1.0
    """Of both models in that; there is a factor temperature²."""
    ewc: NotNegative = 0.0
    """Elastic weight consolidation: weight of the squared change of each weight since the stage's begin times its Fisher information."""
    ewc_sequences: Annotated[int, at.Ge(1), at.Le(65_536)] = 64
    """Sequences of memory from which the Fisher information is estimated when a stage begins."""
    optimiser: Literal["carry", "fresh"] = "carry"
    """Whether a later stage goes on with the optimiser's moments."""
    rate: Literal["stage", "run"] = "stage"
    """The learning rate's schedule over each stage anew (re-warming and decaying), or once over the run."""
    merge: tuple[Annotated[float, at.Gt(0.0), at.Lt(1.0)], ...] = ()
    """After the run: also measure the models that lie these shares of the way from each stage's begin to its end."""


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
    """What is held in memory at once; 0 is the whole batch. It changes nothing but memory, rounding and dropout's draws."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 runs the model under autocast; weights and sums stay fp32. `auto` is bf16 where the device multiplies it, else fp32."""
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
    document_mask: Literal["dense", "flex"] = "dense"
    """How the student's documents are kept apart in one sequence: by T x T numbers, or on a GPU by FlexAttention's blocks."""
    activation_checkpointing: bool = False
    """Keep only each block's input and compute the block again in the backward pass: less memory, slower steps."""
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
    life: Life = Life()
    """For runs whose data.train has several stages."""
    train: Train
    eval: Eval = Eval()
    trackers: tuple[Tracker, ...] = ()
    """Where else to watch; a name alone stands for {name: NAME}."""

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The stages of the run's life and the sources of each, in order; a single one without a name where none is named."""
        found: dict[str, dict[str, None]] = {}
        for text in self.data.train:
            found.setdefault(text.stage, {})[text.source] = None
        return {stage: tuple(sources) for stage, sources in found.items()}


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
