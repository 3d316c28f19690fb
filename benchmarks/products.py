"""What is measured of the integer engine: kinds x layers x rows; and the goals that the results are held to.

A kind is a pair of widths (``W4A8``: 4-bit weights, 8-bit codes as the input; ``A16``: bfloat16 inputs). Layers are Llama-8B's
linear ones, a large square, ResNet-50's convolutions. A case is a layer at a kind with a number of rows: tokens, or images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastq.engine.call import Problem, Window

__all__ = ["GOALS", "KINDS", "ROWS", "SWEEP", "Goal", "Kind", "Layer", "Work", "layer", "plan", "problem"]

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


def convolutions() -> tuple[Layer, ...]:
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
RESNET50 = convolutions()
#: Of these the CPU is measured: the first, a 3x3 and a 1x1 of each width in between, and the last ones, which are all weights.
FEW_CONVOLUTIONS = tuple(RESNET50[i] for i in (0, 2, 3, 9, 10, 21, 22))

ROWS = (1, 2, 4, 8, 16, 17, 32, 33, 64, 65, 128, 129, 256, 300, 512, 1024, 2048, 4096, 8192)
#: Every number of rows at which a jump is looked for: fastq's own choice alone, on the large square.
SWEEP = tuple(range(1, 301))
IMAGES = (1, 32, 256)


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
            found += [Work(kind, one, (1,)) for one in FEW_CONVOLUTIONS]
            continue
        found.append(Work(kind, LLAMA[0], (1, 4, 16, 64, 256)))
        if kind.name in ("W8A8", "W4A8", "W4A16"):
            found += [Work(kind, one, (1, 16) if one.n * one.k > 2**24 else (1, 16, 256)) for one in LLAMA[1:]]
    return found


def tiny() -> list[Work]:
    """For the tests and the dry run: every kind, tails in every direction."""
    conv, linear = Layer(24, 16 * 9, 3, 2, 8), Layer(64, 256)
    return [Work(kind, conv, (1,)) if kind.conv else Work(kind, linear, (1, 17), (2, 18)) for kind in KINDS.values()]


def plan(device: str, quick: bool = False, kind: str = "", pattern: str = "") -> list[Work]:
    """What is measured: of ``kind`` (of all), the layers whose name (``W4A16 8192x8192``) contains ``pattern``."""
    found = tiny() if quick else on_gpu() if device == "cuda" else on_cpu()
    return [work for work in found if kind in ("", work.kind.name) and pattern in work.name]


@functools.lru_cache(maxsize=None)
def layer(name: str) -> Layer | None:
    """By its name in a result; None for one that the registry no longer has."""
    known = (LARGE, *LLAMA, *RESNET50, *(work.layer for work in tiny()))
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
    """Of an H200. ``measure`` names what integer_report.py computes over the cases that fit; each must reach ``bound``.

    ``tops``, ``best`` (times that the best peer takes), ``W8A8`` (times that our W8A8 takes), ``bf16`` (times that torch takes in
    bfloat16) must be at least ``bound``; ``us`` and ``jump`` (from a number of rows to the next) at most.
    """

    name: str
    measure: str
    bound: float
    kinds: tuple[str, ...]
    layer: str = ""  # all
    rows: tuple[int, int] = (1, 2**31)

    @property
    def at_most(self) -> bool:
        return self.measure in ("us", "jump")

    def fits(self, kind: str, of: str, rows: int) -> bool:
        return kind in self.kinds and self.layer in ("", of) and self.rows[0] <= rows <= self.rows[1]


_CODES = ("W8A8", "W4A8", "W2A8", "W4A16", "W8A16")
GOALS: Sequence[Goal] = (
    Goal("W8A8, 8192^3: 1250 TOPS", "tops", 1250.0, ("W8A8",), LARGE.name, (8192, 8192)),
    Goal("W8A8, 8192^3: not slower than the best peer", "best", 1.0, ("W8A8",), LARGE.name, (8192, 8192)),
    Goal("W4A8, M >= 256: 90 % of the speed of our W8A8", "W8A8", 0.9, ("W4A8",), "", (256, 2**31)),
    Goal("8192^2, M = 1 to 16, 4-bit weights: at most 15 us", "us", 15.0, ("W4A8", "W4A16"), LARGE.name, (1, 16)),
    Goal("8192^2, M = 1 to 16, 8-bit weights: at most 20 us", "us", 20.0, ("W8A8", "W8A16"), LARGE.name, (1, 16)),
    Goal("M = 1 to 300: no row more costs over 1.3 times", "jump", 1.3, _CODES, "", (1, 300)),
    Goal("convolutions: not slower than cuDNN in bfloat16", "bf16", 1.0, ("conv-W8A8", "conv-W4A8")),
)
