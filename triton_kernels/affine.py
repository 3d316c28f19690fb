"""PyTorch core's affine fake-quantization in Triton. The formula and where it comes from: ``fastq/reference/affine.py``.

c = round(x * (1 / scale)) + z;   y = (clip(c, qmin, qmax) - z) * scale;   inside = qmin <= c <= qmax
dx     = g where inside, else 0
dscale = F * sum g * ((y - x) / scale inside; qmin - z below; qmax - z above)
dzero  = F * sum -g * scale outside
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_backward, run_forward
from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def _prepare(parameters, r):
    scale, zero_point = parameters
    one = tl.full((), 1.0, scale.dtype)
    inverse = tl.where(scale == 0, 0.0, divide(one, tl.where(scale == 0, one, scale)))
    return scale, round_clipped(clip(zero_point, r[0], r[1])), inverse


@triton.jit
def _prepare_per_tensor(parameters, r):
    """The backward pass of the learnable operator has a zero-point of its own."""
    scale, _, inverse = _prepare(parameters, r)
    z = clip(parameters[1] + tl.full((), 0.5, scale.dtype), r[0], r[1])
    whole = tl.where(z == z, z, 0.0).to(tl.int32).to(scale.dtype)
    return scale, tl.where(z == z, whole, z), inverse


@triton.jit
def _code(x, p, r):
    """The code before clipping. One beyond the range at either end is as good as any, and rounds exactly."""
    return round_clipped(clip(x * p[2], r[0] - p[1] - 1.0, r[1] - p[1] + 1.0)) + p[1]


@triton.jit
def _forward(x, p, r):
    return (clip(_code(x, p, r), r[0], r[1]) - p[1]) * p[0]


@triton.jit
def _backward(x, g, p, r):
    c = _code(x, p, r)
    return tl.where((c >= r[0]) & (c <= r[1]), g, nan_of(c)), ()


@triton.jit
def _backward_learnable(x, g, p, r):
    # The product of two fp32 numbers is exact in fp64, so this rounds once, as a fused multiply-add does.
    fused = (x.to(tl.float64) * p[2].to(tl.float64) + p[1].to(tl.float64)).to(x.dtype)
    c = round_clipped(clip(fused, r[0] - 1.0, r[1] + 1.0))
    inside = (c >= r[0]) & (c <= r[1])
    nan = nan_of(c)
    y = (clip(c, r[0], r[1]) - p[1]) * p[0]
    outside = tl.where(c < r[0], r[0] - p[1], r[1] - p[1]) + nan
    return tl.where(inside, g, nan), (g * tl.where(inside, (y - x) * p[2], outside), tl.where(inside, 0.0, nan - g * p[0]))


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    return total


AFFINE = Method("affine", 2, 0, _prepare, _forward, _backward, _finish)
AFFINE_PER_TENSOR = Method("affine_per_tensor", 2, 2, _prepare_per_tensor, _forward, _backward_learnable, _finish)
AFFINE_PER_CHANNEL = Method("affine_per_channel", 2, 2, _prepare, _forward, _backward_learnable, _finish)


def _forward_op(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int) -> Any:
    return run_forward(AFFINE, x, (scale, zero_point), qmin, qmax, axis, 0, 0.0)


def _backward_op(
    grad: Any, x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int, learnable: bool, grad_factor: float
) -> Any:
    method = AFFINE if not learnable else AFFINE_PER_TENSOR if axis < 0 else AFFINE_PER_CHANNEL
    scales = (grad_factor, grad_factor)[: method.gradients]
    dx, gradients = run_backward(method, grad, x, (scale, zero_point), qmin, qmax, axis, 0, 0.0, 0, scales)
    return dx, *(gradients or [torch.empty(0, dtype=p.dtype, device=p.device) for p in (scale, zero_point)])


implement_triton("affine_forward", _forward_op)
implement_triton("affine_backward", _backward_op)
