"""What a kernel of the integer engine is given: a weight, the window of a convolution, the epilogue; and their schemas."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["ACTIVATIONS", "Epilogue", "Operand", "Problem", "Window"]

#: By the number that operators are given.
ACTIVATIONS = (None, "relu", "gelu", "silu")
OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int32)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# The arguments of operators, as the three below flatten themselves.
OPERAND = "Tensor weight, Tensor weight_scale, Tensor? weight_zero, Tensor weight_sums, int[] form"
WINDOW = "int[] window"
EPILOGUE = (
    "Tensor? x_scale, int x_zero_point, Tensor? bias, Tensor? multiplier, Tensor? addend, Tensor? residual, "
    "int activation, ScalarType out_dtype, Tensor? out_scale, int[] out_codes"
)


class Operand(NamedTuple):
    """The tensors of a :class:`fastq.PackedWeight`, in the layout of the device: what ``fastq/packing.py`` describes.

    With fields ``f``, their zero ``t`` (``zero``, or 0 for None) and inputs ``x``, an accumulator is
    ``sum (x - x_zero_point) * (f - t)``.
    """

    data: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    sums: torch.Tensor
    n: int
    k: int
    bits: int
    group_size: int  # 0: none

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.k // self.group_size) if self.group_size else 1

    def flat(self) -> tuple[Any, ...]:
        """The arguments that its schema names."""
        return self.data, self.scale, self.zero, self.sums, [self.n, self.k, self.bits, self.group_size]


class Window(NamedTuple):
    """Of a convolution. ``padding``: left, right, top, bottom, of zeros (the code ``x_zero_point``)."""

    channels: int  # of a group's input
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def flat(self) -> list[int]:
        """``window``: 12 numbers."""
        return [self.channels, *self.kernel, *self.stride, *self.padding, *self.dilation, self.groups]

    @staticmethod
    def of(w: list[int]) -> Window:
        return Window(w[0], (w[1], w[2]), (w[3], w[4]), (w[5], w[6], w[7], w[8]), (w[9], w[10]), w[11])

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Of the output."""
        left, right, top, bottom = self.padding
        h = (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1
        w = (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1
        return h, w


class Epilogue(NamedTuple):
    """From accumulators to the output. All tensors but ``residual`` are float32 and contiguous.

    ::

        y = float(acc) * (x_scale * weight_scale)     per group: the sum of this over the groups, the first one first
        y = y + bias
        y = y * multiplier + addend                   two roundings; a batch norm's affine
        y = y + residual
        y = activation(y)
        out = y rounded to out_dtype, or              code = round(clip(y / out_scale, lo - zp, hi - zp)) + zp; NaN gives zp

    ``out_dtype`` int32 gives the accumulators, and nothing else of this is used. For float inputs ``x`` the first line is
    ``y = sum over the groups of weight_scale * sum x * (f - t)``, accumulated in float32.
    """

    x_scale: torch.Tensor | None  # (1,) or (M,); None: 1
    x_zero_point: int
    bias: torch.Tensor | None  # (N,)
    multiplier: torch.Tensor | None  # (N,)
    addend: torch.Tensor | None  # (N,)
    residual: torch.Tensor | None  # of the output's shape, floating point
    activation: int  # an index of ACTIVATIONS
    out_dtype: torch.dtype
    out_scale: torch.Tensor | None  # (1,)
    out_codes: tuple[int, int, int]  # lo, hi, zp of the codes given

    def flat(self) -> tuple[Any, ...]:
        """The arguments that its schema names."""
        return *self[:-1], list(self.out_codes)

    @staticmethod
    def of(arguments: Any) -> Epilogue:
        """The inverse."""
        *given, codes = arguments
        return Epilogue._make((*given, tuple(codes)))


class Problem(NamedTuple):
    """What the choice of a kernel depends on."""

    op: str  # "linear" or "conv2d"
    device: str  # a device's type
    architecture: int  # of a GPU: 80, 90; 0 elsewhere
    bits: int  # of the weight
    activation: torch.dtype  # int8 or uint8, or a float
    granularity: str  # "tensor", "channel" or "group", of the weight's scale
    group_size: int  # 0: none
    zeros: bool  # the weight has zero-points
    m: int  # rows: samples, or positions of a convolution's output
    n: int
    k: int
    groups: int = 1  # of a convolution
    out_dtype: torch.dtype = torch.float32

    @property
    def integer(self) -> bool:
        """Whether the product is one of integers."""
        return not self.activation.is_floating_point
