"""The loss of a batch does not depend on how it is divided, over micro-batches or over processes.

Two processes on the CPU, started once for all cases, take one step through PyTorch's DDP and FSDP2; what they find is
held against one process that sees the whole batch. The loss runs inside the wrapped module's forward, and every mean
divides by the rows of the global batch.
"""

import copy
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import CAUSAL, MASKED, make_model, make_vocabulary
from laws import kept
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bequest.loss.combine import distil, next_token, weighted
from bequest.model.language import LanguageModel
from bequest.train.run import Trained
from bequest.types import Batch, Clock, Rows, Signal

WORLD = 2
VOCABULARY = 301  # odd: the shards of a table differ in size
KEEP = 5
PATIENCE = 60.0
"""Seconds that a process waits for the other one."""

ALL = 4
HALVES, UNEVEN, ROWLESS = ((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((0, 1, 3), (2,))
"""The sequences of each process. The third sequence has nothing to learn from."""


@dataclass(frozen=True)
class Student:
    """Who learns, and at which temperature from its teacher."""

    family: str
    tied: bool
    temperature: float = 1.0


@dataclass(frozen=True)
class Case:
    """One step of two processes, each taking its sequences `micro` at a time."""

    student: Student
    wrapper: str
    ranks: tuple[tuple[int, ...], ...]
    micro: int
    broken: str = ""


STUDENTS = [Student("llama", True, 2.0), Student("llama", False), Student("bert", True), Student("bert", False, 2.0)]
SPLITS = [(HALVES, ALL), (HALVES, 1), (UNEVEN, ALL), (ROWLESS, ALL), (UNEVEN, 2), (UNEVEN, 1)]
"""In the last two the processes have different numbers of micro-batches."""
CASES = [
    Case(student, wrapper, ranks, micro)
    for student in STUDENTS
    for wrapper in ("ddp", "fsdp2", "fsdp2 gathered")
    for ranks, micro in (SPLITS[:4] if wrapper == "fsdp2" else SPLITS[4:] if "gathered" in wrapper else SPLITS)
]
BROKEN = [
    *(Case(STUDENTS[0], wrapper, UNEVEN, ALL, "own divisor") for wrapper in ("ddp", "fsdp2")),
    *(Case(student, "ddp", HALVES, micro, "inner module") for student in STUDENTS[::3] for micro in (ALL, 1)),
]


class Told:
    """A predecessor that knows only the batch it is shown: what it says about a row depends on the row's own token."""

    def __init__(self) -> None:
        self.table_VV = 3 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))

    def __call__(self, batch: Batch, temperature: float) -> Signal:
        tokens_N = batch.tokens_BT.flatten()[batch.rows.index_N]
        return kept(self.table_VV[tokens_N] / temperature, KEEP)

    def prepare(self, batch: Batch, temperature: float) -> None:
        pass

    def flops(self, batch: Batch) -> float:
        return 0.0

    def release(self) -> None:
        pass


def whole_batch(length: int = 12) -> Batch:
    """Four sequences with documents, padding and a different number of rows in each."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(5, VOCABULARY, (4, length), generator=generator)
    segments_BT = torch.zeros(4, length, dtype=torch.long)
    segments_BT[1, 5:] = 1
    segments_BT[3, -3:] = -1
    index_N = torch.cat([torch.arange(3), length + torch.arange(11), 3 * length + torch.arange(1, 8)])
    target_N = torch.randint(5, VOCABULARY, (len(index_N),), generator=generator)
    keys = tuple(bytes([n]) for n in range(4))
    return Batch(tokens_BT, segments_BT, Rows(index_N, target_N), len(index_N), False, ("a",) * 4, keys)


@cache
def model(family: str, tied: bool) -> LanguageModel:
    vocabulary = make_vocabulary("causal" if family in CAUSAL else "masked")
    return make_model(family, vocabulary, vocab=VOCABULARY, tied=tied)


def new(student: Student) -> Trained:
    loss = weighted((0.5, distil(Told(), student.temperature)), (0.5, next_token))
    return Trained(copy.deepcopy(model(student.family, student.tied)), loss)


Found = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""A step's loss and its parts, and the gradient of every weight that has one."""
Around = Callable[[bool], AbstractContextManager[None]]
"""What a micro-batch runs in; it is told whether the micro-batch is the step's last."""


def step(called: nn.Module, micros: Sequence[Batch], module: Trained, around: Around, world: int) -> Found:
    """One step through `called`, which is the module or stands around it.

    DDP and FSDP2 take the average of gradients over processes, while every mean divides by the rows of all of them
    already: the loss is multiplied by the number of processes, so that the average is the sum.
    """
    means: dict[str, torch.Tensor] = {}
    for number, micro in enumerate(micros):
        with around(number == len(micros) - 1):
            loss = called(micro, Clock(0, 1))
            (world * loss.total).backward()
        for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
            means[name] = means.get(name, torch.zeros(())) + value
    slopes = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return means, {n: s.full_tensor() if isinstance(s, distributed.tensor.DTensor) else s for n, s in slopes.items()}


@cache
def alone(student: Student, micro: int = ALL) -> Found:
    """What one process finds on the whole batch."""
    module = new(student)
    return step(module, list(whole_batch().micro(micro)), module, lambda last: nullcontext(), 1)


def differing(found: Found, expected: Found) -> list[str]:
    """The law: the names of all that is not as expected; none."""
    return [
        name
        for some, others in zip(found, expected, strict=True)
        for name in some.keys() | others.keys()
        if not (name in some and name in others and torch.allclose(some[name], others[name], rtol=1e-4, atol=1e-6))
    ]


def in_ddp(module: Trained) -> tuple[nn.Module, Around]:
    wrapped = nn.parallel.DistributedDataParallel(module)
    return wrapped, lambda last: nullcontext() if last else wrapped.no_sync()


def in_fsdp2(module: Trained, gathered: bool) -> tuple[nn.Module, Around]:
    """Each block sharded, then the rest, embedding and head, as one group.

    Sharded weights are gathered by all processes together, in every forward and backward pass: processes with
    different numbers of micro-batches must keep them `gathered` until the step's last.
    """
    mesh = init_device_mesh("cpu", (WORLD,))
    for block in next(m for m in module.modules() if isinstance(m, nn.ModuleList)):
        fully_shard(block, mesh=mesh, reshard_after_forward=not gathered)
    fully_shard(module, mesh=mesh)

    def around(last: bool) -> AbstractContextManager[None]:
        module.set_requires_gradient_sync(last)
        module.set_is_last_backward(last)
        module.set_reshard_after_backward(last or not gathered)
        return nullcontext()

    return module, around


def take(case: Case, rank: int) -> Found:
    """One process's part of a case."""
    batch = whole_batch().of(case.ranks[rank])
    if case.broken == "own divisor":
        batch = replace(batch, rows_total=len(batch.rows.index_N))
    module = new(case.student)
    called, around = in_ddp(module) if case.wrapper == "ddp" else in_fsdp2(module, "gathered" in case.wrapper)
    return step(
        module if case.broken == "inner module" else called, list(batch.micro(case.micro)), module, around, WORLD
    )


def work(rank: int, folder: str) -> None:
    """All that one process does."""
    warnings.simplefilter("error")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", f"file://{folder}/meet", timedelta(seconds=PATIENCE), world_size=WORLD, rank=rank
    )
    torch.save([take(case, rank) for case in (*CASES, *BROKEN)], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def together(folder: Path) -> list[tuple[Found, ...]]:
    """What each process found in each case."""
    running = multiprocessing.spawn(work, (str(folder),), WORLD, join=False)
    until = time.monotonic() + 2 * PATIENCE
    try:
        while not running.join(max(0.0, until - time.monotonic())):
            assert time.monotonic() < until, "the processes wait for each other"
    finally:
        for process in running.processes:
            process.kill()
    return list(zip(*(torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)), strict=True))


@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_accumulation_changes_nothing(family, tied, temperature, micro):
    student = Student(family, tied, temperature)
    assert differing(alone(student, micro), alone(student)) == []


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CAUSAL + MASKED)
def test_every_weight_that_may_learn_has_a_gradient(family, tied):
    """DDP waits for all of them."""
    student = Student(family, tied)
    assert alone(student)[1].keys() == {n for n, p in new(student).named_parameters() if p.requires_grad}


def test_processes_change_nothing(tmp_path):
    """Nor does the law hold when a process forgets the others: bypasses the wrapper, or divides by its own rows."""
    wrong = {}
    for case, ranks in zip((*CASES, *BROKEN), together(tmp_path), strict=True):
        means = {name: sum(found[name] for found, _ in ranks) for name in ranks[0][0]}
        wrong[case] = [name for _, slopes in ranks for name in differing((means, slopes), alone(case.student))]
    assert {case: wrong[case] for case in CASES if wrong[case]} == {}
    assert [case for case in BROKEN if not wrong[case]] == []
