"""SAT weights in Triton. The formula, its names and its paper: ``fastq/reference/sat.py``.

t = tanh(w) ;  m = tanh(max|w|) ;  Wh = t / m ;  v = L * ((Wh + 1) / 2) ;  k = round(v) or min(floor(v), L - 1)
code = 2k - L (+ 1) ;  y = s * code ,  s = kappa / L ;   without bits y = kappa * Wh
dw = (1 - t^2) * (c * g) ,  c = kappa / m ;   at the first maximum (1 - t^2) * (c * g - sign(w) * c * sum(g * t) / m)

Three passes forward (the largest; the codes and their sums; y), one backward and one element corrected, in blocks of
:data:`BLOCK` elements of memory; behind each pass one program gathers what the blocks left.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted
from fastq.granularity import compute_dtype
from fastq.ops._library import implement_triton
from fastq.reference.sat import SCHEMES

from .elementwise import _ARITHMETIC, _dense, _guard, _like, _memory_order
from .functions import sech2, tanh
from .numeric import clip, divide, nan_of, narrow, round_clipped, widen

# The types of kernel arguments, by name; Triton would make a float an fp32 and a small int an i32.
fp64, i64 = tl.constexpr("fp64"), tl.constexpr("i64")

BLOCK = 4096
GATHER = 1024
WARPS = 8
#: Where the order of memory is not that of the indices: divisions of 64 bits for each element, and so fewer to a thread.
MORE_WARPS = 16


@triton.jit
def _index_of(place, sizes, strides):
    """The row-major index of an element at ``place`` in memory; dimensions from the outermost in memory to the innermost."""
    if len(sizes) == 0:
        return place
    index = place * 0
    for d in tl.static_range(len(sizes) - 1, -1, -1):
        index += place % sizes[d] * strides[d]
        place = place // sizes[d]
    return index


@triton.jit
def _place_of(index, sizes, strides, places):
    if len(sizes) == 0:
        return index
    place = index * 0
    for d in tl.static_range(len(sizes)):
        place += index // strides[d] % sizes[d] * places[d]
    return place


@triton.jit
def _load(pointer, numel, F: tl.constexpr, BLOCK: tl.constexpr, BY_BITS: tl.constexpr):
    """A block's elements, 0 where there are none, their places and which exist."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < numel
    return widen(tl.load(pointer + place, mask=mask, other=0.0), F, BY_BITS), place, mask


@triton.jit
def largest_kernel(w, largest, numel: i64, F: tl.constexpr, BLOCK: tl.constexpr, BY_BITS: tl.constexpr):
    value, _, _ = _load(w, numel, F, BLOCK, BY_BITS)
    a = tl.abs(value)
    most = tl.max(tl.where(a == a, a, 0.0), axis=0)
    tl.store(largest + tl.program_id(0), most + tl.sum(nan_of(a), axis=0))


@triton.jit
def find_largest_kernel(largest, scale, blocks: i64, F: tl.constexpr, BLOCK: tl.constexpr):
    most, nan = tl.zeros((BLOCK,), F), tl.zeros((BLOCK,), F)
    start = tl.zeros((), tl.int64)
    while start < blocks:
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        value = tl.load(largest + j, mask=j < blocks, other=0.0)
        most = tl.where(value > most, value, most)
        nan += nan_of(value)
        start += BLOCK
    found = tl.max(most, axis=0) + tl.sum(nan, axis=0)
    tl.store(largest + blocks, found)
    tl.store(scale, tanh(found).to(tl.float64))


@triton.jit
def _unit(w, m):
    """Wh; where m is 0, so is tanh(w)."""
    return divide(tanh(w), tl.where(m == 0, 1.0, m).to(w.dtype))


@triton.jit
def codes_kernel(
    w, codes, scale, largest, code_sums, sums, candidates, sizes, strides, numel: i64, blocks: i64,
    LEVELS: tl.constexpr, FLOORS: tl.constexpr, STD: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    value, place, mask = _load(w, numel, F, BLOCK, BY_BITS)
    block = tl.program_id(0).to(tl.int64)
    most = tl.load(largest + blocks)
    lowest = tl.where(mask & (tl.abs(value) == most), _index_of(place, sizes, strides), numel)
    tl.store(candidates + block, tl.min(lowest, axis=0))
    unit = _unit(value, tl.load(scale))
    if LEVELS == 0:
        wide = tl.where(mask, unit, 0.0).to(tl.float64)
        tl.store(sums + block, tl.sum(wide, axis=0))
        tl.store(sums + blocks + block, tl.sum(wide * wide, axis=0))
    else:
        v = clip((unit + 1.0) * 0.5 * LEVELS, 0.0, LEVELS)
        k = round_clipped(v)
        if FLOORS:
            k = tl.where(k > v, k - 1.0, k)
            k = tl.where(k > LEVELS - 1, LEVELS - 1, k)
        code = tl.where(mask & (k == k), k, 0.0).to(tl.int32)
        tl.store(codes + place, code.to(tl.uint8), mask=mask)
        tl.store(code_sums + block, tl.sum(code, axis=0).to(tl.int64))
        tl.store(code_sums + blocks + block, tl.sum(code * code, axis=0).to(tl.int64))
    if STD:
        wide = value.to(tl.float64)
        tl.store(sums + 2 * blocks + block, tl.sum(wide, axis=0))
        tl.store(sums + 3 * blocks + block, tl.sum(wide * wide, axis=0))


@triton.jit
def _gather(pointer, count, BLOCK: tl.constexpr):
    """The sum of ``count`` numbers, in their own type."""
    total = tl.zeros((BLOCK,), pointer.dtype.element_ty)
    start = tl.zeros((), tl.int64)
    while start < count:
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.load(pointer + j, mask=j < count, other=0)
        start += BLOCK
    return tl.sum(total, axis=0)


@triton.jit
def _variance(total, squares, n):
    centered = squares - total * total / n.to(tl.float64)
    centered = tl.where(centered < 0.0, 0.0, centered) / tl.maximum(n - 1, 1).to(tl.float64)
    return tl.where(n < 2, 0.0, centered)


@triton.jit
def find_scale_kernel(
    scale, index, code_sums, sums, candidates, numel: i64, blocks: i64, n_out: fp64,
    LEVELS: tl.constexpr, RESCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.zeros((BLOCK,), tl.int64) + numel
    start = tl.zeros((), tl.int64)
    while start < blocks:
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        first = tl.minimum(first, tl.load(candidates + j, mask=j < blocks, other=numel))
        start += BLOCK
    lowest = tl.min(first, axis=0)
    tl.store(index, tl.where(lowest < numel, lowest, -1))
    if LEVELS == 0:
        variance = _variance(_gather(sums, blocks, BLOCK), _gather(sums + blocks, blocks, BLOCK), numel)
    else:
        # Centred on the integer next to the mean, where int64 is exact and nothing cancels.
        one, two = _gather(code_sums, blocks, BLOCK), _gather(code_sums + blocks, blocks, BLOCK)
        center = one // numel
        total = one - numel * center
        squares = two - 2 * center * one + numel * center * center
        variance = 4.0 * _variance(total.to(tl.float64), squares.to(tl.float64), numel) / tl.full((), LEVELS * LEVELS, tl.float64)
    m = tl.load(scale)
    kappa = tl.full((), 1.0, tl.float64)
    if RESCALE == 1:
        kappa = tl.where(variance > 0.0, 1.0 / tl.sqrt(n_out * variance), 0.0)
    elif RESCALE == 2:
        spread = _variance(_gather(sums + 2 * blocks, blocks, BLOCK), _gather(sums + 3 * blocks, blocks, BLOCK), numel)
        kappa = tl.where(variance > 0.0, tl.sqrt(spread / variance), 0.0)
    tl.store(scale + 1, tl.where(m == 0.0, 0.0, kappa + (m - m)))  # a NaN in w
    tl.store(scale + 2, variance)


@triton.jit
def scale_kernel(
    w, codes, y, scale, numel: i64,
    LEVELS: tl.constexpr, CENTERED: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    kappa = tl.load(scale + 1)
    if LEVELS == 0:
        value, place, mask = _load(w, numel, F, BLOCK, BY_BITS)
        result = _unit(value, tl.load(scale)) * kappa.to(F)
    else:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = place < numel
        k = tl.load(codes + place, mask=mask, other=0).to(tl.int32).to(F)
        step = (kappa / tl.full((), LEVELS, tl.float64)).to(F)
        result = (k * 2.0 - (LEVELS - CENTERED)) * step
    tl.store(y + place, narrow(result + 0.0, y.dtype.element_ty, BY_BITS), mask=mask)  # a step of 0 gives no -0


@triton.jit
def _ratio(scale):
    m = tl.load(scale)
    return tl.where(m == 0.0, 0.0, tl.load(scale + 1) / tl.where(m == 0.0, 1.0, m))


@triton.jit
def backward_kernel(
    w, g, dw, scale, partial, numel: i64, THROUGH_MAX: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr, BY_BITS: tl.constexpr
):
    value, place, mask = _load(w, numel, F, BLOCK, BY_BITS)
    gradient, _, _ = _load(g, numel, F, BLOCK, BY_BITS)
    if THROUGH_MAX:
        tl.store(partial + tl.program_id(0), tl.sum(gradient * tanh(value), axis=0).to(tl.float64))
    result = sech2(value) * (gradient * _ratio(scale).to(F))
    tl.store(dw + place, narrow(result, dw.dtype.element_ty, BY_BITS), mask=mask)


@triton.jit
def correct_kernel(
    w, g, dw, scale, index, partial, sizes, strides, places, numel: i64, blocks: i64,
    F: tl.constexpr, BLOCK: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    total = _gather(partial, blocks, BLOCK)
    ratio, m = _ratio(scale), tl.load(scale)
    through = tl.where(m == 0.0, 0.0, ratio * total / tl.where(m == 0.0, 1.0, m)).to(F)
    first = tl.load(index)
    there = (first >= 0) & (first < numel)
    place = _place_of(tl.where(there, first, 0), sizes, strides, places) + tl.arange(0, 1)
    mask = there & (place < numel)
    value = widen(tl.load(w + place, mask=mask, other=0.0), F, BY_BITS)
    gradient = widen(tl.load(g + place, mask=mask, other=0.0), F, BY_BITS)
    inner = gradient * ratio.to(F) - tl.where(value < 0, -through, through)
    tl.store(dw + place, narrow(sech2(value) * inner, dw.dtype.element_ty, BY_BITS), mask=mask)


def _order(w: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sizes, row-major strides and strides of the dimensions from the outermost in memory; empty where memory is in row-major
    order."""
    if w.is_contiguous():
        return (), (), ()
    order = _memory_order(w)
    logical = torch.empty(w.shape, device="meta").stride()
    return tuple(w.shape[d] for d in order), tuple(logical[d] for d in order), tuple(w.stride(d) for d in order)


def _options(w: torch.Tensor) -> dict[str, Any]:
    by_bits = w.dtype == torch.bfloat16 and triton_interpreted()
    return {"F": _ARITHMETIC[compute_dtype(w)], "BLOCK": BLOCK, "BY_BITS": by_bits, "num_warps": WARPS, "enable_fp_fusion": False}


def _forward_op(w: Any, bits: int, scheme: int, rescale: int, n_out: int) -> Any:
    x = _dense(w, False)
    y = torch.empty_like(x)
    scale = torch.zeros(3, dtype=torch.float64, device=w.device)
    index = torch.full((1,), -1, dtype=torch.int64, device=w.device)
    n, blocks = w.numel(), triton.cdiv(w.numel(), BLOCK)
    if n == 0:
        return y, scale, index
    levels = 0 if bits == 0 else 2**bits - (1 if scheme == SCHEMES["round"] else 0)
    sizes, strides, _ = _order(x)
    options = _options(w)
    F = options["F"]
    gather: dict[str, Any] = {"BLOCK": GATHER, "num_warps": 4, "enable_fp_fusion": False}
    largest = torch.empty(blocks + 1, dtype=compute_dtype(w), device=w.device)
    codes = torch.empty(n if bits else 0, dtype=torch.uint8, device=w.device)
    code_sums, candidates = (torch.empty(k * blocks, dtype=torch.int64, device=w.device) for k in (2, 1))
    sums = torch.empty(4 * blocks, dtype=torch.float64, device=w.device)
    with _guard(w):
        largest_kernel[(blocks,)](x, largest, n, **options)
        find_largest_kernel[(1,)](largest, scale, blocks, F=F, **gather)
        codes_kernel[(blocks,)](
            x, codes, scale, largest, code_sums, sums, candidates, sizes, strides, n, blocks,
            LEVELS=levels, FLOORS=scheme != SCHEMES["round"], STD=rescale == 2,
            **options | {"num_warps": MORE_WARPS if sizes else WARPS},
        )  # fmt: skip
        find_scale_kernel[(1,)](
            scale, index, code_sums, sums, candidates, n, blocks, float(n_out), LEVELS=levels, RESCALE=rescale, **gather
        )
        scale_kernel[(blocks,)](x, codes, y, scale, n, LEVELS=levels, CENTERED=int(scheme == SCHEMES["centered"]), **options)
    return (y if x is w else _like(y, torch.empty_like(w))), scale, index


def _backward_op(grad: Any, w: Any, scale: Any, index: Any, grad_through_max: bool) -> Any:
    x = _dense(w, False)
    dw = torch.empty_like(x)
    n, blocks = w.numel(), triton.cdiv(w.numel(), BLOCK)
    if n:
        g = _like(grad, x)
        partial = torch.empty(blocks, dtype=torch.float64, device=w.device)
        options = _options(w)
        with _guard(w):
            backward_kernel[(blocks,)](x, g, dw, scale, partial, n, THROUGH_MAX=grad_through_max, **options)
            if grad_through_max:
                options |= {"BLOCK": GATHER, "num_warps": 4}
                correct_kernel[(1,)](x, g, dw, scale, index, partial, *_order(x), n, blocks, **options)
    return dw if x is w else _like(dw, torch.empty_like(w))


implement_triton("sat_forward", _forward_op)
implement_triton("sat_backward", _backward_op)
