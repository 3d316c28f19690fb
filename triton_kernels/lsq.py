"""LSQ and LSQ+ in Triton. The formula, its names and its papers: ``fastq/reference/lsq.py``.

v = (x - offset) / s,  s = max(|step|, eps);   q = round(clip(v, qmin, qmax));   y = s * q + offset
dx      = g where lower < v < upper, else 0
dstep   = G * sign(step) * sum g * (q - v where inside; else qmin where v <= qmin; else qmax)
doffset = G_offset * sum g where not inside
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_backward, run_forward
from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def prepare(parameters, r):
    magnitude = tl.abs(parameters[0])
    step = tl.where(magnitude < r[4], r[4], magnitude) + (magnitude - magnitude)  # inf - inf: a step of inf or NaN gives NaN
    return (step,)


@triton.jit
def _prepare_offset(parameters, r):
    return (prepare(parameters, r)[0], parameters[1])


@triton.jit
def _forward(x, p, r):
    return p[0] * round_clipped(clip(divide(x, p[0]), r[0], r[1]))


@triton.jit
def _forward_offset(x, p, r):
    return p[0] * round_clipped(clip(divide(x - p[1], p[0]), r[0], r[1])) + p[1]


@triton.jit
def gradients(v, g, r):
    """``dx`` and the terms of the two sums."""
    q = round_clipped(clip(v, r[0], r[1]))
    inside = (v > r[2]) & (v < r[3])
    nan = nan_of(v)
    outside = tl.where(v <= r[0], r[0], r[1]) + nan
    return tl.where(inside, g, nan), g * tl.where(inside, q - v, outside), tl.where(inside, 0.0, g + nan)


@triton.jit
def _backward(x, g, p, r):
    dx, step_term, _ = gradients(divide(x, p[0]), g, r)
    return dx, (step_term,)


@triton.jit
def _backward_offset(x, g, p, r):
    dx, step_term, offset_term = gradients(divide(x - p[1], p[0]), g, r)
    return dx, (step_term, offset_term)


@triton.jit
def finish(index: tl.constexpr, total, parameters):
    if index == 0:
        return tl.where(parameters[0] < 0, -total, total)
    else:
        return total


LSQ = Method("lsq", 1, 1, prepare, _forward, _backward, finish)
LSQ_OFFSET = Method("lsq_offset", 2, 2, _prepare_offset, _forward_offset, _backward_offset, finish)


def scale_of_gradient(factor: float, norm: int, x: torch.Tensor, step: torch.Tensor, qmax: int) -> float:
    """``factor``, times ``1 / sqrt(N * qmax)`` for norm 1 (N elements per step) and 2 (all elements)."""
    n = x.numel() // max(step.numel(), 1) if norm == 1 else x.numel()
    return factor / math.sqrt(max(n, 1) * qmax) if norm else factor


def forward_op(x: Any, step: Any, offset: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float) -> Any:
    method, parameters = (LSQ, (step,)) if offset is None else (LSQ_OFFSET, (step, offset))
    return run_forward(method, x, parameters, qmin, qmax, axis, group_size, eps)


def backward_op(
    grad: Any, x: Any, step: Any, offset: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    boundary: int, grad_scale: float, grad_norm: int, offset_grad_scale: float,
) -> Any:  # fmt: skip
    method, parameters = (LSQ, (step,)) if offset is None else (LSQ_OFFSET, (step, offset))
    scales = (scale_of_gradient(grad_scale, grad_norm, x, step, qmax), offset_grad_scale)
    dx, sums = run_backward(method, grad, x, parameters, qmin, qmax, axis, group_size, eps, boundary, scales)
    return dx, sums[0], sums[1] if offset is not None else torch.empty(0, dtype=step.dtype, device=step.device)


implement_triton("lsq_forward", forward_op)
implement_triton("lsq_backward", backward_op)
