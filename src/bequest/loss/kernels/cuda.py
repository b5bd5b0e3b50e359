"""The closed form in Triton: one program for each row, which goes over it twice.

The kept ids are read into registers and minus infinity is left in their place, so that a first pass finds the sum of
the others alone, exactly, at one temperature or two at once (online: Milakov and Gimelshein 2018); a second pass writes
the gradient over the product, in place as Liger Kernel does (Hsu et al. 2024); the kept ids' and the target's own values
follow. Each logit is read twice and written once: 6 bytes in bf16, 12 in fp32, and 4 more where the teacher is dense.

Sums are in fp32 and everything is told from the row's largest logit, so that large logits cost no digits. Minus infinity
in the product is an id that is out, whatever bias, scale and soft-cap would make of it.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...model.language import Head
from ...types import Signal
from .pair import Pair

MOST_LOGITS = 4096
"""Logits that a program holds in registers at once."""

LOG2_E = tl.constexpr(math.log2(math.e))
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
NOTHING = tl.constexpr(-float("inf"))

# What a program works on; what is None takes the code that would use it along.
Pointer: TypeAlias = tl.tensor
"""The address of a column, a row or a grid."""
Scalar: TypeAlias = tl.tensor
"""One number, or one for each row."""
Block: TypeAlias = tl.tensor
"""Numbers spread over the threads."""


def slope_(product_CV: Tensor, head: Head, pair: Pair) -> tuple[Tensor | None, Tensor | None]:
    """As `kernels.slope_`, in bf16, fp16 or fp32."""
    rows, vocabulary = product_CV.shape
    assert product_CV.stride(1) == 1, "the ids of a row must lie side by side"
    signal = None if pair.told_C is None else _once(pair.signal_C)
    ids_CK, logp_CK = (None, None) if signal is None else (signal.ids_NK, signal.logp_NK)
    rest = (None, None) if signal is None else (signal.logrest_N, signal.whole_entropy_N)
    columns = (pair.target_C, pair.gold_C, pair.told_C, *rest, ids_CK)
    cross_C, divergence_C = (
        None if weight_C is None else product_CV.new_empty(rows, dtype=torch.float32)
        for weight_C in (pair.gold_C, pair.told_C)
    )
    cool = 1.0 if pair.told_C is None else 1.0 / pair.temperature
    two = pair.gold_C is not None and cool != 1.0
    if rows == 0:
        return cross_C, divergence_C
    with torch.cuda.device(product_CV.device) if product_CV.is_cuda else nullcontext():
        _row[(rows,)](
            product_CV,
            product_CV.stride(0),
            vocabulary,
            head.bias_V,
            None if head.scale == 1.0 else float(head.scale),
            None if head.softcap is None else float(head.softcap),
            *((1.0, cool) if two else (cool, None)),
            *(None if column is None else column.contiguous() for column in columns),
            logp_CK,
            *((0, 0, 0) if logp_CK is None else (logp_CK.shape[1], *logp_CK.stride())),
            cross_C,
            divergence_C,
            **sizes(vocabulary, 0 if ids_CK is None else ids_CK.shape[1]),
        )
    return cross_C, divergence_C


def _once(signal: Signal | None) -> Signal | None:
    """Draws that repeat an id as one entry, and filling: a kept id's place holds one number."""
    if signal is None or signal.ids_NK is None or signal.logrest_N is not None or not signal.ids_NK.shape[1]:
        return signal
    ids_NK, order = signal.ids_NK.sort(-1)
    place_NK = torch.nn.functional.pad((ids_NK[:, 1:] != ids_NK[:, :-1]).long(), (1, 0)).cumsum(-1)
    p_NK = signal.logp_NK.exp().gather(1, order)
    merged_NK = torch.zeros_like(p_NK).scatter_add(1, place_NK, p_NK)
    ids_NK = torch.zeros_like(ids_NK).scatter(1, place_NK, ids_NK)
    return Signal(ids_NK, merged_NK.log(), None, whole_entropy_N=signal.entropy())


def sizes(vocabulary: int, kept: int) -> dict[str, int]:
    """Of a program: kept ids and logits at once, and warps. By shape alone: what is tried out differs from run to run.

    A thread has 8 logits: 16 bytes in bf16, which it loads at once where rows begin at multiples of them. A long row gets
    many warps, so that few rows are under way at once and the second pass finds some of what the first has read in the cache.
    """
    held, block = triton.next_power_of_2(max(1, kept)), triton.next_power_of_2(max(128, min(MOST_LOGITS, vocabulary)))
    return {"KEPT": held, "BLOCK": block, "num_warps": max(4, min(16, max(block, held) // 256))}


# Where a chunk begins within a column must not make another program of this one.
@triton.jit(do_not_specialize_on_alignment=["target_C", "gold_C", "told_C", "logrest_C", "entropy_C", "ids_CK"])
def _row(
    product_CV: Pointer, product_stride: Scalar, vocabulary: Scalar,
    bias_V: Pointer, scale: Scalar, softcap: Scalar, cool: Scalar, told_cool: Scalar,
    target_C: Pointer, gold_C: Pointer, told_C: Pointer, logrest_C: Pointer, entropy_C: Pointer,
    ids_CK: Pointer, logp_CK: Pointer, known: Scalar, logp_stride: Scalar, known_stride: Scalar,
    cross_C: Pointer, divergence_C: Pointer, KEPT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """All of one row. `cool` is the reciprocal of a temperature, `told_cool` of the second one; `known` ids are told."""
    row = tl.program_id(0).to(tl.int64)
    product_V, head = product_CV + row * product_stride, (bias_V, scale, softcap)
    target, logp, kept, dense = tl.load(target_C + row), None, None, None
    # An id that there is none of has no logit, and the loss becomes infinite.
    realised, bend = _logits(product_V, head, target, target < vocabulary)
    rate, told_rate = cool * LOG2_E, None if told_cool is None else told_cool * LOG2_E
    if logp_CK is not None:
        logp = (logp_CK + row * logp_stride, known_stride, known)
    if ids_CK is not None:
        kept = _take_out_(product_V, vocabulary, head, ids_CK + row * known, logp, KEPT)
    largest, total, told_total = _sums(product_V, vocabulary, head, rate, told_rate, BLOCK)
    top = largest if kept is None else tl.maximum(largest, tl.max(kept[2]))
    soft = (cool, largest, total, top)
    told_soft = soft if told_cool is None else (told_cool, largest, told_total, top)
    gold, factor, told_factor, value_K = 0.0, 0.0, 0.0, 0.0
    if gold_C is not None:
        gold = _load(gold_C + row, None, 0.0)
        p_K, q, _, whole = _shares(kept, soft)
        tl.store(cross_C + row, whole - (realised - top))
        factor, value_K = gold * q / tl.maximum(total, 1.0), gold * p_K
    if told_C is not None:
        told = _load(told_C + row, None, 0.0) * told_soft[0]
        if kept is None:
            told_factor = told / tl.maximum(told_soft[2], 1.0)
            dense = (logp, told, told_soft[0], tl.log(told_soft[2]))
        else:
            divergence, elsewhere, told_K = _bucket(kept, told_soft, logrest_C, entropy_C, row)
            tl.store(divergence_C + row, divergence)
            told_factor, value_K = told * elsewhere / tl.maximum(told_soft[2], 1.0), value_K + told * told_K
    slope = (largest, rate, factor + told_factor, None, 0.0)
    if told_rate is not None:
        slope = (largest, rate, factor, told_rate, told_factor)
    tl.debug_barrier()  # the target's logit is read
    divergence = _write_(product_V, vocabulary, head, slope, dense, BLOCK)
    tl.debug_barrier()  # the tiles are written, and what is special about some ids comes on top
    if dense is not None:
        tl.store(divergence_C + row, divergence)
    if kept is not None:
        ids_K, logt_K, _, bend_K = kept
        value_K = (value_K - tl.where(ids_K == target, gold, 0.0)) * bend_K
        tl.store(product_V + ids_K, value_K, (logt_K != NOTHING) & (ids_K < vocabulary))
    if gold_C is not None:
        value = _slope(realised, slope) - gold
        if dense is not None:
            value -= told * tl.exp(_told_logs(logp, target))
        tl.store(product_V + target, value * bend, _outside(kept, target) & (target < vocabulary))


@triton.jit
def _load(pointer: Pointer, inside: Block, other: tl.constexpr) -> Block:
    """In fp32. What needs a mask may be loaded one by one, what needs none many at once."""
    found = tl.load(pointer) if inside is None else tl.load(pointer, inside, other)
    return found.to(tl.float32)


@triton.jit
def _logits(product_V: Pointer, head: tl.tuple, ids: Block, inside: Block) -> tuple[Block, Block]:
    """Logits and the slope there, as `Head.finish` and `Head.bend`; minus infinity stays what it is."""
    bias_V, scale, softcap = head
    product = _load(product_V + ids, inside, NOTHING)
    logits, bend = product, 1.0
    if bias_V is not None:
        logits += _load(bias_V + ids, inside, 0.0)
    if scale is not None:
        logits, bend = logits * scale, scale
    if softcap is not None:
        logits, steepness = _capped(logits * (1.0 / softcap))
        logits, bend = logits * softcap, bend * steepness
    if scale is not None or softcap is not None:
        logits = tl.where(product == NOTHING, NOTHING, logits)
    return logits, bend


@triton.jit
def _capped(x: Block) -> tuple[Block, Block]:
    """The hyperbolic tangent and its slope, by whichever formula subtracts no equal numbers."""
    square, e = tl.minimum(x * x, 1.0), tl.exp(-2.0 * tl.abs(x))
    series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315 - square * (62 / 2835)))))
    far = (1.0 - e) / (1.0 + e)
    tanh = tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0.0, -far, far))
    return tanh, 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _told_logs(logp: tl.tuple, ids: Block) -> Block:
    """What the teacher says about ids, minus infinity where it knows none."""
    logp_V, stride, known = logp
    return _load(logp_V + ids * stride, ids < known, NOTHING)


@triton.jit
def _take_out_(
    product_V: Pointer, vocabulary: Scalar, head: tl.tuple, ids_K: Pointer, logp: tl.tuple, KEPT: tl.constexpr
) -> tuple[Block, Block, Block, Block]:
    """Kept ids, the teacher's logs, the student's logits, their slope; minus infinity is in their place. Filling is none."""
    place_K = tl.arange(0, KEPT)
    logt_K = _told_logs(logp, place_K)
    real_K = logt_K != NOTHING
    ids_K = tl.load(ids_K + place_K, real_K, -1)
    inside_K = real_K & (ids_K < vocabulary)
    kept_K, bend_K = _logits(product_V, head, ids_K, inside_K)
    tl.debug_barrier()  # all threads have read, the target as well, before one of them writes
    tl.store(product_V + ids_K, NOTHING, inside_K)
    tl.debug_barrier()
    return ids_K, logt_K, kept_K, bend_K


@triton.jit
def _outside(kept: tl.tuple, target: Scalar) -> Scalar:
    """Whether the target is none of the kept ids."""
    return target >= 0 if kept is None else tl.max((kept[0] == target).to(tl.int32)) == 0


@triton.jit
def _sums(
    product_V: Pointer, vocabulary: Scalar, head: tl.tuple, rate: Scalar, second: Scalar, BLOCK: tl.constexpr
) -> tuple[Scalar, Scalar, Scalar]:
    """The largest logit, and the sums of exp2(rate * (logit - largest)) and of exp2(second * ...): 1 or more, 0 of none.

    Every lane has a largest logit and sums of its own, which meet at the end.
    """
    largest = tl.full([BLOCK], LOWEST, tl.float32)
    sum, second_sum = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    whole = vocabulary // BLOCK * BLOCK
    for tail in tl.static_range(2):  # whole tiles, which need no mask, and what is left
        for first in range(whole * tail, vocabulary if tail else whole, BLOCK):
            ids = first + tl.arange(0, BLOCK)
            logits, _ = _logits(product_V, head, ids, ids < vocabulary if tail else None)
            apart, above = tl.abs(logits - largest), logits > largest
            # One exponential: of the two that are due, that of the larger number is 1.
            e = tl.exp2(apart * -rate)
            sum = tl.where(above, sum * e + 1.0, sum + e)
            if second is not None:
                e = tl.exp2(apart * -second)
                second_sum = tl.where(above, second_sum * e + 1.0, second_sum + e)
            largest = tl.maximum(largest, logits)
    top = tl.max(largest)
    sum *= tl.exp2((largest - top) * rate)
    if second is not None:
        second_sum *= tl.exp2((largest - top) * second)
    return top, tl.sum(sum), tl.sum(second_sum)


@triton.jit
def _shares(kept: tl.tuple, soft: tl.tuple) -> tuple[Block, Scalar, Scalar, Scalar]:
    """Shares of each kept id, of all others and of all kept ids; the log of the sum of exp(cool * (logit - top))."""
    cool, largest, total, top = soft
    e_K, others = 0.0, total
    among, whole = 0.0, total
    if kept is not None:
        e_K, others = tl.exp((kept[2] - top) * cool), total * tl.exp((largest - top) * cool)
        among = tl.sum(e_K)
        whole = among + others
    return e_K / whole, others / whole, among / whole, tl.log(whole)


@triton.jit
def _bucket(
    kept: tl.tuple, soft: tl.tuple, logrest_C: Pointer, entropy_C: Pointer, row: Scalar
) -> tuple[Scalar, Scalar, Block]:
    """The divergence, and its gradient: the factor of the others' own softmax, and at the kept ids. As `chunked._kept_`."""
    _, logt_K, kept_K, _ = kept
    cool, largest, total, top = soft
    p_K, q, among, whole = _shares(kept, soft)
    t_K, logp_K = tl.exp(logt_K), (kept_K - top) * cool - whole
    M, m = tl.sum(t_K), 0.0
    # Entropy and cross-entropy in one difference, where a teacher that equals the student leaves exactly nothing.
    terms_K = t_K * (logt_K - logp_K) if entropy_C is None else -t_K * logp_K
    divergence = tl.sum(tl.where(logt_K == NOTHING, 0.0, terms_K))
    if entropy_C is not None:
        divergence -= _load(entropy_C + row, None, 0.0)
    if logrest_C is not None:
        logrest = _load(logrest_C + row, None, 0.0)
        m = tl.exp(logrest)
        logq = tl.log(tl.maximum(total, 1.0)) + (largest - top) * cool - whole
        logq = tl.where(total > 0.0, logq, 0.0)
        divergence += tl.where(m > 0.0, m * (logrest - logq if entropy_C is None else -logq), 0.0)
        m = tl.where(total > 0.0, m, 0.0)  # no others: what rounding left of the rest is nothing
    # Both say the same; each is a difference of nearly equal numbers where the other is not.
    elsewhere = tl.where(q < 0.5, (M + m) * q - m, M - (M + m) * among)
    return divergence, elsewhere, (M + m) * p_K - t_K


@triton.jit
def _slope(logits: Block, slope: tl.tuple) -> Block:
    """The gradient at ids about which nothing is special."""
    largest, rate, factor, second, second_factor = slope
    value = factor * tl.exp2((logits - largest) * rate)
    if second is not None:
        value += second_factor * tl.exp2((logits - largest) * second)
    return value


@triton.jit
def _write_(
    product_V: Pointer, vocabulary: Scalar, head: tl.tuple, slope: tl.tuple, dense: tl.tuple, BLOCK: tl.constexpr
) -> Scalar:
    """The gradient in the product's place, and the divergence from a dense teacher, which is subtracted on the way."""
    divergence = tl.zeros([BLOCK], tl.float32)
    whole = vocabulary // BLOCK * BLOCK
    for tail in tl.static_range(2):
        for first in range(whole * tail, vocabulary if tail else whole, BLOCK):
            ids = first + tl.arange(0, BLOCK)
            inside = ids < vocabulary if tail else None
            logits, bend = _logits(product_V, head, ids, inside)
            value = _slope(logits, slope)
            if dense is not None:
                logp, told, cool, log_whole = dense
                logt, logq = _told_logs(logp, ids), (logits - slope[0]) * cool - log_whole
                t = tl.exp(logt)
                value -= told * t
                divergence += tl.where(t > 0.0, t * (logt - logq), 0.0)
            if tail:
                tl.store(product_V + ids, value * bend, inside)
            else:
                tl.store(product_V + ids, value * bend)
    return tl.sum(divergence)
