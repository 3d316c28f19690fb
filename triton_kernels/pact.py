"""PACT in Triton. The formula, its names and its papers: ``fastq/reference/pact.py``.

A = max(|alpha|, eps) ; s = A / L ; v = x / s
y = s * q,  q = round(clip(v, 0, L)), two-sided 2 * round((clip(v, -L, L) + L) / 2) - L
dx     = g where 0 < x < A, else 0; two-sided -A < x < A
dalpha = sign(alpha) / L * sum g * (q - v (plain: 0) inside; L where x >= A; else 0, two-sided -L)
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
    magnitude = tl.abs(parameters[0])
    a = tl.where(magnitude < r[4], r[4], magnitude) + (magnitude - magnitude)  # inf - inf: inf and NaN give NaN
    return (a, divide(a, a * 0 + r[1]))


@triton.jit
def _code(v, r):
    return round_clipped(clip(v, r[0], r[1]))


@triton.jit
def _odd_code(v, r):
    return round_clipped((clip(v, r[0], r[1]) + r[1]) * 0.5) * 2.0 - r[1]


@triton.jit
def _forward(x, p, r):
    return p[1] * _code(divide(x, p[1]), r)


@triton.jit
def _forward_two_sided(x, p, r):
    return p[1] * _odd_code(divide(x, p[1]), r)


@triton.jit
def _backward(x, g, p, r):
    v = divide(x, p[1])
    nan = nan_of(v)
    inside = (x > 0.0) & (x < p[0])
    outside = tl.where(x <= 0.0, nan, g * r[1] + nan)
    return tl.where(inside, g, nan), (tl.where(inside, g * (_code(v, r) - v), outside),)


@triton.jit
def _backward_plain(x, g, p, r):
    nan = nan_of(divide(x, p[1]))
    inside = (x > 0.0) & (x < p[0])
    return tl.where(inside, g, nan), (tl.where(x >= p[0], g * r[1], 0.0) + nan,)


@triton.jit
def _backward_two_sided(x, g, p, r):
    v = divide(x, p[1])
    nan = nan_of(v)
    inside = (x > -p[0]) & (x < p[0])
    outside = tl.where(x <= -p[0], g * r[0], g * r[1]) + nan
    return tl.where(inside, g, nan), (tl.where(inside, g * (_odd_code(v, r) - v), outside),)


@triton.jit
def _backward_two_sided_plain(x, g, p, r):
    nan = nan_of(divide(x, p[1]))
    inside = (x > -p[0]) & (x < p[0])
    outside = tl.where(x <= -p[0], g * r[0], g * r[1]) + nan
    return tl.where(inside, g, nan), (tl.where(inside, nan, outside),)


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    return tl.where(parameters[0] < 0, -total, total)


PACT = Method("pact", 1, 1, _prepare, _forward, _backward, _finish)
PACT_PLAIN = Method("pact_plain", 1, 1, _prepare, _forward, _backward_plain, _finish)
PACT_TWO_SIDED = Method("pact_two_sided", 1, 1, _prepare, _forward_two_sided, _backward_two_sided, _finish)
PACT_TWO_SIDED_PLAIN = Method("pact_two_sided_plain", 1, 1, _prepare, _forward_two_sided, _backward_two_sided_plain, _finish)
_METHODS = {
    (True, False): PACT,
    (False, False): PACT_PLAIN,
    (True, True): PACT_TWO_SIDED,
    (False, True): PACT_TWO_SIDED_PLAIN,
}


def _forward_op(x: Any, alpha: Any, levels: int, two_sided: bool, axis: int, group_size: int, eps: float) -> Any:
    return run_forward(_METHODS[True, two_sided], x, (alpha,), -levels if two_sided else 0, levels, axis, group_size, eps)


def _backward_op(
    grad: Any, x: Any, alpha: Any, levels: int, two_sided: bool, axis: int, group_size: int, eps: float, calibrated: bool
) -> Any:
    method, low = _METHODS[calibrated, two_sided], -levels if two_sided else 0
    dx, gradients = run_backward(method, grad, x, (alpha,), low, levels, axis, group_size, eps, 0, (1.0 / levels,))
    return dx, gradients[0]


implement_triton("pact_forward", _forward_op)
implement_triton("pact_backward", _backward_op)
