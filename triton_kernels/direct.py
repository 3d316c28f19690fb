"""Direct quantization in Triton. The formula: ``fastq/reference/direct.py``.

w = l[a];   dl[k] = sum over a = k of g
u = (l[a] + r) - lr * g;   a = the level next to u, a tie to the lower;   r = rho * (u - l[a])

The histogram has no atomics: a program compares each of its elements with every level, and adds up what was equal.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted
from fastq.ops._library import implement_triton

from .elementwise import WARPS, _dense, _guard, _like
from .numeric import narrow, widen

fp64, i64 = tl.constexpr("fp64"), tl.constexpr("i64")

TILE = 4096
PAIRS = 8192  # of a level and an element, that a program compares at once


@triton.jit
def weight_kernel(codes, levels, w, numel: i64, LEVELS: tl.constexpr, BLOCK: tl.constexpr, BY_BITS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    code = tl.load(codes + at, mask=mask, other=0).to(tl.int32) & (LEVELS - 1)
    tl.store(w + at, narrow(tl.load(levels + code), w.dtype.element_ty, BY_BITS), mask=mask)


@triton.jit
def gradient_kernel(
    codes, g, partial, numel: i64, LEVELS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, BY_BITS: tl.constexpr
):
    tile = tl.program_id(0).to(tl.int64)
    level = tl.arange(0, LEVELS)
    total = tl.zeros((LEVELS, BLOCK), tl.float32)
    for part in range(PARTS):
        at = (tile * PARTS + part) * BLOCK + tl.arange(0, BLOCK)
        mask = at < numel
        code = tl.load(codes + at, mask=mask, other=0).to(tl.int32) & (LEVELS - 1)
        value = widen(tl.load(g + at, mask=mask, other=0.0), tl.float32, BY_BITS)
        total += tl.where(level[:, None] == code[None, :], value[None, :], 0.0)
    tl.store(partial + tile * LEVELS + level, tl.sum(total, axis=1))


@triton.jit
def direct_finish_kernel(partial, dlevels, tiles: i64, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    start = tl.zeros((), tl.int64)
    while start < tiles:
        tile = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.load(partial + tile * LEVELS + level, mask=tile < tiles, other=0.0).to(tl.float64)
        start += BLOCK
    tl.store(dlevels + level, tl.sum(total, axis=0).to(tl.float32))


@triton.jit
def update_kernel(
    codes, residual, levels, g, numel: i64, lr: fp64, rho: fp64,
    LEVELS: tl.constexpr, BITS: tl.constexpr, KEEPS: tl.constexpr, BLOCK: tl.constexpr,
    R_BY_BITS: tl.constexpr, G_BY_BITS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    code = tl.load(codes + at, mask=mask, other=0).to(tl.int32) & (LEVELS - 1)
    u = tl.load(levels + code)
    if KEEPS:
        u = u + widen(tl.load(residual + at, mask=mask, other=0.0), tl.float32, R_BY_BITS)
    u = u - tl.full((), lr, tl.float32) * widen(tl.load(g + at, mask=mask, other=0.0), tl.float32, G_BY_BITS)

    high = tl.zeros((BLOCK,), tl.int32)
    for i in tl.static_range(BITS):
        high = tl.where(tl.load(levels + (high + ((LEVELS >> (i + 1)) - 1))) < u, high + (LEVELS >> (i + 1)), high)
    above = u - tl.load(levels + high)
    low = tl.where(above > 0.0, high, tl.where(high > 0, high - 1, high))
    below = u - tl.load(levels + low)
    code = tl.where(tl.abs(above) < tl.abs(below), high, low)
    tl.store(codes + at, code.to(tl.uint8), mask=mask)
    if KEEPS:
        rest = tl.full((), rho, tl.float32) * (u - tl.load(levels + code))
        tl.store(residual + at, narrow(rest, residual.dtype.element_ty, R_BY_BITS), mask=mask)


def part_of(levels: int) -> int:
    """Elements of a tile that are compared with all levels at once."""
    return max(min(PAIRS // levels, TILE // 4), 32)


def _by_bits(t: torch.Tensor) -> bool:
    return t.dtype == torch.bfloat16 and triton_interpreted()


_OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}


def _forward_op(codes: Any, levels: Any, dtype: torch.dtype) -> Any:
    dense = _dense(codes, False)
    w = torch.empty_like(dense, dtype=dtype)
    if numel := codes.numel():
        with _guard(codes):
            weight_kernel[(triton.cdiv(numel, TILE),)](
                dense, levels.contiguous(), w, numel, LEVELS=levels.numel(), BLOCK=TILE, BY_BITS=_by_bits(w), **_OPTIONS
            )
    return w if dense is codes else _like(w, torch.empty_like(codes))


def _backward_op(grad: Any, codes: Any, levels: int) -> Any:
    dense = _dense(codes, False)
    numel, block = codes.numel(), part_of(levels)
    tiles = triton.cdiv(numel, TILE)
    dlevels = torch.zeros(levels, dtype=torch.float32, device=codes.device)
    if numel:
        partial = torch.empty(tiles * levels, dtype=torch.float32, device=codes.device)
        with _guard(codes):
            gradient_kernel[(tiles,)](
                dense, _like(grad, dense), partial, numel, LEVELS=levels, BLOCK=block, PARTS=TILE // block, BY_BITS=_by_bits(grad),
                **_OPTIONS,
            )  # fmt: skip
            direct_finish_kernel[(levels,)](
                partial, dlevels, tiles, LEVELS=levels, BLOCK=min(triton.next_power_of_2(tiles), 1024),
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return dlevels


def _update_op(codes: Any, residual: Any, levels: Any, grad: Any, lr: float, rho: float) -> None:
    dense = _dense(codes, False)
    kept = None if residual is None else _like(residual, dense)
    if numel := codes.numel():
        with _guard(codes):
            update_kernel[(triton.cdiv(numel, TILE),)](
                dense, dense if kept is None else kept, levels.contiguous(), _like(grad, dense), numel, float(lr), float(rho),
                LEVELS=levels.numel(), BITS=levels.numel().bit_length() - 1, KEEPS=kept is not None, BLOCK=TILE,
                R_BY_BITS=kept is not None and _by_bits(kept), G_BY_BITS=_by_bits(grad), **_OPTIONS,
            )  # fmt: skip
    if dense is not codes:
        codes.copy_(dense)
    if kept is not None and kept is not residual:
        residual.copy_(kept)


implement_triton("direct_weight_forward", _forward_op)
implement_triton("direct_weight_backward", _backward_op)
implement_triton("direct_update_", _update_op)
