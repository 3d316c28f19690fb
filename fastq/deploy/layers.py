"""Linear and convolution layers that compute in integers, and by look-up where the weights' levels are not evenly spaced.

A quantizer gives ``step * K + offset`` with integers K (:class:`fastq.nn.Grid`): the codes themselves, or ``2 * code + 1`` where
the grid has no zero. With inputs ``x = s_x*X + b_x`` and weights ``w = s_w*W + b_w`` a layer's output is

    y = (s_x*s_w) * acc  +  (b_x*s_w) * sum W  +  (s_x*b_w) * sum X  +  (b_x*b_w) * n  +  bias            acc = sum X*W

where all sums run over the n positions of a window that lie inside the input: a padded 0 is not on every grid. What is stored is
int8: ``p = code - zero``, so that ranges such as 0..255 fit. Hence ``X = a_x*p + c_x``, ``W = a_w*k + c_w``, and

    acc   = a_x * (a_w * sum p*k  +  c_w * sum p)  +  c_x * sum W
    sum W = a_w * sum k  +  c_w * n
    sum X = a_x * sum p  +  c_x * n

in int32, exactly: ``sum p*k`` is a product of int8, ``sum p`` one with ones in place of the weights, and ``sum k`` and ``n``, which
differ at the borders alone, come from the weights and an input of ones. Terms whose factor is 0 are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import checks
from ..granularity import compute_dtype
from ..nn.base import keeping_precision
from ..ops import direct_weight
from . import integer

__all__ = ["CodedLayer", "Codes", "IntegerConv", "IntegerLayer", "IntegerLinear", "LookupConv", "LookupLayer", "LookupLinear"]


@dataclass(frozen=True)
class Codes:
    """The codes of a grid: their range, and whether they stand for themselves or, ``odd``, for ``2 * code + 1``.

    ``ValueError`` where there are more than 256.
    """

    qmin: int
    qmax: int
    odd: bool = False

    def __post_init__(self) -> None:
        if self.qmax - self.qmin > 255:
            raise ValueError(f"codes from {self.qmin} to {self.qmax} do not fit 8 bits")

    @property
    def zero(self) -> int:
        """The code that is stored as 0; 0 itself where the range fits int8 as it is."""
        return 0 if self.qmin >= -128 and self.qmax <= 127 else self.qmin + 128

    @property
    def stored(self) -> tuple[int, int]:
        """The range of ``code - zero``."""
        return self.qmin - self.zero, self.qmax - self.zero

    def numel(self) -> int:
        """How many there are."""
        return self.qmax - self.qmin + 1

    @property
    def factor(self) -> int:
        """``a``: the integer is ``a * (code - zero) + c``."""
        return 2 if self.odd else 1

    @property
    def constant(self) -> int:
        """``c``."""
        return self.factor * self.zero + self.odd

    @property
    def largest(self) -> int:
        """A bound of ``|a * stored| + |c|``, and so of the integer."""
        return self.factor * max(map(abs, self.stored)) + abs(self.constant)


#: What users attach to a layer that runs: forward hooks. Those for gradients and for other state_dict keys have no use here.
HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


def take_hooks(layer: nn.Module, old: nn.Module) -> None:
    """Give ``layer`` the forward hooks of ``old``, whose place it takes."""
    for name in HOOKS:
        setattr(layer, name, getattr(old, name).copy())


class CodedLayer(nn.Module):
    """What integer and look-up layers have in common: the input's codes.

    ``inputs``: of the input's grid, or None where a look-up layer's input is not quantized. ``magnitude``: as in
    :class:`fastq.nn.Grid`. Buffers: ``input_step``; ``input_offset`` or None; ``input_lower`` and ``input_width``, the grid's
    interval, or None; of one element each.
    """

    input_step: torch.Tensor | None
    input_offset: torch.Tensor | None
    input_lower: torch.Tensor | None
    input_width: torch.Tensor | None
    #: Of this kind of layer; all but the weights' ``codes`` are saved as they are.
    buffer_names: tuple[str, ...] = ("input_step", "input_offset", "input_lower", "input_width")

    def __init__(self, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, magnitude: bool = False) -> None:
        super().__init__()
        self.inputs, self.magnitude = inputs, magnitude
        for name in self.buffer_names:
            self.register_buffer(name, tensors.get(name))
        if (inputs is None) != (self.input_step is None) or (self.input_lower is None) != (self.input_width is None):
            raise ValueError("input_step goes with the input's codes, input_lower with input_width")

    @property
    def zero(self) -> int:
        """The input code that is stored as 0."""
        return 0 if self.inputs is None else self.inputs.zero

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # what is rounded to half precision finds other codes than the quantizer, whose parameters are not
        return super()._apply(keeping_precision(fn), recurse)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """The codes of ``x`` less ``zero``, int8, by the formula of :class:`fastq.nn.Grid`. NaN is stored as 0."""
        if self.inputs is None or self.input_step is None:
            raise TypeError(f"{type(self).__name__}: its input is not quantized and has no codes")
        checks.check_values("integer layer", x, self.input_step, self.input_offset)
        v = x.detach().to(compute_dtype(x))
        low, high = self.inputs.qmin, self.inputs.qmax
        if self.input_lower is not None and self.input_width is not None:
            within = (v.abs() if self.magnitude else v) - self.input_lower.reshape(())
            within = (within / self.input_width.reshape(())).clamp_(0, 1)
            if self.magnitude:
                v = within.mul_(high).round_().mul_(v.sign())
            else:
                v = within.mul_(high - low).round_().add_(low)
        else:
            if self.input_offset is not None:
                v = v - self.input_offset.reshape(())
            v = v / self.input_step.reshape(())
            if self.inputs.odd:
                first = 2 * low + 1
                v = v.clamp_(first, 2 * high + 1).sub_(first).div_(2).round_().add_(low)
            else:
                v = v.clamp_(low, high).round_()
        return v.nan_to_num_(nan=float(self.zero)).sub_(self.zero).to(torch.int8)


class IntegerLayer(CodedLayer):
    """What the two have in common: the sums, and the way from the accumulators back to real numbers.

    Buffers: ``codes`` int8, the weights'; ``scale`` ``(O,)`` (or one element; per group ``(K/group_size, O)``), ``s_x*s_w``;
    like it or None ``shift``, ``b_x*s_w``, ``weight_shift``, ``s_x*b_w``, and ``cross``, ``b_x*b_w``; ``bias`` ``(O,)`` or None;
    and those of the input.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor | None
    weight_shift: torch.Tensor | None
    cross: torch.Tensor | None
    bias: torch.Tensor | None
    inputs: Codes
    buffer_names = ("codes", "scale", "shift", "weight_shift", "cross", "bias", *CodedLayer.buffer_names)

    def __init__(
        self, tensors: dict[str, torch.Tensor | None], inputs: Codes, weights: Codes, products: int, magnitude: bool = False
    ) -> None:
        super().__init__(tensors, inputs, magnitude)
        self.weights = weights
        self.largest = 128 * max(map(abs, weights.stored))  # of stored codes, for the choice of the product
        # a bound of the four sums that make an accumulator, taken together
        most = max(self.largest, inputs.largest * weights.largest)
        if products * most > integer.INT32_MAX:
            raise ValueError(f"{products} products of up to {most} could overflow int32; at most {integer.INT32_MAX // most} fit")

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """``acc = sum X*W`` in int32 for the codes of :meth:`quantize`, exactly."""
        acc = self.products(codes).mul_(self.weights.factor)
        if self.weights.constant:
            acc.add_(self.windows(codes), alpha=self.weights.constant)
        acc.mul_(self.inputs.factor)
        return acc.add_(self.weight_sums(codes), alpha=self.inputs.constant) if self.inputs.constant else acc

    def weight_sums(self, codes: torch.Tensor) -> torch.Tensor:
        """``sum W``, int32, for an input of the shape of ``codes``; without its batch, or with one of 1."""
        k, n = self.inside(codes)
        return k * self.weights.factor + n * self.weights.constant

    def products(self, codes: torch.Tensor) -> torch.Tensor:
        """``sum p*k``, int32, of the shape of the output."""
        raise TypeError("products belongs to IntegerLinear and IntegerConv")

    def windows(self, codes: torch.Tensor) -> torch.Tensor:
        """``sum p``, int32, of that shape, or with one channel for all."""
        raise TypeError("windows belongs to IntegerLinear and IntegerConv")

    def inside(self, codes: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """``sum k``, int32, and ``n``, an int or int32, over the positions inside an input of the shape of ``codes``."""
        raise TypeError("inside belongs to IntegerLinear and IntegerConv")

    def along(self, t: torch.Tensor) -> torch.Tensor:
        """``t``, one number per output channel or for all, shaped to multiply the output."""
        return t

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The output, but for its bias, for the accumulators ``acc`` of the input ``codes``."""
        y = acc.to(self.scale.dtype) * self.along(self.scale)
        if self.shift is not None:
            y = y + self.weight_sums(codes) * self.along(self.shift)
        if self.weight_shift is not None:
            n = self.inside(codes)[1]
            inputs = self.windows(codes) * self.inputs.factor + n * self.inputs.constant
            y = y + inputs * self.along(self.weight_shift)
            if self.cross is not None:
                y = y + n * self.along(self.cross)
        return y

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        """Which samples hold a NaN, shaped to mask the output."""
        raise TypeError("rows_with_nan belongs to IntegerLinear and IntegerConv")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output, of the input's dtype. A sample that holds NaN, which no integer stands for, becomes NaN whole."""
        codes = self.quantize(input)
        y = self.dequantize(self.accumulate(codes), codes)
        return y.masked_fill_(self.rows_with_nan(input), float("nan")).to(input.dtype)


class IntegerLinear(IntegerLayer):
    """``torch.nn.Linear`` on integers; ``codes`` ``(O, K)``, with ``group_size`` one scale per so many elements of a row."""

    def __init__(
        self, tensors: dict[str, torch.Tensor | None], inputs: Codes, weights: Codes, group_size: int | None = None,
        magnitude: bool = False,
    ) -> None:  # fmt: skip
        codes = tensors["codes"]
        products = group_size or (0 if codes is None else codes.shape[1])
        super().__init__(tensors, inputs, weights, products, magnitude)
        self.group_size = group_size

    def _sums(self, codes: torch.Tensor, w: torch.Tensor, largest: int) -> torch.Tensor:
        """``codes @ w.T`` in int32 ``(..., [groups,] O)``."""
        rows = codes.reshape(-1, codes.shape[-1])
        k = self.group_size or rows.shape[1]
        parts = zip(rows.split(k, 1), w.split(k, 1), strict=True)
        acc = torch.stack([integer.matmul(a, b, largest) for a, b in parts], 1)
        return acc.view(*codes.shape[:-1], *(acc.shape[1:] if self.group_size else acc.shape[2:]))

    def products(self, codes: torch.Tensor) -> torch.Tensor:
        return self._sums(codes, self.codes, self.largest)

    def windows(self, codes: torch.Tensor) -> torch.Tensor:
        return self._sums(codes, torch.ones_like(self.codes[:1]), 128)

    def inside(self, codes: torch.Tensor) -> tuple[torch.Tensor, int]:
        k = self.group_size or self.codes.shape[1]
        sums = torch.stack([w.sum(1, dtype=torch.int32) for w in self.codes.split(k, 1)])
        return (sums if self.group_size else sums[0]), k

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        y = super().dequantize(acc, codes)
        if self.group_size:
            y = y.sum(-2)
        return y if self.bias is None else y + self.bias

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        return x.isnan().any(-1, keepdim=True)


class IntegerConv(IntegerLayer):
    """``torch.nn.Conv1d`` or ``Conv2d`` on integers (``dims`` 1 or 2); ``codes`` ``(O, C/groups, [kh,] kw)``.

    ``padding`` is (left, right[, top, bottom]); stride and dilation have ``dims`` numbers; any ``padding_mode`` of torch.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor | None], inputs: Codes, weights: Codes,
        dims: int, stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str = "zeros", magnitude: bool = False,
    ) -> None:  # fmt: skip
        codes = tensors["codes"]
        super().__init__(tensors, inputs, weights, 0 if codes is None else codes[0].numel(), magnitude)
        self.dims, self.stride, self.padding, self.dilation = dims, tuple(stride), tuple(padding), tuple(dilation)
        self.groups, self.padding_mode = groups, padding_mode

    def _sums(self, codes: torch.Tensor, w: torch.Tensor, groups: int, largest: int) -> torch.Tensor:
        """The convolution of ``codes`` with ``w`` in int32; what is padded adds nothing."""
        single, one = codes.dim() == self.dims + 1, self.dims == 1
        pad = self.padding if self.padding_mode == "zeros" else (0,) * len(self.padding)
        codes = codes.unsqueeze(0) if single else codes
        if one:
            codes, w, pad = codes.unsqueeze(2), w.unsqueeze(2), (*pad, 0, 0)
        stride, dilation = ((1, *self.stride), (1, *self.dilation)) if one else (self.stride, self.dilation)
        acc = integer.conv2d(codes, w, stride, pad, dilation, groups, largest=largest)  # type: ignore[arg-type]
        acc = acc.squeeze(2) if one else acc
        return acc[0] if single else acc

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        if self.padding_mode != "zeros":  # these copy elements, and a copy has the code of its original
            x = F.pad(x, self.padding, mode=self.padding_mode)
        return super().quantize(x)

    def products(self, codes: torch.Tensor) -> torch.Tensor:
        return self._sums(codes, self.codes, self.groups, self.largest)

    def windows(self, codes: torch.Tensor) -> torch.Tensor:
        ones = torch.ones_like(self.codes[: self.groups])
        return self._sums(codes, ones, self.groups, 128).repeat_interleave(len(self.codes) // self.groups, -1 - self.dims)

    def inside(self, codes: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if self.padding_mode != "zeros" or not any(self.padding):  # every window is whole
            return self.along(self.codes.flatten(1).sum(1, dtype=torch.int32)), self.codes[0].numel()
        ones = codes.new_ones(codes.shape[-1 - self.dims :])
        counts = self._sums(ones[:1], torch.ones_like(self.codes[:1, :1]), 1, 1)
        return self._sums(ones, self.codes, self.groups, self.largest), counts * self.codes.shape[1]

    def along(self, t: torch.Tensor) -> torch.Tensor:
        return t.view(-1, *(1,) * self.dims)

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        y = super().dequantize(acc, codes)
        if self.bias is not None:
            y = y + self.along(self.bias)
        channels_last = codes.dim() == 4 and codes.is_contiguous(memory_format=torch.channels_last) and not codes.is_contiguous()
        return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        first = x.dim() - self.dims - 1
        return x.isnan().flatten(first).any(-1).view(*x.shape[:first], *(1,) * (self.dims + 1))


class LookupLayer(CodedLayer):
    """A layer whose weights are codes of levels that may lie anywhere: ``levels[codes]``.

    It is for layers that have no integer product: learned levels (:class:`fastq.nn.DirectWeight`) are not evenly spaced, so that
    ``sum x*w`` is no multiple of ``sum p*k``; and an input that is not quantized has no integers. What is saved is the memory of
    the weights. The layer computes in floating point with the very numbers of the fake-quantized one, so that its output has the
    same bits: ``input_levels`` are what the input's quantizer gives for each of its codes.

    Buffers: ``codes`` uint8, in a file packed to their bits; ``levels`` float32, ``2**bits`` of them, or as many per output
    channel, ``(O, 2**bits)``, or float64 ``(1, 2**bits)``; ``bias`` or None; ``input_levels`` float32, one for each code of the
    input, or None where it is not quantized; and those of the input. Raises ``ValueError`` where their sizes do not fit.
    """

    codes: torch.Tensor
    levels: torch.Tensor
    bias: torch.Tensor | None
    input_levels: torch.Tensor | None
    buffer_names = ("codes", "levels", "bias", "input_levels", *CodedLayer.buffer_names)

    def __init__(self, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, magnitude: bool = False) -> None:
        super().__init__(tensors, inputs, magnitude)
        count = self.levels.shape[-1]
        rows = len(self.levels) if self.levels.dim() == 2 else 1
        if count not in (2**bits for bits in range(1, 9)) or rows not in (1, len(self.codes)):
            raise ValueError(f"levels of shape {tuple(self.levels.shape)} for codes of shape {tuple(self.codes.shape)}")
        have, needed = (0 if t is None else t.numel() for t in (self.input_levels, self.inputs))
        if have != needed:
            raise ValueError(f"{have} input levels for {needed} codes of the input")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        bias = self.bias
        super()._apply(fn, recurse)
        if bias is not None:
            self.bias = fn(bias)  # of the layer in floating point, whose dtype it follows
        return self

    def operands(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The quantized input, NaN where ``x`` is, and the weight, of the dtype of ``x``."""
        half = x.dtype in (torch.bfloat16, torch.float16)
        if self.levels.dim() == 1:
            weight = direct_weight(self.codes, self.levels, dtype=x.dtype if half else torch.float32).to(x.dtype)
        else:
            places = self.codes.reshape(len(self.levels), -1).long()
            weight = self.levels.gather(1, places).view(self.codes.shape).to(x.dtype)
        if self.inputs is None or self.input_levels is None:
            return x, weight
        codes = self.quantize(x).to(torch.int32) - self.inputs.stored[0]
        return torch.where(x.isnan(), x, self.input_levels.to(x.dtype)[codes]), weight


class LookupLinear(LookupLayer):
    """``torch.nn.Linear`` with weights by look-up; ``codes`` ``(O, K)``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(*self.operands(input), self.bias)


class LookupConv(LookupLayer):
    """``torch.nn.Conv1d`` or ``Conv2d`` (``dims`` 1 or 2) with weights by look-up; ``codes`` ``(O, C/groups, [kh,] kw)``.

    stride, padding, dilation, groups, padding_mode: as torch takes them; ``copied``: (left, right[, top, bottom]) for a
    ``padding_mode`` that copies elements.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, dims: int, stride: Any, padding: Any, copied: Any,
        dilation: Any, groups: int, padding_mode: str = "zeros", magnitude: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(tensors, inputs, magnitude)
        self.dims, self.stride, self.dilation, self.copied = dims, tuple(stride), tuple(dilation), tuple(copied)
        self.padding: Any = padding if isinstance(padding, str) else tuple(padding)
        self.groups, self.padding_mode = groups, padding_mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, weight = self.operands(input)
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.copied, mode=self.padding_mode), 0
        convolve: Any = F.conv1d if self.dims == 1 else F.conv2d
        return convolve(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
