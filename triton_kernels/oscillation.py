"""Oscillation tracking and iterative freezing in Triton. The state machine: ``fastq/reference/oscillation.py``; the fields of its
two words: ``fastq/oscillation.py``.

k = frozen ? average : round(clip(w / s, qmin, qmax)) - qmin;     o = 1 where k reverses the last switch
f moves towards o, the average towards k; above the limit of f the average is rounded and frozen
w = s * (average + qmin) where frozen
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_in_place
from .lsq import prepare
from .numeric import clip, divide, round_clipped

# The fields, as ``fastq/oscillation.py`` has them.
AVERAGE_BITS, AVERAGE, DIRECTION, FROZEN = tl.constexpr(21), tl.constexpr((1 << 29) - 1), tl.constexpr(29), tl.constexpr(31)
CODE_BITS, CODE, ONE, BELOW_HALF = tl.constexpr(8), tl.constexpr(255), tl.constexpr(1 << 24), tl.constexpr((1 << 20) - 1)


@triton.jit
def _toward(value, target, momentum):
    """``value + floor((target - value) * momentum + 1/2)``, exactly: 29 bits by 24."""
    bits = momentum.to(tl.float32).to(tl.int32, bitcast=True)
    mantissa = tl.where(bits == 0, 0, (bits & 0x7FFFFF) | 0x800000).to(tl.int64)
    shift = tl.where(bits == 0, 1, 150 - (bits >> 23)).to(tl.int64)
    half = tl.full((), 1, tl.int64) << (shift - 1)
    return value + (((target - value).to(tl.int64) * mantissa + half) >> shift).to(tl.int32)


@triton.jit
def _forward(x, freeze, track, p, r):
    average, last = (freeze & AVERAGE).to(tl.int32), ((freeze >> DIRECTION) & 3).to(tl.int32)
    before, held = (track & CODE).to(tl.int32), (freeze >> FROZEN) != 0
    low = r[0].to(tl.int32)

    q = round_clipped(clip(divide(x, p[0]), r[0], r[1]))
    code = tl.where(q == q, q - r[0], before.to(q.dtype)).to(tl.int32)  # NaN has none
    k = tl.where(held, average >> AVERAGE_BITS, code)

    switched = k != before
    direction = tl.where(k > before, 1, 2)
    reverses = switched & (last != direction) & (last + r[8].to(tl.int32) != 0)
    frequency = _toward((track >> CODE_BITS).to(tl.int32), tl.where(reverses, ONE, 0), r[5])
    frequency = tl.where(frequency == ONE, ONE - 1, frequency)

    odd = ((average >> AVERAGE_BITS) + low) & 1  # of the integer, for half to even
    rounded = (average + BELOW_HALF + odd) >> AVERAGE_BITS
    often = frequency > r[7].to(tl.int32)
    moved = tl.where(often, rounded << AVERAGE_BITS, _toward(average, k << AVERAGE_BITS, r[6]))
    average = tl.where(held, average, moved)
    held = held | often

    first = (
        (held.to(tl.uint32) << FROZEN) | (tl.where(switched, direction, last).to(tl.uint32) << DIRECTION) | average.to(tl.uint32)
    )
    second = (frequency.to(tl.uint32) << CODE_BITS) | k.to(tl.uint32)
    integer = ((average >> AVERAGE_BITS) + low).to(x.dtype)
    return tl.where(held, p[0] * integer, x), first, second


# Three arrays read, and products of 64 bits: with 16 elements a thread it would take 167 registers.
OSCILLATION = Method("oscillation", 1, 0, prepare, _forward, None, None, word="state", warps=16)


def step_op(
    weight: Any, step: Any, freeze: Any, track: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    momentum: float, ema_momentum: float, limit: int, count_first: bool,
) -> None:  # fmt: skip
    constants = (momentum, ema_momentum, float(limit), float(count_first))
    run_in_place(OSCILLATION, weight, (step,), (freeze, track), qmin, qmax, axis, group_size, eps, constants)


implement_triton("oscillation_step", step_op)
