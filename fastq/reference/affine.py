"""Affine fake-quantization with PyTorch core's arithmetic, in plain PyTorch: the specification of the drop-ins.

What ``torch.fake_quantize_per_tensor_affine``, ``torch.fake_quantize_per_channel_affine`` and the two
``torch._fake_quantize_learnable_*`` operators compute (https://docs.pytorch.org/docs/stable/generated/
torch.fake_quantize_per_tensor_affine.html; the learnable ones follow LSQ, https://arxiv.org/abs/1902.08153)::

    c = round(x * (1 / scale)) + z          z = zero_point; learnable: round(zero_point) clipped to [qmin, qmax]
    y = (clip(c, qmin, qmax) - z) * scale

    dx     = g where qmin <= c <= qmax, else 0
    dscale = F * sum g * ((y - x) / scale inside; qmin - z below; qmax - z above)       learnable only
    dzero  = F * sum -g * scale outside                                                learnable only

The backward pass of core's learnable operators is not quite that of their forward pass, and this follows it (found by experiment
with torch 2.11 and 2.13 on x86-64, where core's compiler fuses the multiplication with the addition):

* ``c = round(x * (1 / scale) + z)``, rounded to fp32 once before the rounding to an integer;
* per tensor, ``z = trunc(clip(zero_point + 0.5, qmin, qmax))``, another integer than the forward pass's for negative and for some
  half-way zero-points; per channel the two agree.

Multiplying by ``1 / scale`` is core's convention and the one exemption from the house rule of true division. NaN stays NaN,
infinities saturate, a scale of 0 gives zeros.
"""

from __future__ import annotations

from typing import Any

import torch

from ..granularity import compute_dtype, expand, in_layout_of, sum_to_parameter

__all__ = [
    "_fake_quantize_learnable_per_channel_affine",
    "_fake_quantize_learnable_per_tensor_affine",
    "affine_backward",
    "affine_forward",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
]


def forward_zero_point(zero_point: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    return zero_point.round().clamp(qmin, qmax)


def backward_zero_point(zero_point: torch.Tensor, qmin: int, qmax: int, axis: int) -> torch.Tensor:
    """Of the learnable operators."""
    return (zero_point + 0.5).clamp(qmin, qmax).trunc() if axis < 0 else forward_zero_point(zero_point, qmin, qmax)


def _inverse(scale: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    return expand(torch.where(scale == 0, 0.0, 1.0 / scale), x, axis, 0)


def _quantize(
    x: torch.Tensor, scale: torch.Tensor, z: torch.Tensor, qmin: int, qmax: int, axis: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The code before clipping (clipped to one beyond the range, so that it is exact), scale and zero-point broadcast."""
    s, zero = expand(scale, x, axis, 0), expand(z, x, axis, 0)
    u = x.to(compute_dtype(x)) * _inverse(scale, x, axis)
    low, high = qmin - zero - 1, qmax - zero + 1
    clipped = torch.where(u < low, low, torch.where(u > high, high, u))
    return clipped.round() + 0.0 + zero, s, zero


def affine_forward(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, qmin: int, qmax: int, axis: int) -> torch.Tensor:
    """``y``, of the dtype and layout of ``x``."""
    c, s, zero = _quantize(x, scale, forward_zero_point(zero_point, qmin, qmax), qmin, qmax, axis)
    return in_layout_of(x, (c.clamp(qmin, qmax) - zero) * s)


def affine_backward(
    g: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor,
    qmin: int, qmax: int, axis: int, learnable: bool, grad_factor: float,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """``(dx, dscale, dzero_point)``; the last two are None unless ``learnable``."""
    if learnable:
        inverse, s = _inverse(scale, x, axis), expand(scale, x, axis, 0)
        zero = expand(backward_zero_point(zero_point, qmin, qmax, axis), x, axis, 0)
        # The product of two fp32 numbers is exact in fp64, so this rounds once, as a fused multiply-add does.
        fused = (x.double() * inverse.double() + zero.double()).to(s.dtype)
        c = torch.where(fused < qmin - 1, qmin - 1.0, torch.where(fused > qmax + 1, qmax + 1.0, fused)).round() + 0.0
    else:
        c, s, zero = _quantize(x, scale, forward_zero_point(zero_point, qmin, qmax), qmin, qmax, axis)
    inside = (c >= qmin) & (c <= qmax)
    nan = torch.where(c.isnan(), c, 0.0)
    gf = g.to(c.dtype)
    dx = in_layout_of(x, torch.where(inside, gf, nan))
    if not learnable:
        return dx, None, None
    y = (c.clamp(qmin, qmax) - zero) * s
    outside = torch.where(c < qmin, qmin - zero, qmax - zero) + nan
    dscale = sum_to_parameter(gf * torch.where(inside, (y - x.to(c.dtype)) * inverse, outside), scale, axis, 0)
    dzero = sum_to_parameter(torch.where(inside, 0.0, -gf * s + nan), zero_point, axis, 0)
    return dx, dscale * grad_factor, dzero * grad_factor


class AffineReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int, learnable: bool, grad_factor: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.arguments = (qmin, qmax, axis, learnable, grad_factor)
        return affine_forward(x, scale, zero_point, qmin, qmax, axis)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *affine_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 5


def fake_quantize_per_tensor_affine(input: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> torch.Tensor:
    """Arguments, formula and errors as :func:`fastq.fake_quantize_per_tensor_affine`, in plain PyTorch."""
    from ..ops.affine import resolve  # the one set of checks; imported late because fastq.ops builds on this module

    name = "fake_quantize_per_tensor_affine"
    return AffineReference.apply(*resolve(name, input, scale, zero_point, quant_min, quant_max), False, 1.0)


def fake_quantize_per_channel_affine(
    input: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int
) -> torch.Tensor:
    """Arguments, formula and errors as :func:`fastq.fake_quantize_per_channel_affine`, in plain PyTorch."""
    from ..ops.affine import resolve

    name = "fake_quantize_per_channel_affine"
    return AffineReference.apply(*resolve(name, input, scale, zero_point, quant_min, quant_max, axis), False, 1.0)


def _fake_quantize_learnable_per_tensor_affine(
    input: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, grad_factor: float = 1.0
) -> torch.Tensor:
    """Arguments, formula and errors as ``fastq._fake_quantize_learnable_per_tensor_affine``, in plain PyTorch."""
    from ..ops.affine import resolve_learnable

    name = "_fake_quantize_learnable_per_tensor_affine"
    return AffineReference.apply(*resolve_learnable(name, input, scale, zero_point, quant_min, quant_max, grad_factor))


def _fake_quantize_learnable_per_channel_affine(
    input: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int, grad_factor: float = 1.0
) -> torch.Tensor:
    """Arguments, formula and errors as ``fastq._fake_quantize_learnable_per_channel_affine``, in plain PyTorch."""
    from ..ops.affine import resolve_learnable

    name = "_fake_quantize_learnable_per_channel_affine"
    return AffineReference.apply(*resolve_learnable(name, input, scale, zero_point, quant_min, quant_max, grad_factor, axis))
