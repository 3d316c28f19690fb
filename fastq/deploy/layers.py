"""Linear and convolution layers that compute in integers.

With an input ``x = s_x*q_x + b_x`` (``b_x = 0`` without a learned offset) and weights ``w = s_w*q_w``, a layer's output is

    y = (s_x*s_w) * acc  +  (b_x*s_w) * sums  +  bias        acc = sum q_x*q_w (int32, exact),  sums = sum q_w

where both sums run over the positions that lie inside the input: a padded 0 is no integer code when ``b_x != 0``, so ``sums``
differs at the borders and is computed there. Codes are stored as int8 ``q_x - zero``, where ``zero`` is 0 or, for ranges such
as 0..255, moves them into int8; ``zero * sum q_w`` is added to the accumulator, and padding has the code ``-zero``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import checks
from ..granularity import compute_dtype
from . import integer

__all__ = ["IntegerConv", "IntegerLayer", "IntegerLinear"]


def zero_of(qmin: int, qmax: int) -> int:
    """The code that is stored as 0, so that the range and 0 itself fit int8. ``ValueError`` where none does."""
    low, high = min(qmin, 0), max(qmax, 0)
    if high - low > 255:
        raise ValueError(f"codes from {qmin} to {qmax} (and 0, for padding) do not fit 8 bits")
    return 0 if low >= -128 and high <= 127 else low + 128


#: What users attach to a layer that runs: forward hooks. Those for gradients and for other state_dict keys have no use here.
HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


def take_hooks(layer: nn.Module, old: nn.Module) -> None:
    """Give ``layer`` the forward hooks of ``old``, whose place it takes."""
    for name in HOOKS:
        setattr(layer, name, getattr(old, name).copy())


class IntegerLayer(nn.Module):
    """What the two have in common: the input's codes, and the way from the accumulators back to real numbers.

    Buffers: ``codes`` int8, the weights'; ``scale`` ``(O,)`` (or one element; per group ``(K/group_size, O)``), ``s_x*s_w``;
    ``shift`` like it, ``b_x*s_w``, or None; ``bias`` ``(O,)`` or None; ``input_step`` and ``input_offset`` (or None), one element.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor | None
    bias: torch.Tensor | None
    input_step: torch.Tensor
    input_offset: torch.Tensor | None

    def __init__(self, tensors: dict[str, torch.Tensor | None], qmin: int, qmax: int, weight_range: tuple[int, int]) -> None:
        super().__init__()
        self.qmin, self.qmax, self.weight_range = qmin, qmax, weight_range
        self.zero = zero_of(qmin, qmax)
        for name in ("codes", "scale", "shift", "bias", "input_step", "input_offset"):
            self.register_buffer(name, tensors.get(name))
        largest_weight = max(abs(w) for w in weight_range)
        self.largest = 128 * largest_weight  # of stored codes, for the choice of the product
        products = self.codes[0].numel() if self.group_size is None else self.group_size
        most = max(self.largest, max(abs(qmin), abs(qmax)) * largest_weight)
        if products * most > integer.INT32_MAX:
            raise ValueError(f"{products} products of up to {most} could overflow int32; at most {integer.INT32_MAX // most} fit")

    group_size: int | None = None

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """The int8 codes of ``x``, less ``zero``: ``round(clip((x - offset) / step, qmin, qmax)) - zero``. NaN gives ``-zero``."""
        checks.check_values("integer layer", x, self.input_step, self.input_offset)
        v = x.detach().to(compute_dtype(x))
        if self.input_offset is not None:
            v = v - self.input_offset.reshape(())
        v = (v / self.input_step.reshape(())).clamp_(self.qmin, self.qmax).round_()
        return v.nan_to_num_(nan=0.0).sub_(self.zero).to(torch.int8)

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """``sum q_x*q_w`` in int32 for the codes of :meth:`quantize`, exactly."""
        raise TypeError("accumulate belongs to IntegerLinear and IntegerConv")

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The output for the accumulators ``acc`` of the input ``codes``."""
        raise TypeError("dequantize belongs to IntegerLinear and IntegerConv")

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        """Which samples hold a NaN, shaped to mask the output."""
        raise TypeError("rows_with_nan belongs to IntegerLinear and IntegerConv")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, of the dtype of ``x``. A sample that holds NaN, which no integer stands for, becomes NaN whole."""
        codes = self.quantize(x)
        y = self.dequantize(self.accumulate(codes), codes)
        return y.masked_fill_(self.rows_with_nan(x), float("nan")).to(x.dtype)


class IntegerLinear(IntegerLayer):
    """``torch.nn.Linear`` on integers; ``codes`` ``(O, K)``, with ``group_size`` one scale per so many elements of a row."""

    def __init__(
        self, tensors: dict[str, torch.Tensor | None], qmin: int, qmax: int, weight_range: tuple[int, int],
        group_size: int | None = None,
    ) -> None:  # fmt: skip
        self.__dict__["group_size"] = group_size  # the base class asks, before nn.Module is set up
        super().__init__(tensors, qmin, qmax, weight_range)
        self.group_size = group_size

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        rows = codes.reshape(-1, codes.shape[-1])
        k = self.group_size or rows.shape[1]
        parts = zip(rows.split(k, 1), self.codes.split(k, 1), strict=True)
        acc = torch.stack([integer.matmul(a, w, self.largest) for a, w in parts], 1)
        if self.zero:
            acc = acc + self.zero * self.sums()
        shape = codes.shape[:-1]
        return acc.view(*shape, *acc.shape[1:]) if self.group_size else acc.view(*shape, -1)

    def sums(self) -> torch.Tensor:
        """The weights' sums per group and output, int32 ``(groups, O)``."""
        k = self.group_size or self.codes.shape[1]
        return torch.stack([w.sum(1, dtype=torch.int32) for w in self.codes.split(k, 1)])

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        y = acc.to(self.scale.dtype) * self.scale
        if self.shift is not None:
            y = y + self.sums().view(acc.shape[acc.dim() - (2 if self.group_size else 1) :]) * self.shift
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
        self, tensors: dict[str, torch.Tensor | None], qmin: int, qmax: int, weight_range: tuple[int, int],
        dims: int, stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str = "zeros",
    ) -> None:  # fmt: skip
        super().__init__(tensors, qmin, qmax, weight_range)
        self.dims, self.stride, self.padding, self.dilation = dims, tuple(stride), tuple(padding), tuple(dilation)
        self.groups, self.padding_mode = groups, padding_mode

    def _convolve(self, codes: torch.Tensor, fill: int) -> torch.Tensor:
        """As two dimensional, over a batch."""
        pad = self.padding if self.padding_mode == "zeros" else (0,) * len(self.padding)
        w, one = self.codes, self.dims == 1
        if one:
            codes, w, pad = codes.unsqueeze(2), w.unsqueeze(2), (*pad, 0, 0)
        stride, dilation = ((1, *self.stride), (1, *self.dilation)) if one else (self.stride, self.dilation)
        acc = integer.conv2d(codes, w, stride, pad, dilation, self.groups, fill, self.largest)  # type: ignore[arg-type]
        return acc.squeeze(2) if one else acc

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        if self.padding_mode != "zeros":  # these copy elements, and a copy has the code of its original
            mode = self.padding_mode
            x = F.pad(x, self.padding, mode=mode)
        return super().quantize(x)

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        single = codes.dim() == self.dims + 1
        acc = self._convolve(codes.unsqueeze(0) if single else codes, -self.zero)
        if self.zero:
            acc = acc + self.zero * self.codes.flatten(1).sum(1, dtype=torch.int32).view(-1, *(1,) * self.dims)
        return acc[0] if single else acc

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ones = (1,) * self.dims
        y = acc.to(self.scale.dtype) * self.scale.view(-1, *ones)
        if self.shift is not None:
            inside = torch.ones_like(codes[:1] if codes.dim() > self.dims + 1 else codes.unsqueeze(0))
            y = y + self._convolve(inside, 0)[0] * self.shift.view(-1, *ones)
        if self.bias is not None:
            y = y + self.bias.view(-1, *ones)
        channels_last = codes.dim() == 4 and codes.is_contiguous(memory_format=torch.channels_last) and not codes.is_contiguous()
        return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        first = x.dim() - self.dims - 1
        return x.isnan().flatten(first).any(-1).view(*x.shape[:first], *(1,) * (self.dims + 1))
