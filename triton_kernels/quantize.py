"""Codes of activations in Triton, with the bits of ``fastq/reference/int_gemm.py``.

code = round(clip((x - offset) / scale, lo - zp, hi - zp)) + zp         NaN gives zp
per token: scale = max |x| / (2**(bits-1) - 1) of a row, 1 where that is 0; zp = 0
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted
from fastq.ops._library import implement_triton

from .elementwise import WARPS, _dense, _guard, _like
from .epilogue import quantized
from .numeric import divide, loop_count, widen

fp32, i64 = tl.constexpr("fp32"), tl.constexpr("i64")

TILE = 4096
#: Elements of a row that one program holds, so that x is read once; longer rows are read again, from the cache.
HELD = 8192


@triton.jit
def quantize_kernel(
    x, scale, offset, codes, numel: i64, low: fp32, high: fp32, code_zero: fp32, BLOCK: tl.constexpr, BY_BITS: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numel
    v = widen(tl.load(x + at, mask=mask, other=0.0), tl.float32, BY_BITS)
    if offset is not None:
        v = v - tl.load(offset)
    code = quantized(v, tl.load(scale), low, high, code_zero, codes.dtype.element_ty)
    tl.store(codes + at, code, mask=mask)


@triton.jit
def token_kernel(
    x, codes, scales, rows: i64, length, tiles, highest: fp32,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ONCE: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = (row * length)[:, None]
    there = (row < rows)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    # Numbers without sign have the order of their bits, NaN above all others: maxima of integers lose no NaN.
    if ONCE:
        mask = there & (column < length)
        v = widen(tl.load(x + start + column, mask=mask, other=0.0), tl.float32, BY_BITS)
        largest = tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    else:
        highs = tl.zeros((ROWS, BLOCK), tl.int32)
        for tile in tl.range(tiles):
            first = tile * BLOCK
            mask = there & (first + column < length)
            v = widen(tl.load(x + start + (first + column), mask=mask, other=0.0), tl.float32, BY_BITS)
            bits = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            highs = tl.where(bits > highs, bits, highs)
        largest = tl.max(highs, axis=1)
    scale = divide(largest.to(tl.float32, bitcast=True), tl.full((ROWS,), highest, tl.float32))
    scale = tl.where(scale == 0.0, 1.0, scale)
    tl.store(scales + row, scale, mask=row < rows)
    each = scale[:, None]
    if ONCE:
        tl.store(codes + start + column, quantized(v, each, -highest, highest, 0.0, tl.int8), mask=mask)
    else:
        for tile in tl.range(tiles):
            first = tile * BLOCK
            mask = there & (first + column < length)
            v = widen(tl.load(x + start + (first + column), mask=mask, other=0.0), tl.float32, BY_BITS)
            tl.store(codes + start + (first + column), quantized(v, each, -highest, highest, 0.0, tl.int8), mask=mask)


def _by_bits(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16 and triton_interpreted()


def _quantize_op(x: Any, scale: Any, offset: Any, codes: list[int], dtype: torch.dtype) -> Any:
    dense = _dense(x, False)
    out = torch.empty_like(dense, dtype=dtype)
    low, high, zero = codes
    if numel := x.numel():
        with _guard(x):
            quantize_kernel[(triton.cdiv(numel, TILE),)](
                dense, scale, offset, out, numel, float(low - zero), float(high - zero), float(zero),
                BLOCK=TILE, BY_BITS=_by_bits(x), num_warps=WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return out if dense is x else _like(out, torch.empty_like(x, dtype=dtype))


def token_tile(length: int) -> tuple[int, int]:
    """Rows and columns that a program of :func:`token_kernel` works on at once."""
    block = min(triton.next_power_of_2(length), HELD)
    return max(min(HELD // 4 // block, 64), 1), block


def _per_token_op(x: Any, bits: int) -> Any:
    x = x.contiguous()
    rows, length = x.shape
    codes = torch.empty_like(x, dtype=torch.int8)
    if not length:
        return codes, torch.ones(rows, dtype=torch.float32, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows:
        of_tile, block = token_tile(length)
        with _guard(x):
            token_kernel[(triton.cdiv(rows, of_tile),)](
                x, codes, scales, rows, length, loop_count(triton.cdiv(length, block)), float(2 ** (bits - 1) - 1),
                ROWS=of_tile, BLOCK=block, ONCE=length <= block, BY_BITS=_by_bits(x), num_warps=WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return codes, scales


implement_triton("quantize", _quantize_op)
implement_triton("quantize_per_token", _per_token_op)
