"""What a step costs: plain pre-training against transformers' Trainer, and inheriting against plain and TRL's GKD.

    .venv-bench/bin/python bench/step.py [--rows ROW ...] [--blocks N] [--steps N] [--arm JSON ...]

Every arm is a process of its own, with one thread, that trains the same model (Llama, 8 layers of 256, 4,096 ids, bf16
autocast, fused AdamW, clipped to 1) on the same random tokens, 8,192 a step, packed without document masks. It waits
between blocks of steps, so that the blocks of all arms take turns. One JSON line per arm with its median seconds per
step, then one per row with `ratio`, of the medians: the peer's fastest arm over our fastest, or for
step_stored_over_plain our step with signals over our plain one. `seconds_cpu` are less disturbed by other jobs.

plain_over_trainer      the spine against Trainer; limit is 1.
step_stored_over_plain  Knowledge Inheritance at a constant rate of 0.5 with 32 ids and a rest for every row, from memory
                        and from a store on disk (harvested from random weights, read and decoded in the loader's thread).
step_over_gkd           TRL's experimental GKD trainer with lmbda 0 and beta 0 and a teacher of half the layers, against
                        the same teacher live and its signals stored.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VOCABULARY, HIDDEN, LAYERS, HEADS, LENGTH, TOKENS, KEEP = 4096, 256, 8, 4, 256, 8192, 32
SEQUENCES = 4 * TOKENS // LENGTH
WARMUP = 2


@dataclass(frozen=True)
class Arm:
    """Something that takes steps. `heap` is `kept` when the C library is told not to give freed memory back."""

    peer: str
    loss: str = "plain"
    micro: int = 8
    compile: bool = False
    heap: str = "kept"
    attention: str = ""
    """Empty is the program's own choice; of transformers' two, `eager` is matrix products and a softmax."""

    @property
    def variant(self) -> str:
        """All but the peer."""
        return "-".join(
            (
                self.loss,
                f"micro{self.micro}",
                "compiled" if self.compile else "eager",
                *([self.attention] if self.attention else []),
                f"heap-{self.heap}",
            )
        )


class Pace:
    """Counts steps, and between blocks waits for the next order."""

    def __init__(self, out: Any) -> None:
        self.out, self.left, self.started, self.cpu = out, WARMUP, time.perf_counter(), time.process_time()

    def __call__(self) -> None:
        """A step lies behind."""
        self.left -= 1
        if self.left:
            return
        found = {
            "seconds": time.perf_counter() - self.started,
            "cpu": time.process_time() - self.cpu,
            "peak_mb": peak(),
        }
        print(json.dumps(found), file=self.out, flush=True)
        order = sys.stdin.readline()
        if not order.strip():
            os._exit(0)
        self.left, self.started, self.cpu = int(order), time.perf_counter(), time.process_time()


def peak() -> float:
    """Largest resident memory so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def work(arm: Arm) -> None:
    """A process's life."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if arm.heap == "kept":
        from bequest.device import keep_freed_memory

        keep_freed_memory()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    {"bequest": ours, "trainer": trainer, "gkd": gkd}[arm.peer](arm, Pace(out))


def recipe_of(arm: Arm) -> Any:
    """The recipe's parts that the spine reads."""
    from bequest.recipe import Data, Recipe, ScheduleSettings, Student, Text, Train

    return Recipe(
        name="step",
        data=Data(train=(Text(path="-"),), sequence=LENGTH),
        student=Student(family="llama", hidden=HIDDEN, layers=LAYERS, heads=HEADS),
        method={"name": "plain"},
        train=Train(
            tokens=TOKENS * 100_000,
            batch_tokens=TOKENS,
            micro_batch_tokens=arm.micro * LENGTH,
            schedule=ScheduleSettings(name="constant", warmup=0.0),
            compile=arm.compile,
            device="cpu",
        ),
    )


def model_of(student: Any, attention: str) -> Any:
    """A fresh model."""
    from bequest.model import build

    tokenizer = SimpleNamespace(pad_token_id=0)
    model = build.build(student, SimpleNamespace(size=VOCABULARY, begin=0, end=0, tokenizer=tokenizer), LENGTH)
    if attention:
        model.model.set_attn_implementation(attention)
    return model


def half() -> Any:
    """A teacher's sizes."""
    from bequest.recipe import Student

    return Student(family="llama", hidden=HIDDEN, layers=LAYERS // 2, heads=HEADS)


def packs() -> Any:
    """One document of random tokens."""
    import numpy as np

    from bequest.data.pack import Pack
    from bequest.data.tokens import TokenStore

    count = SEQUENCES * LENGTH + 1
    tokens = np.random.default_rng(0).zipf(1.2, count).clip(1, VOCABULARY).astype(np.uint16) - 1
    ends, sizes = np.array([count]), np.array([4 * count])
    return Pack(TokenStore("random", tokens, ends, sizes, np.array([0], np.uint64), "random"), LENGTH, 1)


def ours(arm: Arm, pace: Pace) -> None:
    """The real spine."""
    from bequest.data.batches import Batches
    from bequest.data.objective import Causal
    from bequest.device import place
    from bequest.job.train import settings_of
    from bequest.methods.ki import KI
    from bequest.methods.plain import Plain
    from bequest.optim import Policy
    from bequest.train.plan import Inputs
    from bequest.train.run import State, Stepped, run

    recipe = recipe_of(arm)
    train = recipe.train
    where = place(train.device, train.precision)
    batches = Batches((packs(),), Causal(), TOKENS // LENGTH, 0)
    assert batches[0].whole
    watch = lambda state, event: pace() if isinstance(event, Stepped) else None
    settings = settings_of(recipe, where, Policy(train.schedule, train.batch_tokens, train.tokens))
    method = Plain() if arm.loss == "plain" else KI(start=0.5, shape="constant")
    with tempfile.TemporaryDirectory() as folder:
        teachers = {} if arm.loss == "plain" else {"teacher": teacher_of(arm, where, batches, Path(folder))}
        given = Inputs(batches, train.tokens // train.batch_tokens, 0, teachers, {}, lambda *_: 0.0, lambda _: None)
        state = State(model_of(recipe.student, arm.attention), planned=train.tokens)
        run(tuple(method.plan(given)), state, settings, (watch,))


class InMemory:
    """Says of every batch the same: random ids with falling probabilities, and a rest."""

    def __init__(self) -> None:
        import torch

        from bequest.types import Signal

        ids_NK = torch.cat([torch.rand(1024, VOCABULARY).topk(KEEP).indices for _ in range(TOKENS // 1024)])
        p_NK = 0.8 * torch.randn(TOKENS, KEEP).softmax(-1).sort(-1, descending=True).values
        self.signal = Signal(ids_NK, p_NK.log(), torch.full((TOKENS,), 0.2).log())

    def __call__(self, batch: Any, temperature: float) -> Any:
        return self.signal[: len(batch.rows.index_N)]

    def prepare(self, batch: Any, temperature: float) -> None:
        """There is nothing to read."""

    def flops(self, batch: Any) -> float:
        """None."""
        return 0.0

    def release(self) -> None:
        """It stays."""


def teacher_of(arm: Arm, where: Any, batches: Any, folder: Path) -> Any:
    """Who is asked."""
    import numpy as np

    from bequest.teach import store
    from bequest.teach.harvest import Asked, Here, harvest
    from bequest.teach.live import Live
    from bequest.teach.signals import Form
    from bequest.teach.stored import Stored

    if arm.loss == "memory":
        return InMemory()
    live = Live(lambda: model_of(half(), arm.attention), VOCABULARY, 0, where.autocast)
    if arm.loss == "live":
        return live
    form = Form(kind="topk", vocabulary=VOCABULARY, keep=KEEP, top_p=1.0, draws=0, temperatures=(1.0,), values="6bit")
    origin = store.Origin(weights="", revision="", lineage={})
    packing = store.Packing(sequence=LENGTH, objective="causal", documents="")
    manifest = store.Manifest(
        format=store.FORMAT,
        teacher=origin,
        tokenizer="",
        packing=packing,
        form=form,
        seed=0,
        precision="bf16",
        shard_tokens=TOKENS,
    )
    places = np.arange(SEQUENCES)
    found = store.create(folder / "store", manifest, {})
    list(harvest(found, Here(live, where), [Asked(batches, places, batches.of(places).keys)], 0, 1))
    live.release()
    return Stored(lambda: store.open_store(folder / "store"))


def rows_for_peers() -> list[dict[str, Any]]:
    """The same windows as the peers want them."""
    import torch

    pack = packs()
    windows = (torch.from_numpy(pack.window(number)[0][:-1]) for number in range(SEQUENCES))
    return [{"input_ids": window, "labels": window} for window in windows]


def arguments(arm: Arm, folder: str) -> dict[str, Any]:
    """Trainer's settings: nothing is logged, saved or evaluated."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": True,
        "optim": "adamw_torch_fused",
        "torch_compile": arm.compile,
        "per_device_train_batch_size": arm.micro,
        "gradient_accumulation_steps": TOKENS // LENGTH // arm.micro,
        "max_steps": 100_000,
        "learning_rate": 1e-3,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
    }


def follower(pace: Pace) -> Any:
    """Tells the pace of Trainer's steps."""
    from transformers import TrainerCallback

    class Follower(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pace()

    return Follower()


def trainer(arm: Arm, pace: Pace) -> None:
    """transformers' own."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    model = model_of(recipe_of(arm).student, arm.attention or "sdpa").model
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(**arguments(arm, folder)),
            train_dataset=rows_for_peers(),
            data_collator=default_data_collator,
            callbacks=[follower(pace)],
        ).train()


def gkd(arm: Arm, pace: Pace) -> None:
    """TRL's."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    known = {f"t{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(known, unk_token="t0")), pad_token="t0", eos_token="t0"
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = torch.stack([torch.as_tensor(row["input_ids"]) for row in rows])
        return {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}

    with tempfile.TemporaryDirectory() as folder:
        settings = GKDConfig(
            **arguments(arm, folder),
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            max_length=LENGTH,
            gradient_checkpointing=False,
        )
        GKDTrainer(
            model=model_of(recipe_of(arm).student, arm.attention or "sdpa").model,
            teacher_model=model_of(half(), arm.attention or "sdpa").model,
            args=settings,
            data_collator=collate,
            train_dataset=Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows_for_peers()]),
            processing_class=tokenizer,
            callbacks=[follower(pace)],
        ).train()


class Worker:
    """An arm's process."""

    def __init__(self, arm: Arm) -> None:
        self.arm, self.times, self.cpu, self.peak_mb = arm, [], [], 0.0
        env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--work", json.dumps(asdict(arm))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.arm} ended with {self.process.wait()}")
        return json.loads(line)

    def block(self, steps: int) -> None:
        """Some steps, timed."""
        assert self.process.stdin
        print(steps, file=self.process.stdin, flush=True)
        found = self._answer()
        self.times.append(found["seconds"] / steps)
        self.cpu.append(found["cpu"] / steps)
        self.peak_mb = found["peak_mb"]

    @property
    def seconds(self) -> float:
        """Per step, the median over blocks."""
        return statistics.median(self.times)

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(arms: list[Arm], blocks: int, steps: int) -> list[Worker]:
    """Blocks in turn; an arm that cannot be run is said to be so and left out."""
    workers: list[Worker] = []
    try:
        for arm in arms:
            try:
                workers.append(Worker(arm))
            except RuntimeError as error:
                print(error, file=sys.stderr)
        for turn in range(blocks):
            for worker in workers if turn % 2 else reversed(workers):
                worker.block(steps)
    finally:
        for worker in workers:
            worker.end()
    return workers


EAGER = {"compile": True, "attention": "eager"}
ROWS: dict[str, list[Arm]] = {
    "plain_over_trainer": [
        Arm("trainer", heap="given"),
        Arm("trainer"),
        Arm("trainer", compile=True),
        Arm("trainer", compile=True, micro=16),
        Arm("trainer", **EAGER),
        Arm("trainer", **EAGER, micro=16),
        Arm("bequest"),
        Arm("bequest", micro=16),
        Arm("bequest", compile=True),
        Arm("bequest", compile=True, micro=16),
    ],
    "step_stored_over_plain": [Arm("bequest", loss) for loss in ("plain", "memory", "store")],
    "step_over_gkd": [
        Arm("gkd", "live"),
        Arm("gkd", "live", compile=True),
        Arm("gkd", "live", **EAGER),
        Arm("bequest", "live", compile=True),
        Arm("bequest", "store", compile=True),
    ],
}
LIMITS = {"plain_over_trainer": 1.0, "step_stored_over_plain": 1.0, "step_over_gkd": None}


def line(name: str, **known: Any) -> str:
    """A JSON line; a key that does not apply is null."""
    keys = ("variant", "device", "ratio", "limit", "peer", "seconds", "peak_mb", "grad_error")
    return json.dumps({"name": name, **dict.fromkeys(keys), "device": "cpu", **known})


def slowest_first(worker: Worker) -> float:
    """A key to sort by, so that of each kind the fastest is the last."""
    return -statistics.median(worker.cpu)


def results(name: str, workers: list[Worker]) -> list[str]:
    """The lines of a row."""
    found = []
    for one in workers:
        low, _, high = statistics.quantiles(one.times, n=4) if len(one.times) > 1 else one.times * 3
        known = {
            "seconds": round(one.seconds, 4),
            "quartiles": [round(low, 4), round(high, 4)],
            "seconds_cpu": round(statistics.median(one.cpu), 4),
            "peak_mb": one.peak_mb,
        }
        found.append(line(name, variant=one.arm.variant, peer=one.arm.peer, **known))
    us = [one for one in workers if one.arm.peer == "bequest"]
    if name == "step_stored_over_plain":
        pairs = [(one, us[0]) for one in us[1:]]
    else:  # the fastest of each kind, by processor time: other jobs disturb it less
        peers = {one.arm.attention: one for one in sorted(workers, key=slowest_first) if one not in us}
        ours = {one.arm.loss: one for one in sorted(us, key=slowest_first)}
        pairs = [(over, under) for over in peers.values() for under in ours.values()]
    for over, under in pairs:
        ratio = {
            "ratio": round(over.seconds / under.seconds, 4),
            "ratio_cpu": round(statistics.median(over.cpu) / statistics.median(under.cpu), 4),
        }
        variant = f"{over.arm.peer} {over.arm.variant} / {under.arm.peer} {under.arm.variant}"
        found.append(line(name, variant=variant, peer=over.arm.peer, limit=LIMITS[name], **ratio))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step costs; one JSON line per arm and per row.")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--blocks", type=int, default=5, help="per arm")
    parser.add_argument("--steps", type=int, default=2, help="per block")
    parser.add_argument("--arm", action="append", default=[], help="instead of a row's own arms; JSON")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        work(Arm(**json.loads(chosen.work)))
    for name in chosen.rows:
        arms = [Arm(**json.loads(one)) for one in chosen.arm] or ROWS[name]
        print("\n".join(results(name, compare(arms, chosen.blocks, chosen.steps))), flush=True)


if __name__ == "__main__":
    main()
