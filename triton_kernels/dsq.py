"""DSQ in Triton. The formula, its names and its paper: ``fastq/reference/dsq.py``.

D = max(upper - lower, eps) / L ;  v = (x - lower) / D ;  c = clip(v, 0, L) ;  y = D * round(c) + lower
f = floor(c) ;  r = c - f - 0.5 ;  S = 1 / (1 - a) ;  k = ln(2 / a - 1) ;  slope = 0.5 * S * k * sech2(k * r)
dx     = g * slope where m, else 0                                             m = 0 < v < L
dlower = sum g * ((1 - q / L) - slope * (1 - c / L) where m; else 1 where v <= 0; else 0)
dupper = sum g * ((q - slope * c) / L where m; else 0 where v <= 0; else 1)
dalpha = sum g * D * 0.5 * S * (S * tanh(k * r) - sech2(k * r) * r * 2 / (a * (2 - a))) where m
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastq.ops._library import implement_triton
from fastq.reference.dsq import ALPHA_RANGE, EPS

from .elementwise import Method, run_backward, run_forward
from .functions import log, sech2, tanh
from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def _with_softness(parameters, alpha, r):
    """lower, D, k, 0.5 S k, 0.5 S D S, 0.5 S D 2 / (a (2 - a))."""
    low = parameters[0]
    width = parameters[1] - low
    used = tl.where(width < r[4], r[4], width) + (width - width)  # inf - inf: a bound of inf or NaN gives NaN
    a = clip(alpha, r[6], r[7])
    one = a * 0 + 1  # divide takes tensors of one shape
    d = divide(used, r[1])
    k = log(divide(one * 2, a) - 1)
    half = divide(one * 0.5, 1 - a)
    return low, d, k, half * k, (d * half) * divide(one, 1 - a), (d * half) * divide(one * 2, a * (2 - a))


@triton.jit
def _prepare(parameters, r):
    return _with_softness(parameters, r[5] + parameters[0] * 0, r)


@triton.jit
def _prepare_alpha(parameters, r):
    return _with_softness(parameters, parameters[2], r)


@triton.jit
def _forward(x, p, r):
    return p[1] * round_clipped(clip(divide(x - p[0], p[1]), 0.0, r[1])) + p[0]


@triton.jit
def _gradients(x, g, p, r):
    """``dx`` and the terms of the three sums."""
    v = divide(x - p[0], p[1])
    c = clip(v, 0.0, r[1])
    q = round_clipped(c)
    inside = (v > 0) & (v < r[1])
    below = v <= 0
    nan = nan_of(v)
    place = (c - tl.where(q > c, q - 1, q)) - 0.5
    z = p[2] * place
    bell = sech2(z)
    slope = p[3] * bell
    share = divide(q - slope * c, r[1])  # of upper in what y moves; lower has the rest of what x leaves
    to_lower = tl.where(inside, g * ((1 - slope) - share), tl.where(below, g, 0.0) + nan)
    to_upper = tl.where(inside, g * share, tl.where(below, 0.0, g) + nan)
    to_alpha = tl.where(inside, g * (p[4] * tanh(z) - bell * (place * p[5])), nan)
    return tl.where(inside, g * slope, nan), to_lower, to_upper, to_alpha


@triton.jit
def _backward(x, g, p, r):
    dx, to_lower, to_upper, _ = _gradients(x, g, p, r)
    return dx, (to_lower, to_upper)


@triton.jit
def _backward_alpha(x, g, p, r):
    dx, to_lower, to_upper, to_alpha = _gradients(x, g, p, r)
    return dx, (to_lower, to_upper, to_alpha)


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    return total


DSQ = Method("dsq", 2, 2, _prepare, _forward, _backward, _finish, warps=16)
DSQ_ALPHA = Method("dsq_alpha", 3, 3, _prepare_alpha, _forward, _backward_alpha, _finish, warps=16)


def _forward_op(x: Any, lower: Any, upper: Any, levels: int, axis: int, group_size: int) -> Any:
    return run_forward(DSQ, x, (lower, upper), 0, levels, axis, group_size, EPS, constants=(0.5, *ALPHA_RANGE))


def _backward_op(
    grad: Any, x: Any, lower: Any, upper: Any, alpha: Any, constant: float, levels: int, axis: int, group_size: int
) -> Any:
    method, parameters = (DSQ, (lower, upper)) if alpha is None else (DSQ_ALPHA, (lower, upper, alpha))
    constants = (constant, *ALPHA_RANGE)
    dx, gradients = run_backward(
        method, grad, x, parameters, 0, levels, axis, group_size, EPS, 0, (1.0, 1.0, 1.0)[: method.gradients], constants=constants
    )
    return dx, *gradients, *(() if alpha is not None else (torch.empty(0, dtype=lower.dtype, device=lower.device),))


implement_triton("dsq_forward", _forward_op)
implement_triton("dsq_backward", _backward_op)
