"""Products of floating point inputs and packed weights in Triton: W8A16, W4A16, W3A16, W2A16, and the same with float32 inputs.

    y[m, n] = sum over groups g of scale[n, g] * sum over k in g of x[m, k] * (f[n, k] - t[n, g])

Weights are the left operand, ``y^T = W x^T``: they are unpacked in registers, where ``f - t`` is exact in every dtype, and stay
there; a few rows of ``x`` are the narrow side of the product. Sums are float32; a scale is applied to the sum of its group. Of few
rows K is split among programs, whose sums a second kernel adds in their order.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted
from fastq.engine import configurations
from fastq.engine.call import Epilogue, Operand, Problem, Window
from fastq.engine.configurations import Configuration, architecture_of
from fastq.packing import TILE, field_bits

from .elementwise import _guard
from .epilogue import arguments, one_or_each, write
from .numeric import loop_count, narrow, widen
from .packed import centred, tiles_of

#: Rows up to which programs share K.
FEW = 64

fp32 = tl.constexpr("fp32")


@triton.jit
def tile_of(pid, rows, n, BM: tl.constexpr, BN: tl.constexpr, NEAR: tl.constexpr):
    """The tile of a program: NEAR neighbours in n share the rows of ``x``, so that both operands stay in the cache."""
    tiles_m, tiles_n = tl.cdiv(rows, BM), tl.cdiv(n, BN)
    band = pid // (NEAR * tiles_m)
    first = band * NEAR
    width = min(tiles_n - first, NEAR)
    within = pid % (NEAR * tiles_m)
    return within // width, first + within % width


@triton.jit
def float_gemm_kernel(
    x, weight, scale, zero, out, partial, rows, n, k, row_bytes, scales, group_size, steps,
    bias, multiplier, addend, residual, out_scale, low: fp32, high: fp32, code_zero: fp32,
    BITS: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr, SPLITS: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr, NEAR: tl.constexpr,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """GROUPS: 0: one scale for a row; 1: one for a part of a tile; 2: one for a whole tile."""
    PARTS: tl.constexpr = 8 // BITS
    BY_BITS: tl.constexpr = INTERPRETED and x.dtype.element_ty == tl.bfloat16
    S: tl.constexpr = tl.float32 if BY_BITS else x.dtype.element_ty
    at_m, at_n = tile_of(tl.program_id(0), rows, n, BM, BN, NEAR)
    split = tl.program_id(1)
    m = at_m * BM + tl.arange(0, BM)
    row = at_n * BN + tl.arange(0, BN)
    m_there, n_there = m < rows, row < n
    byte = tl.arange(0, BYTES)
    x_rows = x + m.to(tl.int64)[:, None] * k
    w_rows = weight + row.to(tl.int64)[:, None] * row_bytes
    if zero is None:
        t = tl.zeros((BN,), tl.float32)
    elif GROUPS == 0:
        t = one_or_each(zero, row, n_there, EACH).to(tl.float32) + tl.zeros((BN,), tl.float32)

    acc = tl.zeros((BN, BM), tl.float32)
    for step in tl.range(steps):
        start = (split * steps + step) * BYTES
        base = tl.multiple_of((start // 64) * (64 * PARTS) + start % 64, BYTES)
        w_there = n_there[:, None] if EVEN else n_there[:, None] & (start < row_bytes)
        stored = tl.load(w_rows + (start + byte)[None, :], mask=w_there, other=0)
        if GROUPS == 2:
            g = base // group_size
            g_there = n_there & (g < scales)
            part_scale = tl.load(scale + (row.to(tl.int64) * scales + g), mask=g_there, other=0.0)
            if zero is not None:
                t = tl.load(zero + (row.to(tl.int64) * scales + g), mask=g_there, other=0).to(tl.float32)
            part = tl.zeros((BN, BM), tl.float32)
        for p in tl.static_range(PARTS):
            element = base + 64 * p + byte
            x_there = m_there[:, None] if EVEN else m_there[:, None] & (element < k)[None, :]
            right = tl.load(x_rows + element[None, :], mask=x_there, other=0.0)
            if BY_BITS:
                right = widen(right, tl.float32, True)
            if GROUPS == 1:
                g = (base + 64 * p) // group_size
                g_there = n_there & (g < scales)
                part_scale = tl.load(scale + (row.to(tl.int64) * scales + g), mask=g_there, other=0.0)
                if zero is not None:
                    t = tl.load(zero + (row.to(tl.int64) * scales + g), mask=g_there, other=0).to(tl.float32)
            left = centred(stored, t[:, None], p, BITS, S)
            if GROUPS == 0:
                acc = tl.dot(left, tl.trans(right), acc, input_precision="ieee")
            elif GROUPS == 1:
                acc += tl.dot(left, tl.trans(right), input_precision="ieee") * part_scale[:, None]
            else:
                part = tl.dot(left, tl.trans(right), part, input_precision="ieee")
        if GROUPS == 2:
            acc += part * part_scale[:, None]

    m, row = m[None, :], row[:, None]
    m_there, n_there = m_there[None, :], n_there[:, None]
    if SPLITS > 1:
        at = (split * rows + m).to(tl.int64) * n + row
        tl.store(partial + at, acc, mask=m_there & n_there)
    else:
        if GROUPS == 0:
            acc = acc * one_or_each(scale, row, n_there, EACH)
        write(
            acc, out, m, row, m_there, n_there, n, bias, multiplier, addend, residual, out_scale, low, high, code_zero,
            ACTIVATION, INTERPRETED,
        )  # fmt: skip


@triton.jit
def float_finish_kernel(
    partial, scale, out, rows, n,
    bias, multiplier, addend, residual, out_scale, low: fp32, high: fp32, code_zero: fp32,
    SPLITS: tl.constexpr, EACH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The sums of SPLITS programs, the first one first, and the epilogue. ``scale`` None: it has been applied."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM))[:, None]
    column = (tl.program_id(1) * BN + tl.arange(0, BN))[None, :]
    m_there, n_there = m < rows, column < n
    y = tl.zeros((BM, BN), tl.float32)
    for split in tl.static_range(SPLITS):
        at = (split * rows + m).to(tl.int64) * n + column
        value = tl.load(partial + at, mask=m_there & n_there, other=0.0)
        y += widen(value, tl.float32, INTERPRETED and partial.dtype.element_ty == tl.bfloat16)
    if scale is not None:
        y = y * one_or_each(scale, column, n_there, EACH)
    write(
        y, out, m, column, m_there, n_there, n, bias, multiplier, addend, residual, out_scale, low, high, code_zero,
        ACTIVATION, INTERPRETED,
    )  # fmt: skip


def finish(partial: torch.Tensor, scale: torch.Tensor | None, out: torch.Tensor, n: int, splits: int, e: Epilogue) -> None:
    """The epilogue of ``partial`` ``(splits, rows, n)`` into ``out``."""
    rows = out.numel() // n
    bn = min(triton.next_power_of_2(n), 256)
    bm = max(min(1024 // bn, triton.next_power_of_2(rows)), 1)
    float_finish_kernel[(triton.cdiv(rows, bm), triton.cdiv(n, bn))](
        partial, scale, out, rows, n, SPLITS=splits, EACH=scale is not None and scale.numel() > 1, BM=bm, BN=bn,
        num_warps=4, enable_fp_fusion=False, **arguments(e),
    )  # fmt: skip


def linear(x: torch.Tensor, w: Operand, e: Epilogue, chosen: Configuration | None = None) -> torch.Tensor:
    """``fastq.int_linear`` of floating point ``x`` ``(M, K)``. ``chosen``: not the table's."""
    rows = x.shape[0]
    out = torch.empty((rows, w.n), dtype=e.out_dtype, device=x.device)
    bits = field_bits(w.bits, "tiles")
    c = chosen or configuration(rows, x.dtype, bits, bool(w.group_size), architecture_of(x.device))
    parts = 8 // bits
    data = tiles_of(w)
    row_bytes, k = data.shape[1], w.k
    if k % 16:  # rows that begin at odd addresses are read number by number, and take more registers than there are
        k = row_bytes * parts
        x = F.pad(x, (0, k - w.k))
    size = math.gcd(w.group_size, TILE) if w.group_size else TILE
    groups = 0 if not w.group_size else 2 if w.group_size % (TILE * parts) == 0 else 1
    tiles, steps = triton.cdiv(rows, c.block_m) * triton.cdiv(w.n, c.block_n), row_bytes // size
    splits = max(min(c.programs // max(tiles, 1), steps // 4, 16), 1)
    each = triton.cdiv(steps, splits)
    splits = max(triton.cdiv(steps, each), 1) if each else 1
    partial = torch.empty((splits, rows, w.n), dtype=torch.float32, device=x.device) if splits > 1 else None
    with _guard(x):
        float_gemm_kernel[(tiles, splits)](
            x, data, w.scale, w.zero, out, partial, rows, w.n, k, row_bytes, w.groups, max(w.group_size, 1),
            loop_count(each), BITS=bits, GROUPS=groups, EACH=w.scale.numel() > 1, SPLITS=splits,
            EVEN=k % (TILE * parts) == 0 and each * splits == steps, BM=c.block_m, BN=c.block_n, BYTES=size, NEAR=8,
            num_warps=c.warps, num_stages=c.stages, enable_fp_fusion=False, **arguments(e),
        )  # fmt: skip
        if partial is not None:
            finish(partial, None if w.group_size else w.scale, out, w.n, splits, e)
    return out


def configuration(rows: int, dtype: torch.dtype, bits: int, grouped: bool, architecture: int) -> Configuration:
    """The table's, and of one size in the interpreter."""
    few = "_few" if rows <= FEW else ""
    kind = f"a32{few}" if dtype == torch.float32 else f"w{bits}a16{'_group' if grouped else ''}{few}"
    if triton_interpreted():
        return Configuration(kind, 0, 0, 32, 64, 64, 4, 1, 1, 64, False)
    return configurations.find(kind, architecture, rows)


# Large products, and convolutions: the weight is written once in the dtype of the input, for torch's own product.


@triton.jit
def dequantize_kernel(
    weight, scale, zero, out, n, k, row_bytes, scales, group_size,
    BITS: tl.constexpr, GROUPED: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """``(f - t) / 256`` exactly, or GROUPED, ``scale * (f - t)`` rounded to the dtype of ``out`` ``(n, k)``."""
    PARTS: tl.constexpr = 8 // BITS
    S: tl.constexpr = out.dtype.element_ty
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    tile = tl.program_id(0)
    there = row < n
    byte = tl.arange(0, 64)[None, :]
    stored = tl.load(weight + row.to(tl.int64) * row_bytes + (tile * 64 + byte), mask=there, other=0)
    for p in tl.static_range(PARTS):
        element = (tile * PARTS + p) * 64 + byte
        inside = there & (element < k)
        t = tl.zeros((1, 1), tl.float32)
        if GROUPED:
            at = row.to(tl.int64) * scales + element // group_size
            if zero is not None:
                t = tl.load(zero + at, mask=inside, other=0).to(tl.float32)
            value = centred(stored, t, p, BITS, tl.float32) * tl.load(scale + at, mask=inside, other=0.0)
        else:
            if zero is not None:
                t = one_or_each(zero, row, there, EACH).to(tl.float32)
            value = centred(stored, t, p, BITS, tl.float32) * 0.00390625
        tl.store(out + (row.to(tl.int64) * k + element), narrow(value, S, INTERPRETED and S == tl.bfloat16), mask=inside)


def dequantized(w: Operand, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight ``(N, K)`` in ``dtype``, and the scale its products are still to be multiplied with.

    A scale per tensor or channel is left to the epilogue: ``(f - t) / 256`` is exact in every dtype, and small enough that no
    product of float16 leaves its range which the scaled one would not. Scales of groups are multiplied in and rounded once.
    """
    out = torch.empty((w.n, w.k), dtype=dtype, device=w.data.device)
    bits, data = field_bits(w.bits, "tiles"), tiles_of(w)
    if out.numel():
        with _guard(out):
            dequantize_kernel[(data.shape[1] // TILE, triton.cdiv(w.n, 32))](
                data, w.scale, w.zero, out, w.n, w.k, data.shape[1], w.groups, max(w.group_size, 1), BITS=bits,
                GROUPED=bool(w.group_size), EACH=w.scale.numel() > 1, ROWS=32, INTERPRETED=triton_interpreted(),
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return out, None if w.group_size else w.scale * 256.0


def dequantized_linear(x: torch.Tensor, w: Operand, e: Epilogue) -> torch.Tensor:
    """``fastq.int_linear`` of floating point ``x`` by torch's product of ``x`` and the weight in its dtype, in float32."""
    weight, scale = dequantized(w, x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if x.dtype == torch.float32:
            y = x @ weight.t()
        elif x.device.type == "cuda":
            y = torch.mm(x, weight.t(), out_dtype=torch.float32)
        else:
            y = x.to(torch.float32) @ weight.t().to(torch.float32)
    out = torch.empty((x.shape[0], w.n), dtype=e.out_dtype, device=x.device)
    with _guard(x):
        finish(y, scale, out, w.n, 1, e)
    return out


def dequantized_conv2d(x: torch.Tensor, w: Operand, window: Window, e: Epilogue) -> torch.Tensor:
    """``fastq.int_conv2d`` of floating point ``x`` by torch's convolution, whose output is of the dtype of ``x``."""
    weight, scale = dequantized(w, x.dtype)
    weight = weight.view(w.n, *window.kernel, window.channels).permute(0, 3, 1, 2)
    left, right, top, bottom = window.padding
    padding = (top, left)
    if (left, top) != (right, bottom):
        x, padding = F.pad(x, window.padding), (0, 0)
    with torch.autocast(x.device.type, enabled=False):
        y = F.conv2d(x, weight, None, window.stride, padding, window.dilation, window.groups)
    y = y.permute(0, 2, 3, 1).contiguous()
    out = torch.empty(y.shape, dtype=e.out_dtype, device=x.device)
    if e.residual is not None:
        e = e._replace(residual=e.residual.permute(0, 2, 3, 1))
    with _guard(x):
        finish(y, scale, out, w.n, 1, e)
    return out.permute(0, 3, 1, 2)


def refuses(problem: Problem) -> str | None:
    """Why the kernels of this file cannot serve, or None."""
    if problem.integer:
        return f"it is for floating point inputs, and x is of {problem.activation}"
    if problem.device == "cuda" and problem.architecture < 80:
        return f"it needs a GPU of architecture 80 or later, and this one has {problem.architecture}"
    if max(problem.m, problem.k) >= 2**31 or problem.n > 2**20:
        return f"M and K must be less than 2**31 and N at most 2**20, got {problem.m}, {problem.k} and {problem.n}"
    return None
