"""The integer convolution as a public function; its operators and what it shares with the linear one are in ``int_linear.py``."""

from __future__ import annotations

from typing import Any

import torch

from ..engine.call import Window
from ..packing import PackedWeight
from . import _calls
from .int_linear import check_numbers, check_operands, check_overflow, epilogue, kept, product, run_known
from .quantize import check_scale

__all__ = ["int_conv2d"]


def pair(name: str, value: Any, lowest: int) -> tuple[int, int]:
    """An int or two, for height and width."""
    values = (value, value) if type(value) is int else value
    if not isinstance(values, (tuple, list)) or len(values) != 2 or any(type(n) is not int for n in values):
        raise TypeError(f"int_conv2d: {name} must be an int or two, (height, width), got {value!r:.60}")
    if min(values) < lowest:
        raise ValueError(f"int_conv2d: {name} must be at least {lowest}, got {value!r}")
    return int(values[0]), int(values[1])


def padded(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int, int, int]:
    """``padding`` as left, right, top, bottom."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"int_conv2d: padding must be ints, 'same' or 'valid', got {padding!r}")
        if padding == "valid":
            return 0, 0, 0, 0
        if stride != (1, 1):
            raise ValueError(f"int_conv2d: padding 'same' needs stride 1, got {stride}")
        (h, w) = (dilation[i] * (kernel[i] - 1) for i in (0, 1))
        return w // 2, w - w // 2, h // 2, h - h // 2
    if isinstance(padding, (tuple, list)) and len(padding) == 4 and all(type(n) is int for n in padding):
        if min(padding) < 0:
            raise ValueError(f"int_conv2d: padding must be at least 0, got {padding!r}")
        return tuple(padding)  # type: ignore[return-value]
    height, width = pair("padding", padding, 0)
    return width, width, height, height


def int_conv2d(
    x: torch.Tensor, weight: PackedWeight, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    x_scale: torch.Tensor | float | None = None, x_zero_point: int | None = None, bias: torch.Tensor | None = None,
    activation: str | None = None, out_dtype: torch.dtype | None = None, out_scale: torch.Tensor | float | None = None,
    out_range: tuple[int, int] | None = None, out_zero_point: int = 0, multiplier: torch.Tensor | None = None,
    addend: torch.Tensor | None = None, residual: torch.Tensor | None = None, kernel: str | None = None,
) -> torch.Tensor:  # fmt: skip
    """A convolution with a packed weight: :func:`fastq.int_linear` over the windows of an image.

    ::

        acc[b, o, i, j] = sum over c, u, v of (x[b, c, p, q] - x_zero_point) * (code[o, c, u, v] - z[o])
        p = i*sh + u*dh - top,  q = j*sw + v*dw - left

    where what lies outside the image adds nothing (its code is ``x_zero_point``). What follows ``acc`` is that of ``int_linear``.

    On a GPU the sums of floating point ``x`` are those of torch's own convolution: of float32 in TF32 where
    ``torch.backends.cudnn.allow_tf32`` allows it, which is torch's default; of bfloat16 and float16 rounded to that dtype before
    scale and bias.

    Args:
        x: int8 or uint8 codes, float32, bfloat16 or float16; ``(B, C, H, W)``, any strides; channels_last is what the kernels read.
        weight: a :class:`PackedWeight` of shape ``(O, C/groups, kh, kw)``, quantized per tensor or per channel.
        stride, dilation: an int or ``(height, width)``.
        padding: an int, ``(height, width)``, ``(left, right, top, bottom)``, ``"same"`` (stride 1) or ``"valid"``.
        groups: of channels; divides ``C`` and ``O``. ``groups=C``: depthwise.
        x_scale: a number or one element.
        residual: ``(B, O, oh, ow)``.
        The others: as :func:`fastq.int_linear` has them.

    Returns:
        ``(B, O, oh, ow)`` with the strides of channels_last.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`fastq.int_linear`; ``ValueError`` where the kernel exceeds the padded image.
    """
    op = "int_conv2d"
    numbers = (stride, padding, dilation, groups, x_zero_point, activation, out_dtype, out_range, out_zero_point, kernel)
    given = (x_scale is None, bias is None, multiplier is None, addend is None, out_scale is None)
    key = _calls.key_of(x, weight, residual, numbers, given)
    if (call := _calls.known(key)) is not None:
        scale = check_scale(op, "x_scale", x_scale, x.device)
        residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        return run_known(call, op, x, weight, scale, bias, multiplier, addend, residual, out_scale, kernel)
    check_operands(op, x, weight, x_zero_point, kernel)
    if len(weight.shape) != 4:
        one = "of one dimension: pack (O, C/groups, 1, kw) and give x as (B, C, 1, W)"
        other = one if len(weight.shape) == 3 else "int_linear takes (N, K)"
        raise ValueError(f"{op}: weight must have shape (O, C/groups, kh, kw), got {weight.shape}; {other}")
    o, channels, kh, kw = weight.shape
    if type(groups) is not int:
        raise TypeError(f"{op}: groups must be an int, got {groups!r:.60}")
    if groups < 1 or o % groups:
        raise ValueError(f"{op}: groups must be at least 1 and divide the {o} output channels, got {groups}")
    if x.dim() != 4 or x.shape[1] != channels * groups:
        expected = f"(B, {channels * groups}, H, W) for a weight of shape {weight.shape} in {groups} group(s)"
        raise ValueError(f"{op}: x must be {expected}, got {tuple(x.shape)}")
    steps, apart = pair("stride", stride, 1), pair("dilation", dilation, 1)
    window = Window(channels, (kh, kw), steps, padded(padding, (kh, kw), apart, steps), apart, groups)
    height, width = window.size(x.shape[2], x.shape[3])
    if kh < 1 or kw < 1 or height < 1 or width < 1:
        raise ValueError(
            f"{op}: the kernel {(kh, kw)} at dilation {apart} exceeds the padded image of {tuple(x.shape)}, padding {padding!r}"
        )
    scale = check_scale(op, "x_scale", x_scale, x.device)
    if scale is not None and x.is_floating_point():
        raise ValueError(f"{op}: x_scale is one of codes, and x is of {x.dtype}; fastq.quantize makes codes")
    check_overflow(op, x, weight, x_zero_point or 0)
    shape = (x.shape[0], o, height, width)
    e = epilogue(
        op, x, weight, scale, x_zero_point or 0, bias, multiplier, addend, residual, shape, activation, out_dtype, out_scale,
        out_range, out_zero_point,
    )  # fmt: skip
    if residual is not None:
        e = e._replace(residual=residual.contiguous(memory_format=torch.channels_last))
    check_numbers(op, x, e)
    x = x.contiguous(memory_format=torch.channels_last)
    y = product(x, weight.operand(), window, e, kernel or "")
    kept(key, x, weight, window, e, shape)
    return y
