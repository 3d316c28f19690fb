"""LSQ with one step and sums for each channel, in Triton. The formula: ``fastq/reference/channel_error.py``.

q = round(clip(x / s, qmin, qmax));   y = s * q;   error = sum (x - y)^2 in fp64
dx    = (g inside, else 0) + 2e * (x - y)
dstep = G * sign(step) * sum g * (q - v inside; else qmin, qmax) + sign(step) * sum 2e * (y - x) * q
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_backward, run_forward_sums
from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def _prepare(parameters, r):
    magnitude = tl.abs(parameters[0])
    step = tl.where(magnitude < r[4], r[4], magnitude) + (magnitude - magnitude)  # inf - inf: inf and NaN give NaN
    return step, parameters[2] + parameters[2]


@triton.jit
def _forward_error(x, p, r):
    y = p[0] * round_clipped(clip(divide(x, p[0]), r[0], r[1]))
    rest = x.to(tl.float64) - y.to(tl.float64)
    return y, (rest * rest,)


@triton.jit
def _forward_stats(x, p, r):
    q = round_clipped(clip(divide(x, p[0]), r[0], r[1]))
    y = p[0] * q
    wide, code = x.to(tl.float64), q.to(tl.float64)
    rest = wide - y.to(tl.float64)
    return y, (wide, wide * wide, wide * code, code * code, rest * rest)


@triton.jit
def _backward(x, g, p, r):
    v = divide(x, p[0])
    q = round_clipped(clip(v, r[0], r[1]))
    inside = (v > r[2]) & (v < r[3])
    nan = nan_of(v)
    outside = tl.where(v <= r[0], r[0], r[1]) + nan
    rest = tl.where(p[1] == 0, 0.0, p[1] * (x - p[0] * q))
    own = tl.where(p[1] == 0, 0.0, -rest * q)
    return tl.where(inside, g, nan) + rest, (g * tl.where(inside, q - v, outside), own)


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    return tl.where(parameters[0] < 0, -total, total)


CHANNEL_ERROR = Method("channel_error", 3, 2, _prepare, _forward_error, _backward, _finish, sums=1)
CHANNEL_STATS = Method("channel_stats", 3, 0, _prepare, _forward_stats, None, None, sums=5)


def _forward_op(x: Any, step: Any, qmin: int, qmax: int, axis: int, eps: float, everything: bool) -> Any:
    method = CHANNEL_STATS if everything else CHANNEL_ERROR
    return run_forward_sums(method, x, (step, step, step), qmin, qmax, axis, 0, eps, shared=(True, True, True))


def _backward_op(
    grad: Any, x: Any, step: Any, grad_error: Any, qmin: int, qmax: int, axis: int, eps: float,
    boundary: int, grad_scale: float, grad_norm: int,
) -> Any:  # fmt: skip
    if grad_norm:
        grad_scale = grad_scale / math.sqrt(max(x.numel(), 1) * qmax)
    scales, shared = (grad_scale, 1.0), (True, True, False)
    parameters = (step, step, grad_error)
    dx, gradients = run_backward(CHANNEL_ERROR, grad, x, parameters, qmin, qmax, axis, 0, eps, boundary, scales, shared=shared)
    return dx, *gradients


implement_triton("channel_error_forward", _forward_op)
implement_triton("channel_error_backward", _backward_op)
