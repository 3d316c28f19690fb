"""Convolutions of integer codes in Triton: an implicit GEMM over images with the channels last, and one for depthwise kernels.

    acc[m, n] = sum over k of (x[m, k] - zx) * (f[n, k] - t[n])        k = (u, v, c): row and column of the window, and channel

``m`` is a position of the output and ``x[m, k]`` the code of image b at row ``i * sh + u * dh - top``, column ``j * sw + v * dw -
left`` and channel c, or ``zx`` outside the image. A program reads the windows where they lie, and writes no copy of them.
With ``x`` as int8 (uint8 with the highest bit turned over, ``zx - 128``) its products are int8 ones:

    acc = D - t * R - zx * C        D = sum x * f,  R = sum x over the window,  C = sum f - t, which is stored with the weight

all modulo 2**32. Fields of less than 8 bits subtract t in registers instead, and D is of ``f - t``. D itself stays within int32
where the accumulator is known to (``fastq.ops.int_linear.check_overflow``): sm_80's instruction would saturate it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted
from fastq.engine import configurations
from fastq.engine.call import Epilogue, Operand, Problem, Window
from fastq.engine.configurations import Configuration, architecture_of
from fastq.packing import TILE, field_bits

from .elementwise import _guard
from .epilogue import arguments, dequantized, one_or_each, write
from .int_gemm import LONGEST, int_linear
from .numeric import loop_count
from .packed import field, tiles_of

#: Rows up to which programs of a plain product share K, as in the table of kernels.
FEW = 256
#: Tiles with fewer of which smaller ones are taken: the larger GPUs have so many SMs.
BUSY = 132

i64, fp32 = tl.constexpr("i64"), tl.constexpr("fp32")


@triton.jit
def position_of(m, image, width, step_h, step_w, top, left):
    """Of a position of the output: the image, and row and column where its window begins."""
    row = (m % image) // width
    column = m % width
    return m // image, row * step_h - top, column * step_w - left


@triton.jit
def write_sums(
    acc, out, m, row, m_there, n_there, n, scale, x_scale, bias, multiplier, addend, residual, out_scale, low, high, code_zero,
    EACH: tl.constexpr, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The sums as they are into int32, through the epilogue otherwise; ``m`` and ``row`` stand across each other."""
    if out.dtype.element_ty == tl.int32:
        tl.store(out + (m * n + row), acc, mask=m_there & n_there)
    else:
        w_scale = one_or_each(scale, row, n_there, EACH)
        y = dequantized(acc, w_scale, None if x_scale is None else tl.load(x_scale))
        write(
            y, out, m, row, m_there, n_there, n, bias, multiplier, addend, residual, out_scale, low, high, code_zero, ACTIVATION,
            INTERPRETED,
        )  # fmt: skip


@triton.jit
def conv_kernel(
    x, weight, scale, zero, sums, x_scale, out, rows: i64, n, of_group, k, row_bytes, channels, all_channels, height, width,
    out_image, out_width, kernel_w, step_h, step_w, top, left, apart_h, apart_w, x_zero, outside, steps,
    bias, multiplier, addend, residual, out_scale, low: fp32, high: fp32, code_zero: fp32,
    BITS: tl.constexpr, EACH: tl.constexpr, UNSIGNED: tl.constexpr, FILLED: tl.constexpr, INSIDE: tl.constexpr,
    UNIFORM: tl.constexpr, EVEN: tl.constexpr, ALIGNED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BYTES: tl.constexpr,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """``outside``: the code of ``x`` beyond the image, as int8; FILLED: it is not 0. INSIDE: no window leaves the image.
    UNIFORM: the BYTES elements of a part are channels of one place in the window; ALIGNED: that many are, and lie so in memory.
    """
    PARTS: tl.constexpr = 8 // BITS
    pid = tl.program_id(0).to(tl.int64)
    tiles_n = tl.cdiv(of_group, BN)
    tiles = tl.cdiv(rows, BM) * tiles_n
    group = (pid // tiles).to(tl.int32)
    pid = pid % tiles
    m = (pid // tiles_n) * BM + tl.arange(0, BM)
    local = (pid % tiles_n).to(tl.int32) * BN + tl.arange(0, BN)
    m_there, n_there = m < rows, local < of_group
    row = group * of_group + local
    image, first_row, first_column = position_of(m, out_image, out_width, step_h, step_w, top, left)
    first_row, first_column = first_row.to(tl.int32), first_column.to(tl.int32)
    x_rows = x + ((image * height + first_row) * width + first_column)[:, None] * all_channels + group * channels
    w_rows = weight + row.to(tl.int64)[:, None] * row_bytes
    byte = tl.arange(0, BYTES)
    if zero is not None:
        t = one_or_each(zero, row, n_there, EACH) + tl.zeros((BN,), tl.int32)

    acc = tl.zeros((BN, BM), tl.int32)
    total = tl.zeros((BM,), tl.int32)
    for step in tl.range(steps):
        start = step * BYTES
        base = tl.multiple_of((start // 64) * (64 * PARTS) + start % 64, BYTES)
        w_there = n_there[:, None] if EVEN else n_there[:, None] & (start + byte < row_bytes)[None, :]
        stored = tl.load(w_rows + (start + byte)[None, :], mask=w_there, other=0)
        for p in tl.static_range(PARTS):
            element = base + 64 * p + byte
            if UNIFORM:
                place = (base + 64 * p) // channels
                channel = tl.multiple_of((base + 64 * p) % channels, BYTES) + byte
            else:
                place = element // channels
                channel = element % channels
            u, v = (place // kernel_w) * apart_h, (place % kernel_w) * apart_w
            offset = (u * width + v) * all_channels + channel
            if not UNIFORM and ALIGNED > 1:
                offset = tl.max_contiguous(tl.multiple_of(offset, ALIGNED), ALIGNED)
            if INSIDE:
                there = m_there[:, None]
            elif UNIFORM:
                at_h, at_w = first_row + u, first_column + v
                there = (m_there & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width))[:, None]
            else:
                at_h, at_w = first_row[:, None] + u[None, :], first_column[:, None] + v[None, :]
                there = m_there[:, None] & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
            inside = there if EVEN else there & (element < k)[None, :]
            if UNIFORM:
                right = tl.load(x_rows + offset[None, :], mask=inside, other=0)
            else:
                right = tl.load(x_rows + offset.to(tl.int64)[None, :], mask=inside, other=0)
            if FILLED:
                right = tl.where(there, right, tl.full((), outside, tl.int8))
            if UNSIGNED:
                right = right ^ -128
            left_fields = field(stored, p, BITS)
            if zero is not None:
                if BITS == 8:
                    counted = right.to(tl.int32) if EVEN else tl.where((element < k)[None, :], right.to(tl.int32), 0)
                    total += tl.sum(counted, axis=1)
                else:
                    left_fields = (left_fields - t[:, None]).to(tl.int8)
                    if not EVEN:
                        left_fields = tl.where((element < k)[None, :], left_fields, 0)
            acc = tl.dot(left_fields, tl.trans(right), acc, out_dtype=tl.int32)

    if zero is not None and BITS == 8:
        acc -= t[:, None] * total[None, :]
    acc -= (tl.load(sums + row, mask=n_there, other=0) * x_zero)[:, None]
    write_sums(
        acc, out, m[None, :], row[:, None], m_there[None, :], n_there[:, None], n, scale, x_scale, bias, multiplier, addend,
        residual, out_scale, low, high, code_zero, EACH, ACTIVATION, INTERPRETED,
    )  # fmt: skip


@triton.jit
def depthwise_kernel(
    x, weight, scale, zero, x_scale, out, rows: i64, n, of_group, row_bytes, all_channels, height, width,
    out_image, out_width, kernel_w, step_h, step_w, top, left, apart_h, apart_w, x_zero, taps,
    bias, multiplier, addend, residual, out_scale, low: fp32, high: fp32, code_zero: fp32,
    BITS: tl.constexpr, EACH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A channel of the input for each group: no matrix product, one multiplication for a place in the window."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    m_there, n_there = m < rows, row < n
    image, first_row, first_column = position_of(m, out_image, out_width, step_h, step_w, top, left)
    x_rows = x + ((image * height + first_row) * width + first_column)[:, None] * all_channels + (row // of_group)[None, :]
    w_rows = weight + row.to(tl.int64) * row_bytes
    t = tl.zeros((BN,), tl.int32)
    if zero is not None:
        t += one_or_each(zero, row, n_there, EACH)
    acc = tl.zeros((BM, BN), tl.int32)
    for tap in tl.range(taps):
        u, v = (tap // kernel_w) * apart_h, (tap % kernel_w) * apart_w
        at_h, at_w = first_row + u, first_column + v
        there = (m_there & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width))[:, None] & n_there[None, :]
        code = tl.load(x_rows + (u * width + v) * all_channels, mask=there, other=0).to(tl.int32)
        part = (tap // 64) % (8 // BITS)
        stored = tl.load(w_rows + (tap // (64 * (8 // BITS))) * 64 + tap % 64, mask=n_there, other=0).to(tl.int32)
        f = (stored << (32 - BITS - part * BITS)) >> (32 - BITS)
        acc += tl.where(there, code - x_zero, 0) * (f - t)[None, :]
    write_sums(
        acc, out, m[:, None], row[None, :], m_there[:, None], n_there[None, :], n, scale, x_scale, bias, multiplier, addend,
        residual, out_scale, low, high, code_zero, EACH, ACTIVATION, INTERPRETED,
    )  # fmt: skip


def conv2d(x: torch.Tensor, w: Operand, window: Window, e: Epilogue, chosen: Configuration | None = None) -> torch.Tensor:
    """``fastq.int_conv2d`` of codes ``x`` ``(B, C, H, W)``, channels last. ``chosen``: not the table's, of a matrix product."""
    images, all_channels, height, width = x.shape
    oh, ow = window.size(height, width)
    plain = window.kernel == (1, 1) and window.stride == (1, 1) and not any(window.padding) and window.groups == 1
    if plain and (w.bits == 8 or w.k <= LONGEST):
        residual = None if e.residual is None else e.residual.permute(0, 2, 3, 1).reshape(-1, w.n)
        rows = x.permute(0, 2, 3, 1).reshape(-1, w.k)
        flat = int_linear(len(rows) <= FEW, rows, w, e._replace(residual=residual))
        return flat.view(images, oh, ow, w.n).permute(0, 3, 1, 2)
    if height * width * all_channels >= 2**31:
        raise ValueError(f"int_conv2d: an image must have less than 2**31 elements for Triton, got {tuple(x.shape)}")
    rows = images * oh * ow
    out = torch.empty((images, oh, ow, w.n), dtype=e.out_dtype, device=x.device)
    if e.residual is not None:
        e = e._replace(residual=e.residual.permute(0, 2, 3, 1))
    bits, of_group, data = field_bits(w.bits, "tiles"), w.n // window.groups, tiles_of(w)
    left, _, top, _ = window.padding
    common: dict[str, Any] = {"BITS": bits, "EACH": w.scale.numel() > 1, "enable_fp_fusion": False, **arguments(e)}
    geometry = (oh * ow, ow, window.kernel[1], *window.stride, top, left, *window.dilation)
    row_bytes = data.shape[1]
    with _guard(x):
        if window.channels == 1:
            bm, bn = depthwise_tile(w.n)
            depthwise_kernel[(triton.cdiv(rows, bm), triton.cdiv(w.n, bn))](
                x, data, w.scale, w.zero, e.x_scale, out, rows, w.n, of_group, row_bytes, all_channels, height, width, *geometry,
                e.x_zero_point, loop_count(w.k), BM=bm, BN=bn, num_warps=4, **common,
            )  # fmt: skip
        else:
            unsigned = x.dtype == torch.uint8
            gathered = window.channels % 16 != 0
            c = chosen or configuration(rows, of_group, window.groups, bits, gathered, architecture_of(x.device))
            size = c.block_k
            conv_kernel[(window.groups * triton.cdiv(rows, c.block_m) * triton.cdiv(of_group, c.block_n),)](
                x.view(torch.int8), data, w.scale, w.zero, w.sums, e.x_scale, out, rows, w.n, of_group, w.k, row_bytes,
                window.channels, all_channels, height, width, *geometry, e.x_zero_point - 128 * unsigned,
                (e.x_zero_point + 128) % 256 - 128, loop_count(triton.cdiv(row_bytes, size)),
                UNSIGNED=unsigned, FILLED=e.x_zero_point != 0 and any(window.padding), INSIDE=not any(window.padding),
                UNIFORM=window.channels % size == 0, EVEN=w.k % (size * (8 // bits)) == 0,
                ALIGNED=math.gcd(window.channels, size), BM=c.block_m, BN=c.block_n, BYTES=size,
                num_warps=c.warps, num_stages=c.stages, **common,
            )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def configuration(rows: int, of_group: int, groups: int, bits: int, gathered: bool, architecture: int) -> Configuration:
    """The table's, and of one size in the interpreter. ``gathered``: codes one by one."""
    programs = triton.cdiv(rows, 128) * triton.cdiv(of_group, 128) * groups
    narrow = "_narrow" if of_group <= 64 or programs < BUSY else ""
    kind = "conv_gathered" if gathered else f"w{bits}a8_conv{narrow}"
    if triton_interpreted():
        return Configuration(kind, 0, 0, 64, 16, TILE, 4, 1, 1, 0, False)
    return configurations.find(kind, architecture, rows)


def depthwise_tile(n: int) -> tuple[int, int]:
    """Rows and columns, 1024 elements: 8 for a thread."""
    if triton_interpreted():
        return 64, 16
    bn = min(max(triton.next_power_of_2(n), 16), 128)
    return 1024 // bn, bn


def refuses(problem: Problem) -> str | None:
    """Why this kernel cannot serve, or None."""
    if not problem.integer:
        return f"it is for codes, and x is of {problem.activation}"
    if problem.device == "cuda" and problem.architecture < 80:
        return f"it needs the int8 tensor cores of architecture 80, and this GPU has {problem.architecture}"
    return None
