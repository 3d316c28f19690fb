"""The loops of every elementwise quantizer in Triton: one kernel forward, one backward, one that finishes the sums.

``x`` is read as ``[outer, channels, inner]`` in memory order; element ``i`` uses parameter ``(i // inner) % channels``.
A program works on a tile of about 4096 elements:

* rows: at most 512 ``ROWS``, runs of one parameter each, ``BLOCK`` elements of every run (long ones are cut into chunks of 4096);
* columns, where runs are shorter than 32: ``ROWS`` rows of ``channels * inner`` elements, ``BLOCK`` columns.

The backward pass writes one partial sum per tile and run (or column), and a second kernel adds them in fp64. The tiles and the
order of the second kernel depend on the shape alone, never on the number of SMs. Within a tile the order is the one that Triton's
compiler lays out, which may differ between architectures and with the alignment of the storage: the same bits on every run of
the same tensors. The C++ and CUDA kernels promise more.

A method is a :class:`Method` of jit functions. ``parameters`` and ``p`` are tuples of tensors that broadcast against ``x``,
``r`` is ``(qmin, qmax, lower, upper, eps)`` and four constants of the method's own; the gradient passes where
``lower < v < upper``:

    prepare(parameters, r) -> p                 what the loops need of the parameters
    forward(x, p, r) -> y                       with sums: (y, terms), the terms in fp64
    backward(x, g, p, r) -> (dx, terms)         one term for each gradient, in the order of the parameters
    finish(index, total, parameters) -> gradient

A method has at most four gradients. One with words takes something for each element after ``x`` or ``g``: its noise, made of a
seed and its logical index (``philox``), or 32 bits read beside ``x`` (uint32). Four neighbours share the words of a counter where
tiles begin at a multiple of four (``Geometry.quads``); elsewhere each element makes its own. One with a state
takes two, and gives ``(y, first, second)``, which go over ``x`` and the state's two planes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted
from fastq.granularity import compute_dtype
from fastq.ranges import mask_bounds

from .numeric import narrow, widen
from .philox import noise, noise_of_quads

# The types of kernel arguments, by name; Triton would make a float an fp32 and a small int an i32.
fp64, fp32, i64 = tl.constexpr("fp64"), tl.constexpr("fp32"), tl.constexpr("i64")

TILE = 4096
MOST_ROWS = 512  # each with parameters of its own: with 4096, a thread has those of 16 rows in 255 registers
SHORT = 32  # runs shorter than this are walked as columns
ROW_BLOCK = 64  # rows of one partial sum down a column; with 128, sm_80 spills a register
#: 256 threads of 16 elements: four 16-byte loads of x in flight per thread, the same again of the gradient.
WARPS = 8


@dataclass(frozen=True)
class Method:
    """A quantizer: how many parameter tensors and gradients it has, and its formula as jit functions."""

    name: str
    parameters: int
    gradients: int
    prepare: Any
    forward: Any
    backward: Any
    finish: Any
    word: str = "none"  # "noise", "memory", "state"
    sums: int = 0  # of the forward pass
    output: bool = True  # False: the forward pass is made for its sums, and y is not written
    scaled: bool = False  # y is rounded as it is stored, then multiplied by the last value of `prepare`
    warps: int = WARPS

    @property
    def words(self) -> int:
        """As the kernels number them."""
        return ("none", "noise", "memory", "state").index(self.word)


@dataclass(frozen=True)
class Geometry:
    """``[outer, channels, inner]`` and how it is cut into tiles. It depends on the shape alone."""

    outer: int
    channels: int
    inner: int

    @property
    def columns(self) -> bool:
        return self.inner < SHORT and self.outer > 1

    @property
    def block(self) -> int:
        if self.columns:
            return min(triton.next_power_of_2(self.channels * self.inner), SHORT)
        return min(triton.next_power_of_2(self.inner), TILE)

    @property
    def rows(self) -> int:
        return ROW_BLOCK if self.columns else min(TILE // self.block, MOST_ROWS)

    @property
    def chunks(self) -> int:
        return 1 if self.columns else triton.cdiv(self.inner, TILE)

    @property
    def programs(self) -> int:
        if self.columns:
            return triton.cdiv(self.outer, ROW_BLOCK) * triton.cdiv(self.channels * self.inner, self.block)
        return triton.cdiv(self.outer * self.channels, self.rows) * self.chunks

    @property
    def quads(self) -> bool:
        """Every run of a tile begins at a multiple of four elements."""
        step = self.channels * self.inner if self.columns else self.inner if self.outer * self.channels > 1 else 0
        return self.block % 4 == 0 and step % 4 == 0

    @property
    def partials(self) -> int:
        if self.columns:
            return triton.cdiv(self.outer, ROW_BLOCK) * self.channels * self.inner
        return self.outer * self.channels * self.chunks

    def sums(self, shared: bool = False) -> tuple[int, int, int, int]:
        """Partial ``j`` of channel ``c`` is at ``(j // a) * s + c * a + j % a``; ``(count, a, s)`` and the elements per program.
        A ``shared`` parameter has all of them."""
        if shared:
            return self.partials, 1, 1, min(triton.next_power_of_2(self.partials), 1024)
        if self.columns:
            a, count = self.inner, triton.cdiv(self.outer, ROW_BLOCK) * self.inner
        else:
            a, count = self.chunks, self.outer * self.chunks
        return count, a, self.channels * a, min(triton.next_power_of_2(count), 1024)


@triton.jit
def _tile(outer, channels, inner, chunks, ROWS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets and mask of the tile; the channel of its elements and where its sums go, with their masks. All in 64 bits."""
    pid = tl.program_id(0).to(tl.int64)
    if COLUMNS:
        width = channels * inner
        blocks = tl.cdiv(width, BLOCK)
        row = (pid // blocks) * ROWS + tl.arange(0, ROWS)
        column = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
        offsets = row[:, None] * width + column[None, :]
        mask = (row < outer)[:, None] & (column < width)[None, :]
        return offsets, mask, column // inner, (pid // blocks) * width + column, column < width
    else:
        rows = outer * channels
        row = (pid // chunks) * ROWS + tl.arange(0, ROWS)
        column = (pid % chunks) * BLOCK + tl.arange(0, BLOCK)
        offsets = row[:, None] * inner + column[None, :]
        mask = (row < rows)[:, None] & (column < inner)[None, :]
        return offsets, mask, row % channels, row * chunks + pid % chunks, row < rows


@triton.jit
def _range(qmin, qmax, lower, upper, eps, a, b, c, d, F: tl.constexpr):
    return (
        tl.full((), qmin, F),
        tl.full((), qmax, F),
        tl.full((), lower, F),
        tl.full((), upper, F),
        tl.full((), eps, F),
        tl.full((), a, F),
        tl.full((), b, F),
        tl.full((), c, F),
        tl.full((), d, F),
    )


@triton.jit
def _words(
    words, offsets, mask, scale, outer, channels, inner, chunks, WORDS: tl.constexpr, NOISE: tl.constexpr, QUADS: tl.constexpr,
    F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What each element brings: the noise of its offset, which is its logical index, or the bits that are read."""
    if WORDS != 1:
        return tl.load(words + offsets, mask=mask, other=0).to(tl.uint32, bitcast=True)
    elif QUADS:
        pid = tl.program_id(0).to(tl.int64)
        if COLUMNS:
            step = channels * inner
            blocks = tl.cdiv(step, BLOCK)
        else:
            step = inner.to(tl.int64)
            blocks = chunks
        counters = ((pid // blocks) * ROWS + tl.arange(0, ROWS))[:, None] * step
        counters = (counters + (pid % blocks) * BLOCK) // 4 + tl.arange(0, BLOCK // 4)[None, :]
        return noise_of_quads(counters, tl.load(words), scale, NOISE, ROWS, BLOCK).to(F)
    else:
        return noise(offsets, tl.load(words), scale, NOISE).to(F)


@triton.jit
def _parameters(pointers, channel, mask, COLUMNS: tl.constexpr, SHARED: tl.constexpr):
    """The parameters of a tile, shaped to broadcast against it. Bit i of SHARED: parameter i has one element."""
    values = ()
    for i in tl.static_range(len(pointers)):
        value = tl.load(pointers[i] + (channel * 0 if (SHARED >> i) & 1 else channel), mask=mask, other=1.0)
        values = values + (tl.expand_dims(value, 0 if COLUMNS else 1),)
    return values


@triton.jit
def forward_kernel(
    x, y, words, second, parameters, partial, partials: i64,
    qmin: fp64, qmax: fp64, lower: fp64, upper: fp64, eps: fp64, a: fp64, b: fp64, c: fp64, d: fp64,
    outer: i64, channels: i64, inner, chunks, noise_scale: fp32,
    PREPARE: tl.constexpr, FORWARD: tl.constexpr, SUMS: tl.constexpr, OUTPUT: tl.constexpr, SCALED: tl.constexpr,
    WORDS: tl.constexpr, NOISE: tl.constexpr, QUADS: tl.constexpr, SHARED: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    r = _range(qmin, qmax, lower, upper, eps, a, b, c, d, F)
    offsets, mask, channel, slot, slot_mask = _tile(outer, channels, inner, chunks, ROWS, BLOCK, COLUMNS)
    p = PREPARE(_parameters(parameters, channel, slot_mask, COLUMNS, SHARED), r)
    value = widen(tl.load(x + offsets, mask=mask, other=0.0), F, BY_BITS)
    if WORDS == 0:
        result = FORWARD(value, p, r)
    elif WORDS == 3:
        first = tl.load(words + offsets, mask=mask, other=0).to(tl.uint32, bitcast=True)
        result = FORWARD(value, first, tl.load(second + offsets, mask=mask, other=0).to(tl.uint32, bitcast=True), p, r)
        tl.store(words + offsets, result[1].to(tl.int32, bitcast=True), mask=mask)
        tl.store(second + offsets, result[2].to(tl.int32, bitcast=True), mask=mask)
    else:
        word = _words(
            words, offsets, mask, noise_scale, outer, channels, inner, chunks, WORDS, NOISE, QUADS, F, ROWS, BLOCK, COLUMNS
        )
        result = FORWARD(value, word, p, r)
    if OUTPUT:
        out = result if SUMS == 0 and WORDS != 3 else result[0]
        if SCALED:
            out = widen(narrow(out, y.dtype.element_ty, BY_BITS), F, BY_BITS) * p[len(p) - 1]
        tl.store(y + offsets, narrow(out, y.dtype.element_ty, BY_BITS), mask=mask)
    if SUMS > 0:
        for i in tl.static_range(SUMS):
            total = tl.sum(tl.where(mask, result[1][i], 0.0), axis=0 if COLUMNS else 1)
            tl.store(partial + i * partials + slot, total, mask=slot_mask)


@triton.jit
def backward_kernel(
    x, g, dx, words, parameters, partial, partials: i64,
    qmin: fp64, qmax: fp64, lower: fp64, upper: fp64, eps: fp64, a: fp64, b: fp64, c: fp64, d: fp64,
    outer: i64, channels: i64, inner, chunks, noise_scale: fp32,
    PREPARE: tl.constexpr, BACKWARD: tl.constexpr, WORDS: tl.constexpr, SHARED: tl.constexpr,
    NOISE: tl.constexpr, QUADS: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    BY_BITS: tl.constexpr,
):  # fmt: skip
    r = _range(qmin, qmax, lower, upper, eps, a, b, c, d, F)
    offsets, mask, channel, slot, slot_mask = _tile(outer, channels, inner, chunks, ROWS, BLOCK, COLUMNS)
    p = PREPARE(_parameters(parameters, channel, slot_mask, COLUMNS, SHARED), r)
    gradient = widen(tl.load(g + offsets, mask=mask, other=0.0), F, BY_BITS)
    value = widen(tl.load(x + offsets, mask=mask, other=0.0), F, BY_BITS)
    if WORDS == 0:
        out, terms = BACKWARD(value, gradient, p, r)
    else:
        word = _words(
            words, offsets, mask, noise_scale, outer, channels, inner, chunks, WORDS, NOISE, QUADS, F, ROWS, BLOCK, COLUMNS
        )
        out, terms = BACKWARD(value, gradient, word, p, r)
    tl.store(dx + offsets, narrow(out, dx.dtype.element_ty, BY_BITS), mask=mask)
    for i in tl.static_range(len(terms)):
        total = tl.sum(tl.where(mask, terms[i], 0.0), axis=0 if COLUMNS else 1)
        tl.store(partial + i * partials + slot, total, mask=slot_mask)


@triton.jit
def _add_up(partial, channel, there, count, a, s, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """In fp64: partial ``j`` of channel ``c`` is at ``(j // a) * s + c * a + j % a``."""
    total = tl.zeros((CHANNELS, BLOCK), tl.float64)
    start = tl.zeros((), tl.int64)
    while start < count:
        j = start + tl.arange(0, BLOCK).to(tl.int64)
        at = ((j // a) * s + j % a)[None, :] + (channel * a)[:, None]
        total += tl.load(partial + at, mask=there[:, None] & (j < count)[None, :], other=0.0).to(tl.float64)
        start += BLOCK
    return tl.sum(total, axis=1)


@triton.jit
def finish_kernel(
    partial, gradient, parameters, scale: fp64, channels: i64, count: i64, a, s,
    INDEX: tl.constexpr, FINISH: tl.constexpr, SHARED: tl.constexpr, F: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    total = _add_up(partial, channel, there, count, a, s, CHANNELS, BLOCK)
    values = ()
    for i in tl.static_range(len(parameters)):
        at = channel * 0 if (SHARED >> i) & 1 else channel
        values = values + (tl.load(parameters[i] + at, mask=there, other=1.0),)
    tl.store(gradient + channel, FINISH(INDEX, total.to(F) * tl.full((), scale, F), values), mask=there)


@triton.jit
def sums_kernel(
    partial, sums, partials: i64, channels: i64, count: i64, a, s, SUMS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    for i in tl.static_range(SUMS):
        tl.store(
            sums + i * channels + channel,
            _add_up(partial + i * partials, channel, there, count, a, s, CHANNELS, BLOCK),
            mask=there,
        )


# Layouts: memory is walked from end to end, so x must be dense in some order of its dimensions.


def _memory_order(t: torch.Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost, without those of size 1."""
    return sorted((d for d in range(t.dim()) if t.shape[d] != 1), key=lambda d: -t.stride(d))


def _is_dense(t: torch.Tensor) -> bool:
    expected = 1
    for d in reversed(_memory_order(t)):
        if t.stride(d) != expected:
            return False
        expected *= t.shape[d]
    return True


def _like(t: torch.Tensor, layout: torch.Tensor) -> torch.Tensor:
    """``t`` in the layout of ``layout``; copied only where it has another."""
    return t if _same_layout(t, layout) else torch.empty_like(layout, dtype=t.dtype).copy_(t)


def _same_layout(t: torch.Tensor, layout: torch.Tensor) -> bool:
    return all(t.stride(d) == layout.stride(d) for d in range(t.dim()) if t.shape[d] != 1)


def _dense(x: torch.Tensor, logical: bool) -> torch.Tensor:
    if logical:  # parameters of groups lie in the logical order of x, and noise follows it
        return x.contiguous()
    return x if _is_dense(x) else torch.empty_like(x).copy_(x)


def geometry(x: torch.Tensor, axis: int, group_size: int) -> Geometry:
    """How a dense ``x`` is read."""
    if group_size:
        return Geometry(1, x.numel() // group_size, group_size)
    if axis < 0:
        return Geometry(1, 1, x.numel())
    if x.shape[axis] == 1:
        return Geometry(1, 1, x.numel())
    order = _memory_order(x)
    at = order.index(axis)
    outer, inner = 1, 1
    for d in order[:at]:
        outer *= x.shape[d]
    for d in order[at + 1 :]:
        inner *= x.shape[d]
    return Geometry(outer, x.shape[axis], inner)


_ARITHMETIC = {torch.float32: tl.float32, torch.float64: tl.float64}


def _guard(x: torch.Tensor) -> Any:
    """Kernels start on the device and current stream of ``x``."""
    return contextlib.nullcontext() if x.device.type == "cpu" else torch.get_device_module(x.device).device(x.device)


def _options(method: Method, x: torch.Tensor, shape: Geometry) -> dict[str, Any]:
    return {
        "F": _ARITHMETIC[compute_dtype(x)],
        "ROWS": shape.rows,
        "BLOCK": shape.block,
        "COLUMNS": shape.columns,
        "BY_BITS": x.dtype == torch.bfloat16 and triton_interpreted(),
        "num_warps": method.warps,
        "enable_fp_fusion": False,
    }


def _constants(constants: tuple[float, ...]) -> tuple[float, ...]:
    return *constants, *(0.0,) * (4 - len(constants))


def _bits(shared: tuple[bool, ...]) -> int:
    return sum(1 << i for i, one in enumerate(shared) if one)


def _forward(
    method: Method, x: torch.Tensor, parameters: tuple[torch.Tensor, ...], qmin: float, qmax: float, axis: int, group_size: int,
    eps: float, boundary: int, constants: tuple[float, ...], words: torch.Tensor | None, shared: tuple[bool, ...],
    total: bool = False, noise: tuple[int, float] = (0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    dense = _dense(x, bool(group_size) or method.word == "noise")
    y = torch.empty_like(dense) if method.output else dense
    shape = geometry(dense, axis, group_size)
    channels = 1 if total else shape.channels
    sums = torch.zeros(method.sums, channels, dtype=torch.float64, device=x.device) if method.sums else None
    if x.numel():
        held = y if words is None else _like(words, dense) if method.word == "memory" else words
        partial = torch.empty(method.sums * shape.partials, dtype=torch.float64, device=x.device) if method.sums else y
        lower, upper = mask_bounds(int(qmin), int(qmax), boundary, compute_dtype(x))
        with _guard(x):
            forward_kernel[(shape.programs,)](
                dense, y, held, held, tuple(p.contiguous() for p in parameters), partial, shape.partials,
                float(qmin), float(qmax), lower, upper, eps, *_constants(constants),
                shape.outer, shape.channels, shape.inner, shape.chunks, noise[1],
                PREPARE=method.prepare, FORWARD=method.forward, SUMS=method.sums, OUTPUT=method.output, SCALED=method.scaled,
                WORDS=method.words, NOISE=noise[0], QUADS=shape.quads, SHARED=_bits(shared), **_options(method, x, shape),
            )  # fmt: skip
            if sums is not None:
                count, a, s, block = shape.sums(total)
                width = min(triton.next_power_of_2(channels), max(1024 // block, 1))
                sums_kernel[(triton.cdiv(channels, width),)](
                    partial, sums, shape.partials, channels, count, a, s,
                    SUMS=method.sums, CHANNELS=width, BLOCK=block, num_warps=4, enable_fp_fusion=False,
                )  # fmt: skip
    return (y if dense is x or not method.output else _like(y, torch.empty_like(x))), sums


def run_in_place(
    method: Method, x: torch.Tensor, parameters: tuple[torch.Tensor, ...], planes: tuple[torch.Tensor, torch.Tensor],
    qmin: int, qmax: int, axis: int, group_size: int, eps: float, constants: tuple[float, ...],
) -> None:  # fmt: skip
    """A method with a state: ``y`` goes over ``x``, and the two int32 planes are changed. Any strides are right."""
    if not x.numel():
        return
    dense = _dense(x, bool(group_size))
    shape = geometry(dense, axis, group_size)
    laid_out = [p if _same_layout(p, dense) else torch.empty_like(dense, dtype=torch.int32).copy_(p) for p in planes]
    with _guard(x):
        forward_kernel[(shape.programs,)](
            dense, dense, *laid_out, tuple(p.contiguous() for p in parameters), dense, shape.partials,
            float(qmin), float(qmax), 0.0, 0.0, eps, *_constants(constants),
            shape.outer, shape.channels, shape.inner, shape.chunks, 1.0,
            PREPARE=method.prepare, FORWARD=method.forward, SUMS=0, OUTPUT=True, SCALED=False, WORDS=method.words, NOISE=0,
            QUADS=False, SHARED=0, **_options(method, x, shape),
        )  # fmt: skip
    for home, changed in ((x, dense), *zip(planes, laid_out, strict=True)):
        if changed is not home:
            home.copy_(changed)


def run_forward(
    method: Method, x: torch.Tensor, parameters: tuple[torch.Tensor, ...],
    qmin: int, qmax: int, axis: int, group_size: int, eps: float, *, boundary: int = 0,
    constants: tuple[float, ...] = (), words: torch.Tensor | None = None, shared: tuple[bool, ...] = (),
    noise: tuple[int, float] = (0, 1.0),
) -> torch.Tensor:  # fmt: skip
    """``y``, with the layout of ``x``. ``words``: the seed, or what is read beside ``x``; ``shared``: parameters of one element;
    ``noise``: its kind and scale."""
    where = (qmin, qmax, axis, group_size, eps, boundary)
    return _forward(method, x, parameters, *where, constants, words, shared, noise=noise)[0]


def run_forward_sums(
    method: Method, x: torch.Tensor, parameters: tuple[torch.Tensor, ...],
    qmin: int, qmax: int, axis: int, group_size: int, eps: float, *, boundary: int = 0,
    constants: tuple[float, ...] = (), words: torch.Tensor | None = None, shared: tuple[bool, ...] = (), total: bool = False,
) -> tuple[torch.Tensor, Any]:  # fmt: skip
    """``y``, and the sums of the forward pass: fp64, ``(sums, channels)``; with ``total`` over all channels, ``(sums, 1)``."""
    return _forward(method, x, parameters, qmin, qmax, axis, group_size, eps, boundary, constants, words, shared, total)


def run_backward(
    method: Method, grad: torch.Tensor, x: torch.Tensor, parameters: tuple[torch.Tensor, ...],
    qmin: int, qmax: int, axis: int, group_size: int, eps: float, boundary: int, scales: tuple[float, ...], *,
    constants: tuple[float, ...] = (), words: torch.Tensor | None = None, shared: tuple[bool, ...] = (),
    noise: tuple[int, float] = (0, 1.0),
) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    """``dx``, with the layout of ``x``, and the gradients of the first parameters, each multiplied by its scale."""
    dense = _dense(x, bool(group_size) or method.word == "noise")
    dx = torch.empty_like(dense)
    gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters[: method.gradients]]
    if not x.numel():
        return dx, [gradient.zero_() for gradient in gradients]
    shape = geometry(dense, axis, group_size)
    held = tuple(p.contiguous() for p in parameters)
    beside = dx if words is None else _like(words, dense) if method.word == "memory" else words
    partial = torch.empty(method.gradients * shape.partials, dtype=compute_dtype(x), device=x.device)
    lower, upper = mask_bounds(qmin, qmax, boundary, compute_dtype(x))
    with _guard(x):
        backward_kernel[(shape.programs,)](
            dense, _like(grad, dense), dx, beside, held, partial, shape.partials,
            float(qmin), float(qmax), lower, upper, eps, *_constants(constants),
            shape.outer, shape.channels, shape.inner, shape.chunks, noise[1],
            PREPARE=method.prepare, BACKWARD=method.backward, WORDS=method.words, SHARED=_bits(shared),
            NOISE=noise[0], QUADS=shape.quads, **_options(method, x, shape),
        )  # fmt: skip
        for i, gradient in enumerate(gradients):
            one = i < len(shared) and shared[i]
            count, a, s, block = shape.sums(one)
            channels = 1 if one else shape.channels
            width = min(triton.next_power_of_2(channels), max(1024 // block, 1))
            finish_kernel[(triton.cdiv(channels, width),)](
                partial[i * shape.partials :], gradient, held, scales[i], channels, count, a, s,
                INDEX=i, FINISH=method.finish, SHARED=_bits(shared), F=_ARITHMETIC[compute_dtype(x)], CHANNELS=width, BLOCK=block,
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return (dx if dense is x else _like(dx, torch.empty_like(x))), gradients
