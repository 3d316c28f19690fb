"""QIL in Triton. The formula, its names and its paper: ``fastq/reference/qil.py``.

D = max(|width|, eps) ; C = center, for weights max(center, D) ; G = max(|gamma|, eps)
u = (a - (C - D)) / (2 D), a = |x| and sign = -1 where x < 0 for weights ; hat = sign * (0; 1 where u >= 1; u^G inside)
y = round(hat * L) / L
dx      = g * G * u^(G-1) / (2 D) inside 0 < u < 1, else 0
dcenter = -sum sign * dx ; dwidth = -sign(width) * sum sign * dx * (2 u - 1)
dgamma  = sign(gamma) * sum g * sign * u^G * ln(u)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_backward, run_forward
from .functions import log, power
from .numeric import clip, divide, nan_of, round_clipped


@triton.jit
def _guarded(p, eps):
    magnitude = tl.abs(p)
    return tl.where(magnitude < eps, eps, magnitude) + (magnitude - magnitude)  # inf - inf: inf and NaN give NaN


@triton.jit
def _prepare(parameters, r):
    half = _guarded(parameters[1], r[4])
    return (parameters[0] + (parameters[0] - parameters[0]) - half, 2.0 * half)


@triton.jit
def _prepare_weight(parameters, r):
    half = _guarded(parameters[1], r[4])
    center = parameters[0] + (parameters[0] - parameters[0])
    return (tl.where(center < half, half, center) - half, 2.0 * half)


@triton.jit
def _prepare_power(parameters, r):
    start, length = _prepare_weight(parameters, r)
    return (start, length, _guarded(parameters[2], r[4]))


@triton.jit
def _level(hat, r):
    return divide(round_clipped(hat * r[5]), hat * 0 + r[5])


@triton.jit
def _forward(x, p, r):
    return _level(clip(divide(x - p[0], p[1]), r[0], r[1]), r)


@triton.jit
def _forward_weight(x, p, r):
    hat = clip(divide(tl.abs(x) - p[0], p[1]), r[0], r[1])
    return _level(tl.where(x < 0.0, -hat, hat), r)


@triton.jit
def _forward_power(x, p, r):
    u = divide(tl.abs(x) - p[0], p[1])
    hat = power(tl.where(u > 0.0, clip(u, r[0], r[1]), 1.0), p[2])
    hat = tl.where(u <= 0.0, 0.0, tl.where(u >= 1.0, 1.0, hat)) + (nan_of(u) + nan_of(p[2]))
    return _level(tl.where(x < 0.0, -hat, hat), r)


@triton.jit
def _backward(x, g, p, r):
    u = divide(x - p[0], p[1])
    inside = (u > 0.0) & (u < 1.0)
    nan = nan_of(u)
    h = tl.where(inside, divide(g, p[1]), nan)
    return h, (h, tl.where(inside, h * (2.0 * u - 1.0), nan))


@triton.jit
def _backward_weight(x, g, p, r):
    u = divide(tl.abs(x) - p[0], p[1])
    inside = (u > 0.0) & (u < 1.0)
    nan = nan_of(u)
    h = tl.where(inside, divide(g, p[1]), nan)
    signed = tl.where(x < 0.0, -h, h)
    return h, (signed, tl.where(inside, signed * (2.0 * u - 1.0), nan))


@triton.jit
def _backward_power(x, g, p, r):
    u = divide(tl.abs(x) - p[0], p[1])
    inside = (u > 0.0) & (u < 1.0)
    nan = nan_of(u) + nan_of(p[2])
    within = tl.where(inside, u, 1.0)
    raised = power(within, p[2])
    h = tl.where(inside, divide(g * divide(p[2] * raised, u), p[1]), nan)
    signed = tl.where(x < 0.0, -h, h)
    dgamma = tl.where(inside, g * (tl.where(x < 0.0, -raised, raised) * log(within)), nan)
    return h, (signed, tl.where(inside, signed * (2.0 * u - 1.0), nan), dgamma)


@triton.jit
def _finish(index: tl.constexpr, total, parameters):
    if index == 0:
        return -total
    elif index == 1:
        return tl.where(parameters[1] < 0, total, -total)
    else:
        return tl.where(parameters[2] < 0, -total, total)


QIL_ACTIVATION = Method("qil_activation", 2, 2, _prepare, _forward, _backward, _finish)
QIL_WEIGHT = Method("qil_weight", 2, 2, _prepare_weight, _forward_weight, _backward_weight, _finish)
QIL_POWER = Method("qil_power", 3, 3, _prepare_power, _forward_power, _backward_power, _finish, warps=16)


def _chosen(center: Any, width: Any, gamma: Any, weight: bool) -> tuple[Method, tuple[Any, ...]]:
    if gamma is not None:
        return QIL_POWER, (center, width, gamma)
    return QIL_WEIGHT if weight else QIL_ACTIVATION, (center, width)


def _forward_op(
    x: Any, center: Any, width: Any, gamma: Any, levels: int, weight: bool, axis: int, group_size: int, eps: float
) -> Any:
    method, parameters = _chosen(center, width, gamma, weight)
    return run_forward(method, x, parameters, 0, 1, axis, group_size, eps, constants=(float(levels),))


def _backward_op(
    grad: Any, x: Any, center: Any, width: Any, gamma: Any, levels: int, weight: bool, axis: int, group_size: int, eps: float
) -> Any:
    method, parameters = _chosen(center, width, gamma, weight)
    scales, constants = (1.0,) * method.gradients, (float(levels),)
    dx, gradients = run_backward(method, grad, x, parameters, 0, 1, axis, group_size, eps, 0, scales, constants=constants)
    return dx, *gradients, *(() if gamma is not None else (torch.empty(0, dtype=center.dtype, device=center.device),))


implement_triton("qil_forward", _forward_op)
implement_triton("qil_backward", _backward_op)
