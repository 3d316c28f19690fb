"""Noise in place of rounding, clipped to a range (NIPQ) or not (DiffQ, additive uniform noise), in Triton.

The formula: ``fastq/reference/noise_quant.py``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.ops._library import implement_triton
from fastq.reference.lsq import gradient_scale
from fastq.reference.philox import HALF_STEP

from .elementwise import Method, run_backward, run_forward
from .numeric import divide, nan_of


@triton.jit
def _prepare(parameters, r):
    magnitude = tl.abs(parameters[0])
    return (tl.where(magnitude < r[4], r[4], magnitude) + (magnitude - magnitude),)  # inf - inf: inf and NaN give NaN


@triton.jit
def _forward(x, z, p, r):
    return x + p[0] * z


@triton.jit
def _backward(x, g, z, p, r):
    nan = nan_of(x + p[0])
    return tl.where(nan == nan, g, nan), (g * (z + nan),)


@triton.jit
def _forward_clipped(x, z, p, r):
    v = divide(x, p[0])
    edge = p[0] * tl.where(v <= r[0], r[0], r[1]) + nan_of(v)
    return tl.where((v > r[0]) & (v < r[1]), x + p[0] * z, edge)


@triton.jit
def _backward_clipped(x, g, z, p, r):
    v = divide(x, p[0])
    inside = (v > r[0]) & (v < r[1])
    nan = nan_of(v)
    outside = tl.where(v <= r[0], r[0], r[1]) + nan
    return tl.where(inside, g, nan), (g * tl.where(inside, z, outside),)


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    return tl.where(parameters[0] < 0, -total, total)


NOISE_QUANT = Method("noise_quant", 1, 1, _prepare, _forward, _backward, _finish, word="noise")
NOISE_QUANT_CLIPPED = Method("noise_quant_clipped", 1, 1, _prepare, _forward_clipped, _backward_clipped, _finish, word="noise")


def _forward_op(
    x: Any, step: Any, seed: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, clipped: bool, noise: int
) -> Any:
    method = NOISE_QUANT_CLIPPED if clipped else NOISE_QUANT
    return run_forward(method, x, (step,), qmin, qmax, axis, group_size, eps, words=seed, noise=(noise, HALF_STEP[noise]))


def _backward_op(
    grad: Any, x: Any, step: Any, seed: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, clipped: bool,
    noise: int, grad_scale: float, grad_norm: int,
) -> Any:  # fmt: skip
    method = NOISE_QUANT_CLIPPED if clipped else NOISE_QUANT
    norm = gradient_scale(x, step, qmax, "lsq" if grad_norm == 1 else "lsq-full") if grad_norm else 1.0
    dx, gradients = run_backward(
        method, grad, x, (step,), qmin, qmax, axis, group_size, eps, 0, (grad_scale * norm,), words=seed,
        noise=(noise, HALF_STEP[noise]),
    )  # fmt: skip
    return dx, gradients[0]


implement_triton("noise_quant_forward", _forward_op)
implement_triton("noise_quant_backward", _backward_op)
