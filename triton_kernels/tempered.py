"""Noise tempering, a reconstruction, in Triton. The formula: ``fastq/reference/tempered.py``.

v, q and m as LSQ;  e = q - v where m, else 0;  k = decay * xi
noise     y = s * (q + k * e);  dx = a * g where m, else 0
          dstep = G * sign(step) * sum g * (e * (1 + k) where m; else qmin where v <= qmin; else qmax)
gradient  y = s * q;            dx = g * (a + k * |e|) where m, else 0;   dstep with k = 0
still     y = s * q;            as with k = 0
da = G_a * sum g * (x - s * q) where m
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.ops._library import implement_triton
from fastq.reference.lsq import gradient_scale
from fastq.reference.philox import UNIT_VARIANCE

from .elementwise import Method, run_backward, run_forward
from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def _prepare_still(parameters, r):
    magnitude = tl.abs(parameters[0])
    # inf - inf: inf and NaN give NaN
    return tl.where(magnitude < r[4], r[4], magnitude) + (magnitude - magnitude), parameters[1]


@triton.jit
def _prepare(parameters, r):
    s, a = _prepare_still(parameters, r)
    return s, a, parameters[2]


@triton.jit
def _forward(x, xi, p, r):
    v = divide(x, p[0])
    q = round_clipped(clip(v, r[0], r[1]))
    e = tl.where((v > r[2]) & (v < r[3]), q - v, 0.0)
    return p[0] * (q + xi * p[2] * e)


@triton.jit
def _forward_gradient(x, xi, p, r):
    return p[0] * round_clipped(clip(divide(x, p[0]), r[0], r[1]))


@triton.jit
def _forward_still(x, p, r):
    return p[0] * round_clipped(clip(divide(x, p[0]), r[0], r[1]))


@triton.jit
def _sums(x, g, v, q, inner, p, r):
    inside = (v > r[2]) & (v < r[3])
    nan = nan_of(v)
    outside = tl.where(v <= r[0], r[0], r[1]) + nan
    return g * tl.where(inside, inner, outside), tl.where(inside, g * (x - p[0] * q), nan)


@triton.jit
def _backward(x, g, xi, p, r):
    v = divide(x, p[0])
    q = round_clipped(clip(v, r[0], r[1]))
    dx = tl.where((v > r[2]) & (v < r[3]), p[1] * g, nan_of(v))
    return dx, _sums(x, g, v, q, (q - v) * (1.0 + xi * p[2]), p, r)


@triton.jit
def _backward_gradient(x, g, xi, p, r):
    v = divide(x, p[0])
    q = round_clipped(clip(v, r[0], r[1]))
    scale = p[1] + xi * p[2] * tl.abs(q - v)
    return tl.where((v > r[2]) & (v < r[3]), scale * g, nan_of(v)), _sums(x, g, v, q, q - v, p, r)


@triton.jit
def _backward_still(x, g, p, r):
    v = divide(x, p[0])
    q = round_clipped(clip(v, r[0], r[1]))
    return tl.where((v > r[2]) & (v < r[3]), p[1] * g, nan_of(v)), _sums(x, g, v, q, q - v, p, r)


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    if index == 0:
        return tl.where(parameters[0] < 0, -total, total)
    else:
        return total


TEMPERED = Method("tempered", 3, 2, _prepare, _forward, _backward, _finish, word="noise")
TEMPERED_GRADIENT = Method("tempered_gradient", 3, 2, _prepare, _forward_gradient, _backward_gradient, _finish, word="noise")
TEMPERED_STILL = Method("tempered_still", 2, 2, _prepare_still, _forward_still, _backward_still, _finish)

ONE_DECAY = (False, False, True)


def _forward_op(
    x: Any, step: Any, a: Any, seed: Any, decay: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, boundary: int,
    noise: int,
) -> Any:  # fmt: skip
    return run_forward(
        TEMPERED, x, (step, a, decay), qmin, qmax, axis, group_size, eps, boundary=boundary, words=seed, shared=ONE_DECAY,
        noise=(noise, UNIT_VARIANCE[noise]),
    )  # fmt: skip


def _backward_op(
    grad: Any, x: Any, step: Any, a: Any, seed: Any, decay: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    boundary: int, noise: int, reading: int, grad_scale: float, grad_norm: int, a_grad_scale: float,
) -> Any:  # fmt: skip
    method = (TEMPERED, TEMPERED_GRADIENT, TEMPERED_STILL)[reading]
    norm = gradient_scale(x, step, qmax, "lsq" if grad_norm == 1 else "lsq-full") if grad_norm else 1.0
    dx, gradients = run_backward(
        method, grad, x, (step, a, decay)[: method.parameters], qmin, qmax, axis, group_size, eps, boundary,
        (grad_scale * norm, a_grad_scale), words=seed, shared=ONE_DECAY, noise=(noise, UNIT_VARIANCE[noise]),
    )  # fmt: skip
    return dx, *gradients


implement_triton("tempered_forward", _forward_op)
implement_triton("tempered_backward", _backward_op)
