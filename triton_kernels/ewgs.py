"""EWGS in Triton. The formula, its names and its paper: ``fastq/reference/ewgs.py``.

W = max(|upper - lower|, eps) ; sign = -1 where upper < lower, else 1 ; t = (x - lower) / W ; c = clip(t, 0, 1)
y = round(c * L) / L
dx     = h / W inside, else 0        h = g * (1 + delta * sign(g) * (c - y)), inside = lower edge < t < upper edge
dlower = sum dx * (sign * c - 1)
dupper = -sign * sum dx * c
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_backward, run_forward
from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def _prepare(parameters, r):
    difference = parameters[1] - parameters[0]
    magnitude = tl.abs(difference)
    width = tl.where(magnitude < r[4], r[4], magnitude) + (magnitude - magnitude)  # inf - inf: inf and NaN give NaN
    return (parameters[0], width, tl.where(difference < 0.0, -1.0, 1.0).to(difference.dtype))


@triton.jit
def _level(c, r):
    return divide(round_clipped(c * r[5]), c * 0 + r[5])


@triton.jit
def _forward(x, p, r):
    return _level(clip(divide(x - p[0], p[1]), r[0], r[1]), r)


@triton.jit
def _backward(x, g, p, r):
    t = divide(x - p[0], p[1])
    c = clip(t, r[0], r[1])
    scaled = r[6] * (c - _level(c, r))
    h = divide(g * (1.0 + tl.where(g < 0.0, -scaled, scaled)), p[1])
    inside = (t > r[2]) & (t < r[3])
    nan = nan_of(t)
    dlower = tl.where(inside, h * (p[2] * c - 1.0), nan)
    dupper = tl.where(inside, h * (p[2] * c), nan)
    return tl.where(inside, h, nan), (dlower, dupper)


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    if index == 1:
        return -total
    else:
        return total


EWGS = Method("ewgs", 2, 2, _prepare, _forward, _backward, _finish)


def _forward_op(x: Any, lower: Any, upper: Any, levels: int, axis: int, group_size: int, eps: float) -> Any:
    return run_forward(EWGS, x, (lower, upper), 0, 1, axis, group_size, eps, constants=(float(levels), 0.0))


def _backward_op(
    grad: Any, x: Any, lower: Any, upper: Any, levels: int, axis: int, group_size: int, eps: float, boundary: int, delta: float
) -> Any:
    dx, gradients = run_backward(
        EWGS, grad, x, (lower, upper), 0, 1, axis, group_size, eps, boundary, (1.0, 1.0), constants=(float(levels), delta)
    )
    return dx, *gradients


implement_triton("ewgs_forward", _forward_op)
implement_triton("ewgs_backward", _backward_op)
