"""Products of integer codes in Triton: W8A8, W4A8 (and W3A8, whose fields take 4 bits there) and W2A8.

``codes_kernel`` makes of the inputs what tensor cores take, int8 with rows that begin at multiples of 16 bytes, and the sums
``R`` of their rows, where either is needed. Then one of

``rows_left_kernel``
    ``x W^T`` of 8-bit weights for many rows: both operands go from memory to the tensor cores untouched, but that uint8 inputs
    are made int8 in registers.
``weights_left_kernel``
    ``(W x^T)^T``: packed weights are the left operand, which tensor cores take from registers, where they are unpacked: a byte
    of a tile of the layout ``tiles`` is moved so that one field is its highest bits, and masked. That is the field times ``2**(8 -
    bits)``; the accumulator, shifted back, is exact. Few rows are then the narrow side of the product.

with persistent programs that walk the tiles of the output. With the weight's zeros ``t``, the input's zero-point ``zx`` and the
weight's sums ``C``, ``acc = D - t * R[m] - zx * C[n]``, in int32 that may wrap on the way. With few rows programs share K:
each writes its sums ``D`` (of groups: its part of ``y`` in float32) to a workspace, which ``reduce_kernel`` adds in order.

Scales of groups are applied group by group, in their order, each to its exact int32 sum. Where groups are whole tiles, a tile is
read once and all its fields are multiplied; else one by one the pieces of 64 elements that a group touches, masked where groups
share one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fastq.dispatch import triton_interpreted
from fastq.engine import Epilogue, Operand, Problem, configurations
from fastq.engine.configurations import Configuration, architecture_of
from fastq.packing import TILE, field_bits

from .elementwise import _guard
from .epilogue import arguments, dequantized, one_or_each, write
from .numeric import bound
from .packed import tiles_of

i32, fp32 = tl.constexpr("i32"), tl.constexpr("fp32")

#: Elements of a piece: what one field of the bytes of a tile comes to.
PIECE = tl.constexpr(TILE)
#: Elements of K for which an accumulator of fields times 2**(8 - bits) cannot leave int32 (2**31 / (128 * 128), less a tile of four
#: pieces). sm_80's instruction would saturate it; the sums of 8-bit fields fit by ``check_overflow``.
LONGEST = 2**17 - 4 * TILE
#: Neighbouring tiles are walked in squares of so many rows of tiles, for the cache.
SQUARE = tl.constexpr(8)

#: Rows and columns of the output that a program of ``reduce_kernel`` has.
REDUCE = (4, 128)

_UNPACK_4 = tl.constexpr("shl.b32 $0, $1, $2; and.b32 $0, $0, 0xf0f0f0f0;")
_UNPACK_2 = tl.constexpr("shl.b32 $0, $1, $2; and.b32 $0, $0, 0xc0c0c0c0;")


@triton.jit(do_not_specialize=["M", "groups", "size"])
def codes_kernel(
    x, codes, sums, M: i32, K: i32, stride: i32, groups: i32, size: i32,
    FLIP: tl.constexpr, COPY: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Of a group of ROWS rows: ``x`` (FLIP: uint8, less 128) as int8 in rows of ``stride``, and its sums."""
    program = tl.program_id(0).to(tl.int64)
    row, group = program // groups * ROWS + tl.arange(0, ROWS), (program % groups).to(tl.int32)
    start = group * size
    end = tl.minimum(start + size, K)
    there = (row < M)[:, None]
    total = tl.zeros((ROWS, BLOCK), tl.int32)
    for at in range(bound(start, INTERPRETED), bound(end, INTERPRETED), BLOCK):
        k = (at + tl.arange(0, BLOCK))[None, :]
        value = tl.load(x + (row[:, None] * K + k), mask=there & (k < end), other=128 if FLIP else 0)
        if FLIP:
            value = (value ^ 128).to(tl.int8, bitcast=True)
        if COPY:
            tl.store(codes + (row[:, None] * stride + k), value, mask=there & (k < end))
        total += value.to(tl.int32)
    if SUMS:
        tl.store(sums + (row * groups + group), tl.sum(total, axis=1), mask=row < M)


@triton.jit
def block(source, row, column, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr):
    """A block of a matrix, zeros beyond its ``columns``; beyond its rows there is anything."""
    if TMA:
        return source.load([row, column])
    else:
        i = tl.minimum(row + tl.arange(0, ROWS), rows - 1).to(tl.int64)
        j = column + tl.arange(0, COLUMNS)
        return tl.load(source + (i[:, None] * stride + j[None, :]), mask=(j < columns)[None, :], other=0)


@triton.jit
def tile_of(tile, across, down):
    """Which row and column of tiles: squares of SQUARE rows, column by column."""
    whole = SQUARE * across
    first = tile // whole * SQUARE
    height = tl.minimum(down - first, SQUARE)
    return first + tile % whole % height, tile % whole // height


@triton.jit
def field(packed, shift, BITS: tl.constexpr, INTERPRETED: tl.constexpr):
    """The field ``8 - BITS - shift`` bits up in each byte, times ``2**(8 - BITS)``, as int8."""
    if BITS == 8:
        return packed
    elif INTERPRETED:
        return ((packed.to(tl.int32) << shift) & (256 - (1 << (8 - BITS)))).to(tl.uint8).to(tl.int8, bitcast=True)
    else:
        # one shift and one mask for four bytes: bits that cross to the next byte fall to the mask
        asm: tl.constexpr = _UNPACK_4 if BITS == 4 else _UNPACK_2
        return tl.inline_asm_elementwise(asm, "=r,r,r,r,r,r", [packed, shift], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def corrected(acc, t, r, zero_point, c):
    """``acc - t * r - zero_point * c``; ``t`` None: no such term."""
    if t is not None:
        acc -= t * r
    return acc - zero_point * c


@triton.jit(do_not_specialize=["M", "x_zero_point"])
def rows_left_kernel(
    x, w, out, scale, zero, weight_sums, row_sums, x_scale, x_zero_point: i32,
    bias, multiplier, addend, residual, out_scale, low: fp32, high: fp32, code_zero: fp32,
    M: i32, N: i32, K: i32, x_stride: i32, w_stride: i32,
    EACH: tl.constexpr, EACH_ROW: tl.constexpr, RAW: tl.constexpr, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, TMA: tl.constexpr,
    FLATTEN: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """FLIP: ``x`` is uint8, taken less 128. Beyond K that is -128, times the zeros that end a row of the weight."""
    down, across = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    start, tiles = bound(tl.program_id(0), INTERPRETED), bound(down * across, INTERPRETED)
    for tile in tl.range(start, tiles, bound(tl.num_programs(0), INTERPRETED), flatten=FLATTEN):
        row, column = tile_of(tile, across, down)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for k in range(0, bound(K, INTERPRETED), BLOCK_K):
            left = block(x, row * BLOCK_M, k, M, K, x_stride, BLOCK_M, BLOCK_K, TMA)
            right = block(w, column * BLOCK_N, k, N, w_stride, w_stride, BLOCK_N, BLOCK_K, TMA)
            if FLIP:
                left = left ^ -128
            acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
        m = (row * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
        parts = split_columns(acc, PARTS)
        for i in tl.static_range(PARTS):
            n = (column * BLOCK_N + i * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS))[None, :]
            leave(
                parts[i], out, m, n, M, N, scale, zero, weight_sums, row_sums, x_scale, x_zero_point, bias, multiplier, addend,
                residual, out_scale, low, high, code_zero, EACH, EACH_ROW, RAW, ACTIVATION, INTERPRETED,
            )  # fmt: skip


@triton.jit
def split_columns(acc, PARTS: tl.constexpr):
    """``PARTS`` (a power of two) blocks of neighbouring columns."""
    if PARTS == 1:
        return (acc,)
    else:
        halves = acc.reshape(acc.shape[0], 2, acc.shape[1] // 2).permute(0, 2, 1).split()
        return split_columns(halves[0], PARTS // 2) + split_columns(halves[1], PARTS // 2)


@triton.jit
def leave(
    acc, out, m, n, M, N, scale, zero, weight_sums, row_sums, x_scale, x_zero_point, bias, multiplier, addend, residual, out_scale,
    low, high, code_zero, EACH: tl.constexpr, EACH_ROW: tl.constexpr, RAW: tl.constexpr, ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """From ``D`` to the output; RAW: the accumulators. ``m`` and ``n`` broadcast against ``acc``, either way round."""
    t, r = None, None
    if zero is not None:
        t = one_or_each(zero, n, n < N, EACH)
        r = tl.load(row_sums + m, mask=m < M, other=0)
    acc = corrected(acc, t, r, x_zero_point, tl.load(weight_sums + n, mask=n < N, other=0))
    if RAW:
        tl.store(out + (m.to(tl.int64) * N + n), acc, mask=(m < M) & (n < N))
    else:
        factor = x_scale
        if x_scale is not None:
            factor = one_or_each(x_scale, m, m < M, EACH_ROW)
        y = dequantized(acc, one_or_each(scale, n, n < N, EACH), factor)
        write(
            y, out, m, n, m < M, n < N, N, bias, multiplier, addend, residual, out_scale, low, high, code_zero, ACTIVATION,
            INTERPRETED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "x_zero_point", "size", "share"])
def weights_left_kernel(
    x, w, out, scale, zero, weight_sums, row_sums, x_scale, x_zero_point: i32,
    bias, multiplier, addend, residual, out_scale, low: fp32, high: fp32, code_zero: fp32,
    M: i32, N: i32, K: i32, x_stride: i32, w_stride: i32, size: i32, share: i32,
    EACH: tl.constexpr, EACH_ROW: tl.constexpr, RAW: tl.constexpr, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
    BITS: tl.constexpr, GROUPS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr, TMA: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """GROUPS: 0, none; 1, of whole tiles; 2, of whole pieces; 3, any. ``size``: of a group, or K. SPLIT: program ``(_, s)`` has the
    ``share`` groups from ``s * share`` on, without groups so many tiles, and ``out`` is the workspace ``(shares, M, N)``."""
    FIELDS: tl.constexpr = 8 // BITS
    down, across = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    groups = tl.cdiv(K, size)
    part = tl.program_id(1)
    start, tiles = bound(tl.program_id(0), INTERPRETED), bound(down * across, INTERPRETED)
    for tile in tl.range(start, tiles, bound(tl.num_programs(0), INTERPRETED), flatten=FLATTEN):
        row, column = tile_of(tile, across, down)
        m = (row * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]
        n = (column * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
        if GROUPS == 0:
            acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
            first, last = 0, tl.cdiv(K, PIECE * FIELDS)
            if SPLIT:
                first = part * share
                last = tl.minimum(first + share, last)
            for i in range(bound(first, INTERPRETED), bound(last, INTERPRETED)):
                packed = block(w, column * BLOCK_N, i * PIECE, N, w_stride, w_stride, BLOCK_N, PIECE, TMA)
                for j in tl.static_range(FIELDS):
                    right = block(x, row * BLOCK_M, (i * FIELDS + j) * PIECE, M, K, x_stride, BLOCK_M, PIECE, TMA)
                    left = field(packed, 8 - BITS - j * BITS, BITS, INTERPRETED)
                    acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
            acc = acc >> (8 - BITS)
            if SPLIT:
                tl.store(out + ((part.to(tl.int64) * M + m) * N + n), acc, mask=(m < M) & (n < N))
            else:
                parts = split_columns(acc, PARTS)
                for i in tl.static_range(PARTS):
                    mi = (row * BLOCK_M + i * (BLOCK_M // PARTS) + tl.arange(0, BLOCK_M // PARTS))[None, :]
                    leave(
                        parts[i], out, mi, n, M, N, scale, zero, weight_sums, row_sums, x_scale, x_zero_point, bias, multiplier,
                        addend, residual, out_scale, low, high, code_zero, EACH, EACH_ROW, RAW, ACTIVATION, INTERPRETED,
                    )  # fmt: skip
        else:
            y = tl.full((BLOCK_N, BLOCK_M), -0.0, tl.float32)  # what nothing changes that it is added to
            first, last = 0, groups
            if SPLIT:
                first = part * share
                last = tl.minimum(first + share, groups)
            factor = x_scale
            if x_scale is not None:
                factor = one_or_each(x_scale, m, m < M, EACH_ROW)
            for g in range(bound(first, INTERPRETED), bound(last, INTERPRETED)):
                start = g * size
                end = tl.minimum(start + size, K)
                acc = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
                if GROUPS == 1:
                    for i in range(bound(start // (PIECE * FIELDS), INTERPRETED), bound(tl.cdiv(end, PIECE * FIELDS), INTERPRETED)):
                        packed = block(w, column * BLOCK_N, i * PIECE, N, w_stride, w_stride, BLOCK_N, PIECE, TMA)
                        for j in tl.static_range(FIELDS):
                            right = block(x, row * BLOCK_M, (i * FIELDS + j) * PIECE, M, K, x_stride, BLOCK_M, PIECE, TMA)
                            left = field(packed, 8 - BITS - j * BITS, BITS, INTERPRETED)
                            acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
                else:
                    for i in range(bound(start // PIECE, INTERPRETED), bound(tl.cdiv(end, PIECE), INTERPRETED)):
                        packed = block(w, column * BLOCK_N, i // FIELDS * PIECE, N, w_stride, w_stride, BLOCK_N, PIECE, TMA)
                        right = block(x, row * BLOCK_M, i * PIECE, M, K, x_stride, BLOCK_M, PIECE, TMA)
                        left = field(packed, 8 - BITS - i % FIELDS * BITS, BITS, INTERPRETED)
                        if GROUPS == 3:
                            k = (tl.arange(0, PIECE) + i * PIECE)[None, :]
                            left = tl.where((k >= start) & (k < end), left, 0).to(tl.int8)
                        acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
                acc = acc >> (8 - BITS)
                at = n.to(tl.int64) * groups + g
                t, r = None, None
                if zero is not None:
                    t = tl.load(zero + at, mask=n < N, other=0)
                    r = tl.load(row_sums + (m.to(tl.int64) * groups + g), mask=m < M, other=0)
                acc = corrected(acc, t, r, x_zero_point, tl.load(weight_sums + at, mask=n < N, other=0))
                y += dequantized(acc, tl.load(scale + at, mask=n < N, other=0.0), factor)
            if SPLIT:
                tl.store(out + ((part.to(tl.int64) * M + m) * N + n), y, mask=(m < M) & (n < N))
            else:
                parts = split_columns(y, PARTS)
                for i in tl.static_range(PARTS):
                    mi = (row * BLOCK_M + i * (BLOCK_M // PARTS) + tl.arange(0, BLOCK_M // PARTS))[None, :]
                    write(
                        parts[i], out, mi, n, mi < M, n < N, N, bias, multiplier, addend, residual, out_scale, low, high, code_zero,
                        ACTIVATION, INTERPRETED,
                    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "x_zero_point", "shares"])
def reduce_kernel(
    partial, out, scale, zero, weight_sums, row_sums, x_scale, x_zero_point: i32,
    bias, multiplier, addend, residual, out_scale, low: fp32, high: fp32, code_zero: fp32,
    M: i32, N: i32, shares: i32,
    EACH: tl.constexpr, EACH_ROW: tl.constexpr, RAW: tl.constexpr, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The workspace ``(shares, M, N)``, added up from the first share on, and the epilogue."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    there = (m < M) & (n < N)
    at = m.to(tl.int64) * N + n
    step = tl.zeros((), tl.int64) + M
    total = tl.load(partial + at, mask=there, other=0)
    for _ in range(1, bound(shares, INTERPRETED)):
        at += step * N
        total += tl.load(partial + at, mask=there, other=0)
    if GROUPS:
        write(
            total, out, m, n, m < M, n < N, N, bias, multiplier, addend, residual, out_scale, low, high, code_zero, ACTIVATION,
            INTERPRETED,
        )  # fmt: skip
    else:
        leave(
            total, out, m, n, M, N, scale, zero, weight_sums, row_sums, x_scale, x_zero_point, bias, multiplier, addend, residual,
            out_scale, low, high, code_zero, EACH, EACH_ROW, RAW, ACTIVATION, INTERPRETED,
        )  # fmt: skip


def kind_of(w: Operand, few: bool) -> str:
    """Of ``fastq.engine.configurations.KINDS``."""
    return f"w{field_bits(w.bits, 'tiles')}a8{'_group' if w.group_size else ''}{'_few' if few else ''}"


def grouping(bits: int, group_size: int) -> int:
    """GROUPS of ``weights_left_kernel``; ``bits``: of a field."""
    if not group_size:
        return 0
    return 1 if group_size % (TILE * 8 // bits) == 0 else 2 if group_size % TILE == 0 else 3


def shares_of(w: Operand, tiles: int, programs: int) -> tuple[int, int]:
    """Among how many programs K is shared, and how many groups (without groups: tiles of the weight) each has.

    It depends on the shape and the configuration alone. A share has at least 4 tiles of the weight, and so few that its accumulator
    cannot overflow.
    """
    elements = TILE * 8 // field_bits(w.bits, "tiles")
    unit = w.group_size or elements
    units = triton.cdiv(w.k, unit)
    share = max(triton.cdiv(units, max(programs // tiles, 1)), triton.cdiv(4 * elements, unit))
    if not w.group_size and w.bits < 8:
        share = min(share, LONGEST // elements)
    return max(triton.cdiv(units, share), 1), share


@functools.lru_cache(maxsize=None)
def processors_of(device: torch.device) -> int:
    """How many programs can run beside one another; the interpreter runs one."""
    return 1 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).multi_processor_count)


def _aligned(t: torch.Tensor) -> bool:
    return t.data_ptr() % 16 == 0


def _int8(x: torch.Tensor, w: Operand, flip: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The codes as kernels read them, and the sums of their rows (of groups: ``(M, G)``) where the weight has zeros."""
    m, k = x.shape
    copy = flip or k % 16 != 0 or not _aligned(x)
    if not copy and w.zero is None:
        return x, None
    groups = w.groups if w.zero is not None else 1
    size = w.group_size if groups > 1 else max(k, 1)
    codes = torch.empty(m, triton.cdiv(k, 16) * 16, dtype=torch.int8, device=x.device) if copy else x
    sums = torch.empty(m, groups, dtype=torch.int32, device=x.device) if w.zero is not None else None
    width = min(max(triton.next_power_of_2(size), 16), 2048)
    codes_kernel[(triton.cdiv(m, 2048 // width) * groups,)](
        x, codes, sums, m, k, codes.shape[1], groups, size,
        FLIP=flip, COPY=copy, SUMS=sums is not None, ROWS=2048 // width, BLOCK=width, INTERPRETED=triton_interpreted(), num_warps=4,
    )  # fmt: skip
    return codes, sums


def _source(t: torch.Tensor, rows: int, columns: int, stride: int, sizes: tuple[int, int], tma: bool) -> Any:
    return TensorDescriptor(t, [rows, columns], [stride, 1], list(sizes)) if tma else t


def int_linear(few: bool, x: torch.Tensor, w: Operand, e: Epilogue, chosen: Configuration | None = None) -> torch.Tensor:
    """``fastq.engine.KERNELS``' ``triton``, with ``few`` ``triton_splitk``: the output ``(M, N)``. ``chosen``: not the table's."""
    (m, k), n = x.shape, w.n
    bits = field_bits(w.bits, "tiles")
    c = chosen or configurations.find(kind_of(w, few), architecture_of(x.device), m)
    data = tiles_of(w) if bits == 8 else tiles_of(w).view(torch.uint8)
    out = torch.empty(m, n, dtype=e.out_dtype, device=x.device)
    with _guard(x):
        rows_left, unsigned = bits == 8 and not w.group_size and not few, x.dtype == torch.uint8
        in_registers = rows_left and unsigned and w.zero is None and k % 16 == 0 and _aligned(x)
        codes, row_sums = (x.view(torch.int8), None) if in_registers else _int8(x, w, unsigned)
        block_k = c.block_k if rows_left else TILE
        tma = c.architecture >= 90 and k > 0 and _aligned(data)
        tiles = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n)
        shares, share = shares_of(w, tiles, c.programs) if few else (1, 1)
        programs = tiles if few or not c.programs else min(tiles, c.programs * processors_of(x.device))
        # of one row, the stride that a tensor names may be anything
        x_stride, w_stride = codes.shape[1], data.shape[1]
        finish = {
            "scale": w.scale, "zero": w.zero, "weight_sums": w.sums, "row_sums": row_sums, "x_scale": e.x_scale,
            "x_zero_point": e.x_zero_point - 128 * unsigned, "M": m, "N": n,
            "EACH": w.scale.numel() > 1, "EACH_ROW": e.x_scale is not None and e.x_scale.numel() > 1,
            "RAW": e.out_dtype == torch.int32, "enable_fp_fusion": False, **arguments(e),
        }  # fmt: skip
        walk = {
            "x": _source(codes, m, k, x_stride, (c.block_m, block_k), tma),
            "w": _source(data, n, w_stride, w_stride, (c.block_n, block_k), tma),
            "K": k, "x_stride": x_stride, "w_stride": w_stride, "TMA": tma, "BLOCK_M": c.block_m, "BLOCK_N": c.block_n,
            "PARTS": c.parts, "FLATTEN": c.flatten, "num_warps": c.warps, "num_stages": c.stages,
        }  # fmt: skip
        if rows_left:
            rows_left_kernel[(programs,)](out=out, BLOCK_K=block_k, FLIP=in_registers, **walk, **finish)
            return out
        groups = grouping(bits, w.group_size)
        space = out
        if shares > 1:
            space = torch.empty(shares, m, n, dtype=torch.float32 if groups else torch.int32, device=x.device)
        weights_left_kernel[(programs, shares)](
            out=space, size=w.group_size or max(k, 1), share=share, BITS=bits, GROUPS=groups,
            SPLIT=shares > 1, **walk, **finish,
        )  # fmt: skip
        if shares > 1:
            rows, columns = REDUCE
            reduce_kernel[(triton.cdiv(n, columns), triton.cdiv(m, rows))](
                partial=space, out=out, shares=shares, GROUPS=groups > 0, BLOCK_M=rows, BLOCK_N=columns, num_warps=4,
                **finish,
            )  # fmt: skip
    return out


def refuses(few: bool, p: Problem) -> str | None:
    """Why ``triton``, with ``few`` ``triton_splitk``, cannot serve ``p``, or None."""
    if not p.integer:
        return f"it multiplies integers, and x is of {p.activation}"
    if p.device == "cuda" and p.architecture < 80:
        return f"it needs the int8 tensor cores of sm_80, and this GPU is sm_{p.architecture}"
    if p.bits < 8 and min(p.k, p.group_size or p.k) > LONGEST and (p.group_size or not few):
        what = f"a group has {p.group_size} elements" if p.group_size else f"K is {p.k}"
        return f"{what}, and beyond {LONGEST} the accumulator of unpacked fields could overflow" + (
            "" if p.group_size else "; triton_splitk shares K"
        )
    if max(p.m, p.n, p.k) >= 2**31:
        return f"M, N and K must be less than 2**31, got {p.m}, {p.n}, {p.k}"
    return None
