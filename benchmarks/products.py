"""What is measured of the integer engine: kinds x layers x rows; and the goals that the results are held to.

A kind is a pair of widths (``W4A8``: 4-bit weights, 8-bit codes as the input; ``A16``: bfloat16 inputs). Layers are Llama-8B's
linear ones, a large square, the convolutions of ResNet-50 on a GPU and of ResNet-18 on a CPU. A case is a layer at a kind with a
number of rows: tokens, or images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastq.engine.call import Problem, Window

__all__ = ["GOALS", "KINDS", "PACKED", "ROWS", "SWEEP", "Goal", "Kind", "Layer", "Work", "layer", "plan", "problem"]

GROUP = 128


@dataclass(frozen=True)
class Kind:
    """Widths. ``activation`` is 8 for codes (of a convolution from 0 to 255, as behind a ReLU), 16 for bfloat16."""

    name: str
    bits: int
    activation: int
    group_size: int | None = None
    conv: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("W8A8", 8, 8),
        Kind("W4A8", 4, 8),
        Kind("W2A8", 2, 8),
        Kind("W4A16", 4, 16, GROUP),
        Kind("W8A16", 8, 16),
        Kind("conv-W8A8", 8, 8, conv=True),
        Kind("conv-W4A8", 4, 8, conv=True),
    )
}


@dataclass(frozen=True)
class Layer:
    """A linear layer of ``n`` outputs and ``k`` inputs, or a convolution (``kernel`` > 0) over images of ``size`` x ``size``."""

    n: int
    k: int  # elements of a row: of a convolution channels * kernel**2
    kernel: int = 0
    stride: int = 1
    size: int = 0

    @property
    def name(self) -> str:
        if not self.kernel:
            return f"{self.n}x{self.k}"
        return f"{self.n}x{self.channels}x{self.kernel}x{self.kernel}/{self.stride}@{self.size}"

    @property
    def channels(self) -> int:
        return self.k // self.kernel**2

    @property
    def window(self) -> Window:
        """Of a convolution."""
        half = self.kernel // 2
        stride = (self.stride, self.stride)
        return Window(self.channels, (self.kernel, self.kernel), stride, (half, half, half, half), (1, 1), 1)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.n, self.channels, self.kernel, self.kernel) if self.kernel else (self.n, self.k)

    def input_shape(self, rows: int) -> tuple[int, ...]:
        """``rows``: tokens, or images."""
        return (rows, self.channels, self.size, self.size) if self.kernel else (rows, self.k)

    def m(self, rows: int) -> int:
        """Rows of the product: of a convolution the positions of its output."""
        if not self.kernel:
            return rows
        height, width = self.window.size(self.size, self.size)
        return rows * height * width

    def operations(self, rows: int) -> int:
        """A multiplication and an addition each."""
        return 2 * self.m(rows) * self.n * self.k

    def bytes_moved(self, rows: int, kind: Kind) -> int:
        """What has to be read and written at least: weights, input, output (bfloat16; of a convolution codes)."""
        elements = rows * self.channels * self.size**2 if self.kernel else rows * self.k
        return (
            self.n * self.k * kind.bits // 8 + elements * kind.activation // 8 + self.m(rows) * self.n * (1 if self.kernel else 2)
        )


def of_resnet18() -> tuple[Layer, ...]:
    """The 11 different ones of ResNet-18, from the first on; the strides are in the first 3x3 of a stage and its shortcut."""
    found = [Layer(64, 3 * 49, 7, 2, 224)]
    before, size = 64, 56
    for stage in range(4):
        inner = 64 * 2**stage
        if stage:
            found += [Layer(inner, before * 9, 3, 2, size), Layer(inner, before, 1, 2, size)]
            before, size = inner, size // 2
        found.append(Layer(inner, inner * 9, 3, 1, size))
    return tuple(found)


def of_resnet50() -> tuple[Layer, ...]:
    """The 23 different ones of ResNet-50, from the first on; its strides are in the 3x3 of a block."""
    found = [Layer(64, 3 * 49, 7, 2, 224)]
    before, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            after = size // stride
            found += [
                Layer(inner, before, 1, 1, size),
                Layer(inner, inner * 9, 3, stride, size),
                Layer(4 * inner, inner, 1, 1, after),
            ]
            if not block:
                found.append(Layer(4 * inner, before, 1, stride, size))
            before, size = 4 * inner, after
    return tuple(dict.fromkeys(found))


LARGE = Layer(8192, 8192)
LLAMA = (Layer(4096, 4096), Layer(1024, 4096), Layer(14336, 4096), Layer(4096, 14336))
RESNET18, RESNET50 = of_resnet18(), of_resnet50()

ROWS = (1, 2, 4, 8, 16, 17, 32, 33, 64, 65, 128, 129, 256, 300, 512, 1024, 2048, 4096, 8192)
#: Every number of rows at which a jump is looked for: fastq's own choice alone, on the large square.
SWEEP = tuple(range(1, 301))
IMAGES = (1, 32, 256)

CPU_LAYERS = (Layer(4096, 4096), Layer(14336, 4096))
CPU_ROWS = (1, 4, 16, 64, 128, 256, 1024)
CPU_IMAGES = (1, 8)
#: The weight that is packed, and to which widths.
PACKED, PACKED_BITS = CPU_LAYERS[0], (8, 4, 3, 2)


@dataclass(frozen=True)
class Work:
    """A layer at a kind, with the rows at which every provider is measured, and those at which only fastq's choice is."""

    kind: Kind
    layer: Layer
    rows: tuple[int, ...]
    sweep: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind.name} {self.layer.name}"


def on_gpu() -> list[Work]:
    """The large square first: the goals are about it."""
    found = []
    for kind in KINDS.values():
        if kind.conv:
            found += [Work(kind, one, IMAGES) for one in RESNET50]
        else:
            found += [Work(kind, one, ROWS, SWEEP if one == LARGE else ()) for one in (LARGE, *LLAMA)]
    return found


def on_cpu() -> list[Work]:
    """As much as two cores do in a few minutes."""
    found = []
    for kind in KINDS.values():
        if kind.conv:
            found += [Work(kind, one, CPU_IMAGES) for one in RESNET18]
        elif kind.name in ("W8A8", "W4A8", "W4A16"):
            found += [Work(kind, one, CPU_ROWS) for one in CPU_LAYERS]
        else:
            found.append(Work(kind, CPU_LAYERS[0], (1, 16, 256)))
    return found


def on_forced_cpu() -> list[Work]:
    """What shows whether an instruction set serves: few rows and many; the first, a wide and a deep convolution."""
    found = []
    for name in ("W8A8", "W4A8", "W4A16"):
        found.append(Work(KINDS[name], CPU_LAYERS[0], (1, 16, 128)))
    for name in ("conv-W8A8", "conv-W4A8"):
        found += [Work(KINDS[name], RESNET18[i], (1,)) for i in (0, 1, 7)]
    return found


def tiny() -> list[Work]:
    """For the tests and the dry run: every kind, tails in every direction."""
    conv, linear = Layer(24, 16 * 9, 3, 2, 8), Layer(64, 256)
    return [Work(kind, conv, (1,)) if kind.conv else Work(kind, linear, (1, 17), (2, 18)) for kind in KINDS.values()]


def plan(device: str, quick: bool = False, kind: str = "", pattern: str = "", isa: str = "") -> list[Work]:
    """What is measured: of ``kind`` (of all), the layers whose name (``W4A16 8192x8192``) contains ``pattern``; less of it where an
    instruction set ``isa`` is forced."""
    found = tiny() if quick else on_gpu() if device == "cuda" else on_forced_cpu() if isa else on_cpu()
    return [work for work in found if kind in ("", work.kind.name) and pattern in work.name]


@functools.lru_cache(maxsize=None)
def layer(name: str) -> Layer | None:
    """By its name in a result; None for one that the registry no longer has."""
    known = (LARGE, *LLAMA, *RESNET18, *RESNET50, *(work.layer for work in tiny()))
    return next((one for one in known if one.name == name), None)


def problem(kind: Kind, one: Layer, rows: int, device: str, architecture: int = 0) -> Problem:
    """What the engine's table decides by."""
    activation = torch.bfloat16 if kind.activation == 16 else torch.int8
    out = torch.int8 if kind.conv else torch.bfloat16
    granularity = "group" if kind.group_size else "channel"
    op = "conv2d" if kind.conv else "linear"
    size = kind.group_size or 0
    return Problem(op, device, architecture, kind.bits, activation, granularity, size, False, one.m(rows), one.n, one.k, 1, out)


# Goals


@dataclass(frozen=True)
class Goal:
    """``measure`` names what integer_report.py computes over the cases that fit; each must reach ``bound``, of an H200 (device
    ``cuda``) or of two cores with AMX (``cpu``).

    Shares of another's time, at most ``bound``: ``best`` (of the best peer's), ``W8A8`` (of that of our W8A8), or the name of peers
    (of the fastest whose name starts so). Besides ``us``, ``jump`` (from a number of rows to the next) and ``packing`` (ms), at
    most, and ``tops``, at least.
    """

    name: str
    measure: str
    bound: float
    kinds: tuple[str, ...] = ()
    layer: str = ""  # all
    rows: tuple[int, int] = (1, 2**31)
    device: str = "cuda"

    @property
    def at_most(self) -> bool:
        return self.measure != "tops"

    def fits(self, kind: str, of: str, rows: int) -> bool:
        return kind in self.kinds and self.layer in ("", of) and self.rows[0] <= rows <= self.rows[1]


_CODES, _CONV = ("W8A8", "W4A8", "W2A8", "W4A16", "W8A16"), ("conv-W8A8", "conv-W4A8")
_CPU = {"device": "cpu"}
GOALS: Sequence[Goal] = (
    Goal("W8A8, 8192^3: 1250 TOPS", "tops", 1250.0, ("W8A8",), LARGE.name, (8192, 8192)),
    Goal("W8A8, 8192^3: not slower than the best peer", "best", 1.0, ("W8A8",), LARGE.name, (8192, 8192)),
    Goal("W4A8, M >= 256: 90 % of the speed of our W8A8", "W8A8", 1 / 0.9, ("W4A8",), "", (256, 2**31)),
    Goal("8192^2, M = 1 to 16, 4-bit weights: at most 15 us", "us", 15.0, ("W4A8", "W4A16"), LARGE.name, (1, 16)),
    Goal("8192^2, M = 1 to 16, 8-bit weights: at most 20 us", "us", 20.0, ("W8A8", "W8A16"), LARGE.name, (1, 16)),
    Goal("M = 1 to 300: no row more costs over 1.3 times", "jump", 1.3, _CODES, "", (1, 300)),
    Goal("convolutions: not slower than cuDNN in bfloat16", "torch-bf16", 1.0, _CONV),
    Goal("W8A8, M >= 16: at most 0.85 of the best peer's time", "best", 0.85, ("W8A8",), "", (16, 2**31), **_CPU),
    Goal("W8A8, M = 1: at most the best peer's time", "best", 1.0, ("W8A8",), "", (1, 1), **_CPU),
    Goal("W4A8, M >= 16: at most the time of our W8A8", "W8A8", 1.0, ("W4A8",), "", (16, 2**31), **_CPU),
    Goal("W4A8, M = 1: at most onnxruntime's time", "onnxruntime", 1.0, ("W4A8",), "", (1, 1), **_CPU),
    Goal("W4A8, M = 16: at most a third of onnxruntime's time", "onnxruntime", 1 / 3, ("W4A8",), "", (16, 16), **_CPU),
    Goal("W4A8, M = 256: at most a 17th of onnxruntime's time", "onnxruntime", 1 / 17, ("W4A8",), "", (256, 256), **_CPU),
    Goal("convolutions: at most oneDNN's time with int8", "onednn-int8", 1.0, _CONV, **_CPU),
    Goal(f"packing {PACKED.name}, 8 to 2 bits: under 50 ms", "packing", 50.0, **_CPU),
)
#: Of each instruction set that kernels are held to.
FORCED_GOALS: Sequence[Goal] = tuple(
    Goal(f"{what}: at most the best peer's time", "best", 1.0, kinds, **_CPU)
    for what, kinds in (("W8A8", ("W8A8",)), ("W4A8", ("W4A8",)), ("convolutions", _CONV))
)
