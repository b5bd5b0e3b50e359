"""What the loss costs: time against bare matrix products and peers, memory beside what cannot be avoided, gradient error.

    .venv-bench/bin/python bench/loss.py [--large] [--checkpoint FOLDER] [--device cuda] ...

One JSON line per comparison: `ratio` is ours over the peer's, `limit` what it is held to, null where nothing is.

loss_over_matmul   three bare matrix products (logits, features' gradient, weight's gradient) in the same precision, all rows
                   at once or in our chunks: whichever is faster.
loss_over_ce       cross-entropy alone by the faster of ours and F.linear_cross_entropy (256 rows at once, accumulating in
                   the precision of its input and in fp32: the faster), where products are no measure: small D in bf16.
loss_over_naive    all logits at once, `terms` by autograd.
loss_over_liger    Liger's chunked loss with a dense teacher made from its features in both: its default, the
                   Jensen-Shannon divergence (`jsd`), and beta = 0, which is our loss (`kl`).
loss_extra_memory  `peak_mb` over what one chunk of our logits takes; at the first shape for two numbers of rows, the second
                   four times the first. With `peer` liger: over Liger's peak.
grad_error         against float64 autograd on the same inputs as they are rounded: relative Frobenius norm over the
                   gradients of features and head together (and of the features alone). On a trained model's features of real text if
                   --checkpoint is there, else on features that favour their target.

Time: forward and backward, features and head want a gradient. All arms of a shape take turns, a first turn does not count;
`seconds` is the median, `ratio` the median of the ratios within a turn, `iqr` the distance of that ratio's quartiles,
`ratio_cpu` the same ratio in processor time, which other jobs disturb less. Freed memory is kept, as in training; peers
and products have it, too.
Precisions: bf16 has weights and features in bf16; autocast has both in fp32 and products in bf16 (peers: inputs cast).

Memory: each arm in a process of its own. Inputs are allocated (the teacher's, too), the arm has run on a tiny case so that
code is loaded, and the peak of the resident size is set back; `peak_mb` is the peak of one forward and backward pass, less
the resident size before, less the bytes of the gradients in their parameters' precision. On a GPU the same with its
allocator's numbers.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bequest.device import keep_freed_memory
from bequest.loss.project import Addend, chunk_rows, project
from bequest.loss.terms import Divergence, next_token
from bequest.model.language import Head, LanguageModel
from bequest.teach.live import Dense, likeliest, without_rest
from bequest.types import Answer, Chunk, Clock, Signal

KEEP, REPEATS, HALF = 32, 5, 0.5
CLOCK = Clock(0, 1)
PRECISIONS = ("fp32", "bf16", "autocast")
SHAPES = ((4096, 256, 4096), (50_257, 512, 384), (32_768, 1024, 256))
LARGE = (
    (4096, 256, 16_384),
    (4096, 4096, 4096),
    (32_768, 1024, 4096),
    (32_768, 4096, 1024),
    (50_257, 256, 4096),
    (50_257, 768, 4096),
    (151_936, 1024, 1024),
    (151_936, 4096, 512),
)
"""Vocabulary, hidden, rows."""
CHECKPOINT, TEXT = Path("runs/wiki-causal-teacher/checkpoint"), Path("../shared/data/corpora/wiki.valid.jsonl.gz")
ERROR_ROWS = 1024, 6144
"""One chunk of the trained model's vocabulary, and more."""
ERRORS = {"fp32": 1e-6, "bf16": 5e-3, "autocast": 5e-3}
MB = 1 << 20


@dataclass(frozen=True)
class Case:
    """A shape in a precision."""

    vocabulary: int
    hidden: int
    rows: int
    precision: str
    device: str = "cpu"
    threads: int = 1

    def __str__(self) -> str:
        shape = f"{self.precision} V{self.vocabulary} D{self.hidden} N{self.rows}"
        return shape if self.device != "cpu" else f"{shape} T{self.threads}"

    @property
    def dtype(self) -> torch.dtype:
        """Of features and weights."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def product(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    @property
    def chunk(self) -> int:
        """Rows of a chunk."""
        return min(self.rows, chunk_rows(self.vocabulary, self.product, torch.device(self.device)))

    def within(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "autocast" else nullcontext()


@dataclass
class Inputs:
    """What every arm gets. Signals are made when first asked for, which is never timed."""

    case: Case
    features_ND: Tensor
    weight_VD: Tensor
    target_N: Tensor
    teacher_ND: Tensor
    teacher_VD: Tensor

    @classmethod
    def random(cls, case: Case) -> Inputs:
        """Logits with a standard deviation of one."""
        generator = torch.Generator(case.device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=case.device)

        target_N = torch.randint(case.vocabulary, (case.rows,), generator=generator, device=case.device)
        given = [normal(case.rows, case.hidden), normal(case.vocabulary, case.hidden) / case.hidden**0.5]
        taught = [normal(case.rows, case.hidden), normal(case.vocabulary, case.hidden) / case.hidden**0.5]
        return cls.of(case, *given, target_N, *taught)

    @classmethod
    def of(cls, case: Case, *tensors: Tensor) -> Inputs:
        """In the case's precision; the student's want a gradient, the teacher's are as its head holds them."""
        features_ND, weight_VD, target_N, teacher_ND, teacher_VD = tensors
        student = (t.detach().to(case.dtype).requires_grad_() for t in (features_ND, weight_VD))
        return cls(case, *student, target_N, teacher_ND.to(case.product), teacher_VD.to(case.product))

    def live(self, temperature: float = 1.0) -> Answer:
        """The teacher, asked chunk by chunk."""
        return Dense(self.teacher_ND, Head(self.teacher_VD), temperature, nullcontext)

    def _likeliest(self, temperature: float) -> Signal:
        return likeliest(self.live(temperature), KEEP, self.case.rows, self.case.vocabulary)

    @cached_property
    def kept(self) -> Signal:
        return self._likeliest(1.0)

    @cached_property
    def kept_tempered(self) -> Signal:
        return self._likeliest(2.0)

    @cached_property
    def drawn(self) -> Signal:
        """What merged draws look like: entries that sum to one, and the entropy beside them."""
        drawn = without_rest(self.kept)
        return replace(drawn, whole_entropy_N=drawn.entropy())

    @cached_property
    def dense(self) -> Signal:
        """Every log-probability, held."""
        return self.live()[slice(None)]

    def cast(self) -> tuple[Tensor, Tensor]:
        """Features and weight in the precision of the products, as autocast would have it."""
        return self.features_ND.to(self.case.product), self.weight_VD.to(self.case.product)

    def clear(self) -> None:
        self.features_ND.grad = self.weight_VD.grad = None


Arm = Callable[[Inputs], None]
"""One forward and backward pass."""


def ours(given: Inputs, answer: str = "", temperature: float = 1.0) -> None:
    """`answer` names one of the signals, or nothing for cross-entropy alone."""
    share = (HALF if answer else 1.0) / given.case.rows
    addends = [Addend(next_token, share)]
    if answer:
        told = given.live(temperature) if answer == "live" else getattr(given, answer)
        addends.append(Addend(Divergence(temperature, temperature**2), share, told))
    with given.case.within():
        total, _ = project(given.features_ND, Head(given.weight_VD), given.target_N, addends, CLOCK)
    total.backward()


def naive(given: Inputs, answer: str = "") -> None:
    """All logits at once."""
    with given.case.within():
        logits_NV = Head(given.weight_VD).logits(given.features_ND)
    loss = next_token(logits_NV, Chunk(given.target_N, None), CLOCK).mean()
    if answer:
        told = given.dense if answer == "live" else getattr(given, answer)
        loss = HALF * loss + HALF * Divergence()(logits_NV, Chunk(given.target_N, told), CLOCK).mean()
    loss.backward()


def torch_fused(given: Inputs, accumulate: torch.dtype | None) -> None:
    """PyTorch's chunked cross-entropy."""
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=256, acc_dtype=accumulate or given.case.product)
    functional.linear_cross_entropy(*given.cast(), given.target_N, options=options).backward()


def liger(given: Inputs, beta: float, compiled: bool) -> None:
    """Liger's chunked loss, half of it cross-entropy."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(HALF, HALF, beta=beta, compiled=compiled)
    loss(*given.cast(), given.teacher_ND, given.teacher_VD, given.target_N).backward()


class Products:
    """Three bare matrix products into buffers that are there."""

    def __init__(self, given: Inputs, chunk: int) -> None:
        with torch.no_grad():
            self.features_ND, self.weight_VD = (t.detach() for t in given.cast())
        self.chunk = chunk
        self.slope_CV = self.features_ND.new_zeros(chunk, given.case.vocabulary)
        self.gradients = torch.zeros_like(self.features_ND), torch.zeros_like(self.weight_VD)

    def __call__(self, _: Inputs) -> None:
        for first in range(0, len(self.features_ND), self.chunk):
            chunk_CD = self.features_ND[first : first + self.chunk]
            slope_CV = self.slope_CV[: len(chunk_CD)]
            torch.mm(chunk_CD, self.weight_VD.T, out=slope_CV)
            torch.mm(slope_CV, self.weight_VD, out=self.gradients[0][first : first + self.chunk])
            torch.mm(slope_CV.T, chunk_CD, out=self.gradients[1])


OURS: dict[str, Arm] = {
    "ce": ours,
    "kept": partial(ours, answer="kept"),
    "kept-2": partial(ours, answer="kept_tempered", temperature=2.0),
    "drawn": partial(ours, answer="drawn"),
    "dense": partial(ours, answer="dense"),
    "live": partial(ours, answer="live"),
}
TORCH: dict[str, Arm] = {
    "torch-fused": partial(torch_fused, accumulate=None),
    "torch-fused-fp32": partial(torch_fused, accumulate=torch.float32),
}
LIGER: dict[str, Arm] = {
    "liger-jsd": partial(liger, beta=0.5, compiled=False),
    "liger-kl": partial(liger, beta=0.0, compiled=False),
}
COMPILED: dict[str, Arm] = {
    "liger-jsd-compiled": partial(liger, beta=0.5, compiled=True),
    "liger-kl-compiled": partial(liger, beta=0.0, compiled=True),
}
NAIVE: dict[str, Arm] = {"naive-ce": naive, "naive-kept": partial(naive, answer="kept")}
ARMS = {**OURS, **TORCH, **NAIVE, **LIGER, **COMPILED}


def line(name: str, variant: str, case: Case, peer: str, **found: Any) -> dict[str, Any]:
    """All keys in every line."""
    keys = dict.fromkeys(("ratio", "limit", "ratio_cpu", "iqr", "seconds", "peak_mb", "grad_error"))
    device = torch.cuda.get_device_name() if case.device == "cuda" else case.device
    return {"name": name, "variant": f"{variant} {case}", "device": device, "peer": peer, **keys, **found}


@dataclass
class Times:
    """Seconds of each arm, turn by turn: by the clock and of the processor, all threads."""

    seconds: dict[str, list[tuple[float, float]]]

    def median(self, name: str) -> float:
        return statistics.median(wall for wall, _ in self.seconds[name])

    def faster(self, *names: str) -> str:
        return min((n for n in names if n in self.seconds), key=self.median)

    def over(self, mine: str, peer: str) -> dict[str, Any]:
        pairs = list(zip(self.seconds[mine], self.seconds[peer], strict=True))
        (low, wall, high), (_, cpu, _) = (statistics.quantiles([a[i] / b[i] for a, b in pairs], n=4) for i in (0, 1))
        spread, seconds = round(high - low, 3), round(self.median(mine), 4)
        return {"ratio": round(wall, 3), "ratio_cpu": round(cpu, 3), "iqr": spread, "seconds": seconds}


def times(case: Case, arms: dict[str, Arm], repeats: int) -> Times:
    """All arms in turn, the bare products first; other arms go in another order in every second turn."""
    given = Inputs.random(case)
    chunks = {"products": case.rows, "products-chunked": case.chunk}
    works = {name: Products(given, chunk) for name, chunk in chunks.items() if name == "products" or chunk < case.rows}
    found: dict[str, list[tuple[float, float]]] = {}
    works |= arms
    for turn in range(repeats + 1):
        for name in list(works) if turn % 2 else reversed(works):
            given.clear()
            _wait(case)
            wall, cpu = time.perf_counter(), time.process_time()
            works[name](given)
            _wait(case)
            if turn:
                found.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))
    return Times(found)


def _wait(case: Case) -> None:
    """For a GPU, which works while its host goes on."""
    if case.device == "cuda":
        torch.cuda.synchronize()


def speeds(case: Case, arms: dict[str, Arm], repeats: int) -> Iterator[dict[str, Any]]:
    """Every ratio of times."""
    took = times(case, arms, repeats)
    floor = took.faster("products", "products-chunked")
    held = case.device == "cuda" or case.hidden >= 1024 or case.precision == "fp32"
    bound = 1.15 if case.device == "cuda" else 1.3
    for name in took.seconds:
        if not name.startswith("products"):
            limit = bound if held and name in ("ce", "kept", "drawn") else None
            yield line("loss_over_matmul", name, case, floor, **took.over(name, floor), limit=limit)
    alone = took.faster("ce", *TORCH)
    for name in ("kept", "kept-2", "drawn"):
        if name in took.seconds:
            limit = None if held or name == "kept-2" else 1.05
            yield line("loss_over_ce", name, case, alone, **took.over(name, alone), limit=limit)
    for name in ("ce", "kept"):
        if f"naive-{name}" in took.seconds:
            yield line("loss_over_naive", name, case, f"naive-{name}", **took.over(name, f"naive-{name}"), limit=1.0)
    for peer in (*LIGER, *COMPILED):
        for name in ("live", "kept"):
            if peer in took.seconds and name in took.seconds:
                limit = round(1 / 1.5, 3) if "jsd" in peer else None
                yield line("loss_over_liger", name, case, peer, **took.over(name, peer), limit=limit)


def memories(case: Case, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Peaks at two numbers of rows where the vocabulary is small, else at one: a process for each takes its time."""
    for rows in (case.rows, 4 * case.rows) if case.vocabulary < 8192 else (case.rows,):
        there = replace(case, rows=rows)
        chunk = case.product.itemsize * case.vocabulary * there.chunk / MB
        # Peers that hold all logits at once need not show it twice.
        peaks = {n: _in_process(there, n) for n in names if rows == case.rows or n in (*OURS, "liger-jsd")}
        for name, peak in peaks.items():
            limit = 1.0 if name in ("ce", "kept", "drawn") else None
            found = {"ratio": round(peak / chunk, 3), "peak_mb": round(peak, 1), "limit": limit}
            yield line("loss_extra_memory", name, there, "chunk", **found)
        for name in ("live", "kept"):
            if name in peaks and "liger-jsd" in peaks:
                ratio = round(peaks[name] / peaks["liger-jsd"], 3)
                found = {"ratio": ratio, "peak_mb": round(peaks[name], 1), "limit": 0.5}
                yield line("loss_extra_memory", name, there, "liger-jsd", **found)


def _in_process(case: Case, name: str) -> float:
    command = [sys.executable, __file__, "--peak-of", name, "--case", json.dumps(asdict(case))]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak(case: Case, name: str) -> float:
    """MB of one pass, in this process."""
    tiny = Inputs.random(replace(case, vocabulary=512, hidden=64, rows=64))
    ARMS[name](tiny)
    given = Inputs.random(case)
    answer = getattr(ARMS[name], "keywords", {}).get("answer", "")
    if answer and answer != "live":
        getattr(given, answer)
    del tiny
    gc.collect()
    unavoidable = sum(t.nbytes for t in (given.features_ND, given.weight_VD))
    if case.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        ARMS[name](given)
        return (torch.cuda.max_memory_allocated() - before - unavoidable) / MB
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    ARMS[name](given)
    return (_status("VmHWM") - before - unavoidable) / MB


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def errors(device: str, checkpoint: Path, text: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Gradients of every arm that has our loss, and of peers."""
    source, tensors = trained(checkpoint, text, rows) if checkpoint.exists() and text.exists() else favoured(rows)
    for precision in PRECISIONS:
        case = Case(len(tensors[1]), tensors[1].shape[1], len(tensors[0]), precision, device)
        given = Inputs.of(case, *(t.to(device) for t in tensors))
        peers = ("torch-fused", "torch-fused-fp32", "naive-kept", "liger-kl")
        for name in (*OURS, *peers):
            exact, found = _exact(given, name), _gradients(given, ARMS[name])
            apart = [f.double() - e for f, e in zip(found, exact, strict=True)]
            off = _norm(apart) / _norm(exact)
            known = {"grad_error": off, "grad_error_features": _norm(apart[:1]) / _norm(exact[:1])}
            known |= {"ratio": round(off / ERRORS[precision], 4), "limit": ERRORS[precision] if name in OURS else None}
            yield line("grad_error", f"{name} {source}", case, "float64", **known)


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in parts]).norm())


def _gradients(given: Inputs, arm: Arm) -> tuple[Tensor, Tensor]:
    given.clear()
    arm(given)
    assert given.features_ND.grad is not None
    assert given.weight_VD.grad is not None
    return given.features_ND.grad, given.weight_VD.grad


def _exact(given: Inputs, name: str) -> tuple[Tensor, Tensor]:
    """The signals are the arm's own, inputs as they are rounded for the products; all that follows is float64."""
    features_ND, weight_VD = (t.detach().double().requires_grad_() for t in given.cast())
    kept = {"kept": "kept", "kept-2": "kept_tempered", "drawn": "drawn", "naive-kept": "kept"}
    whole = ("dense", "live", "liger-kl")
    temperature = 2.0 if name == "kept-2" else 1.0
    logits_NV = features_ND @ weight_VD.T
    loss = next_token(logits_NV, Chunk(given.target_N, None), CLOCK).mean()
    if name in kept or name in whole:
        signal = getattr(given, kept.get(name, "dense"))
        if name in whole:
            signal = Signal(None, (given.teacher_ND.double() @ given.teacher_VD.double().T).log_softmax(-1), None)
        columns = {key: value.double() for key, value in vars(signal).items() if value is not None and key != "ids_NK"}
        divergence = Divergence(temperature, temperature**2)
        told = divergence(logits_NV, Chunk(given.target_N, replace(signal, **columns)), CLOCK).mean()
        loss = HALF * loss + HALF * told
    return torch.autograd.grad(loss, (features_ND, weight_VD))


def trained(checkpoint: Path, text: Path, rows: int) -> tuple[str, tuple[Tensor, ...]]:
    """Features of real text; the teacher is the same model, its features off by a tenth."""
    import gzip

    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = LanguageModel(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval())
    tokenizer, ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")), []
    length = 256
    with gzip.open(text, "rt") as lines:
        for one in lines:
            ids += tokenizer.encode(json.loads(one)["text"]).ids
            if len(ids) > rows + length:
                break
    tokens_BT = torch.tensor(ids[: rows // length * length + 1])
    with torch.no_grad():
        hidden_BTD = model.model.base_model(tokens_BT[:-1].view(-1, length), use_cache=False).last_hidden_state
    features_ND, weight_VD = hidden_BTD.flatten(0, 1), model.head.weight_VD.detach()
    assert model.head.scale == 1.0
    assert model.head.softcap is None
    generator = torch.Generator().manual_seed(0)
    noise_ND = torch.randn(features_ND.shape, generator=generator) * 0.1 * features_ND.std()
    return "trained", (features_ND, weight_VD, tokens_BT[1:], features_ND + noise_ND, weight_VD)


def favoured(rows: int) -> tuple[str, tuple[Tensor, ...]]:
    """What learning makes of logits: the target stands out, by 8 on average."""
    given = Inputs.random(Case(4096, 256, rows, "fp32"))
    features_ND, weight_VD = given.features_ND.detach(), given.weight_VD.detach()
    features_ND = features_ND + 8.0 * weight_VD[given.target_N]
    return "synthetic", (features_ND, weight_VD, given.target_N, features_ND + 0.1 * given.teacher_ND, weight_VD)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the loss costs; one JSON line per comparison.")
    parser.add_argument("--large", action="store_true", help="the large shapes, with more rows; hours on a CPU")
    parser.add_argument("--shape", action="append", help="V,D,N instead of the shapes that are built in")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="these alone")
    parser.add_argument("--part", choices=("time", "memory", "error"), action="append", help="these alone")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"turns that count ({REPEATS})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help=f"of a trained model ({CHECKPOINT})")
    parser.add_argument("--text", type=Path, default=TEXT, help=f"JSON lines for its features ({TEXT})")
    parser.add_argument("--compiled", action="store_true", help="Liger compiled at every shape, not at the first alone")
    parser.add_argument("--peak-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if chosen.peak_of:
        print(peak(Case(**json.loads(chosen.case)), chosen.peak_of))
        return
    if chosen.device == "cpu":
        keep_freed_memory()
    for found in lines(chosen):
        print(json.dumps(found), flush=True)


def lines(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What was asked for."""
    shapes = [tuple(map(int, s.split(","))) for s in chosen.shape or ()] or (LARGE if chosen.large else SHAPES)
    precisions, parts = chosen.precision or PRECISIONS, chosen.part or ("error", "memory", "time")
    cases = [Case(*shape, precision, chosen.device) for shape in shapes for precision in precisions]
    if "error" in parts:
        for rows in ERROR_ROWS:
            yield from errors(chosen.device, chosen.checkpoint, chosen.text, rows)
    if "memory" in parts:
        for case in cases:
            all_logits = ("torch-fused", "naive-kept") if case.vocabulary == shapes[0][0] else ()
            names = ("ce", "kept") if case.precision == "autocast" else ("kept", "live", *all_logits, "liger-jsd")
            yield from memories(case, names)
    if "time" not in parts:
        return
    for case in cases:
        first = (case.vocabulary, case.hidden, case.rows) == shapes[0]
        arms = {n: a for n, a in ARMS.items() if n not in COMPILED or chosen.compiled or first}
        if case.precision == "autocast":  # peers have no more to do than in bf16
            arms = {**OURS, **TORCH}
        yield from speeds(case, arms, chosen.repeats)
    if chosen.device == "cpu" and (os.cpu_count() or 1) > 1:
        torch.set_num_threads(2)
        for case in cases[: len(precisions)]:
            if case.precision != "autocast":
                arms = {n: ARMS[n] for n in ("ce", "kept", "live", *TORCH, "liger-jsd")}
                yield from speeds(replace(case, threads=2), arms, chosen.repeats)


if __name__ == "__main__":
    main()
