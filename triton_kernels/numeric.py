"""The arithmetic that every method is written in: exact, and the same compiled and interpreted.

``/`` compiles to an approximation (``div.full``), and ``tl.minimum`` loses NaN, so a method uses these instead. fp64 inputs
compute in fp64, all others in fp32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted


def loop_count(n: int) -> Any:
    """``n`` as an argument of a kernel that is the bound of a ``tl.range``. The interpreter would make it an array of one element,
    of which NumPy makes no index, and leaves a constant as it is."""
    return tl.constexpr(n) if triton_interpreted() else n


@triton.jit
def bound(n, INTERPRETED: tl.constexpr):
    """What a kernel computes, as the bound of a ``range``: in the interpreter, too, which has it as an array of one element."""
    if INTERPRETED:
        return int((tl.zeros((1,), tl.int32) + n).handle.data[0])
    else:
        return n


@triton.jit
def divide(a, b):
    """True division. fp64's ``/`` already is one."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def clip(v, low, high):
    """NaN stays NaN: both comparisons are false."""
    raised = tl.where(v < low, low, v)
    return tl.where(raised > high, high, raised)


@triton.jit
def round_clipped(c):
    """Round half to even for ``|c| <= 2^21``: adding 1.5 * 2^23 (fp64: 2^52) leaves no room for a fraction; -0 becomes +0."""
    if c.dtype == tl.float64:
        magic = tl.full((), 6755399441055744.0, tl.float64)
    else:
        magic = tl.full((), 12582912.0, tl.float32)
    return (c + magic) - magic


@triton.jit
def nan_of(v):
    """NaN where ``v`` is NaN, else 0."""
    return tl.where(v == v, 0.0, v)


@triton.jit
def widen(stored, F: tl.constexpr, BY_BITS: tl.constexpr):
    """From storage to the arithmetic type. ``BY_BITS``: bfloat16 by its bits, which the interpreter would get wrong."""
    if BY_BITS:
        return (stored.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return stored.to(F)


@triton.jit
def narrow(value, S: tl.constexpr, BY_BITS: tl.constexpr):
    """From the arithmetic type to storage ``S``, round half to even."""
    if BY_BITS:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value == value, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.int16, bitcast=True).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(S)
