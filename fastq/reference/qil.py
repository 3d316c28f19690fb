"""QIL in plain PyTorch: the specification in code.

Quantization interval learning, Jung et al., CVPR 2019, https://arxiv.org/abs/1808.05779.

    D = max(|width|, eps) ; C = center, for weights max(center, D) ; G = max(|gamma|, eps)     NaN where one is not finite
    a = |x| for weights, else x ; sign = -1 for a negative weight, else 1
    u = (a - (C - D)) / (2 D)
    hat = sign * (0 where u <= 0; 1 where u >= 1; else u^G)
    y = round(hat * L) / L                              L = 2^(b-1) - 1 for weights, else 2^b - 1

    dx = g * G * u^(G-1) / (2 D) where 0 < u < 1, else 0
    dcenter = -sum sign * dx
    dwidth  = -sign(width) * sum sign * dx * (2 u - 1)  since (a - C) / D = 2 u - 1
    dgamma  = sign(gamma) * sum g * sign * u^G * ln(u)  over 0 < u < 1, where u^G * ln(u) is finite

The gradients are those at C, D and G: a guard lets them pass. NaN in x or a parameter gives NaN in y and in every gradient
it touches; +-inf saturates.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..granularity import compute_dtype, divided, expand, in_layout_of, normalize_axis, sum_to_parameter
from ..ranges import level_count
from .lsq import effective_step

__all__ = ["qil", "qil_backward", "qil_forward", "qil_surrogate"]


def effective_interval(center: torch.Tensor, width: torch.Tensor, weight: bool, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``(C - D, 2 D)``: where the interval begins, at 0 or above for weights, and its length."""
    d = effective_step(width, eps)
    c = torch.where(center.isfinite(), center, math.nan)
    if weight:
        c = torch.where(c < d, d, c)
    return c - d, 2 * d


def _position(
    x: torch.Tensor, center: torch.Tensor, width: torch.Tensor, weight: bool, axis: int, group_size: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``u``, the sign and the broadcast ``2 D``, in the arithmetic dtype."""
    start, length = (expand(p, x, axis, group_size) for p in effective_interval(center, width, weight, eps))
    xf = x.to(compute_dtype(x))
    sign = torch.where(xf < 0, -1.0, 1.0).to(xf.dtype) if weight else torch.ones_like(xf)
    return ((xf.abs() if weight else xf) - start) / length, sign, length


def qil_forward(
    x: torch.Tensor, center: torch.Tensor, width: torch.Tensor, gamma: torch.Tensor | None,
    levels: int, weight: bool, axis: int, group_size: int, eps: float,
) -> torch.Tensor:  # fmt: skip
    """``y``, of the dtype and layout of ``x``."""
    u, sign, _ = _position(x, center, width, weight, axis, group_size, eps)
    hat = u.clamp(0, 1)
    if gamma is not None:
        exponent = expand(effective_step(gamma, eps), x, axis, group_size)
        hat = hat.pow(exponent) + (exponent - exponent)  # 1 to the power of NaN is 1
    return in_layout_of(x, divided((sign * hat * levels).round() + 0.0, levels))


def qil_backward(
    g: torch.Tensor, x: torch.Tensor, center: torch.Tensor, width: torch.Tensor, gamma: torch.Tensor | None,
    levels: int, weight: bool, axis: int, group_size: int, eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """``(dx, dcenter, dwidth, dgamma)`` for the gradient ``g`` of ``y``; ``dgamma`` is None without a gamma."""
    u, sign, length = _position(x, center, width, weight, axis, group_size, eps)
    m = (u > 0) & (u < 1)
    nan = torch.where(u.isnan(), u, 0.0)
    gf = g.to(u.dtype)
    power, slope = u, torch.ones_like(u)
    if gamma is not None:
        exponent = expand(effective_step(gamma, eps), x, axis, group_size)
        nan = nan + torch.where(exponent.isnan(), exponent, 0.0)
        power = u.pow(exponent)
        slope = exponent * power / u
    h = torch.where(m, gf * slope / length, nan)
    dcenter = -sum_to_parameter(sign * h, center, axis, group_size)
    dwidth = sum_to_parameter(torch.where(m, sign * h * (2 * u - 1), nan), width, axis, group_size)
    dwidth = dwidth * torch.where(width < 0, 1.0, -1.0).to(width.dtype)
    dx = in_layout_of(x, h)
    if gamma is None:
        return dx, dcenter, dwidth, None
    dgamma = sum_to_parameter(torch.where(m, gf * (sign * power * u.log()), nan), gamma, axis, group_size)
    return dx, dcenter, dwidth, dgamma * torch.where(gamma < 0, -1.0, 1.0).to(gamma.dtype)


class QILReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, center: Any, width: Any, gamma: Any, levels: int, weight: bool, axis: int, group_size: int, eps: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, center, width, gamma)
        ctx.arguments = (levels, weight, axis, group_size, eps)
        return qil_forward(x, center, width, gamma, levels, weight, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *qil_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 5


def qil(
    x: torch.Tensor,
    center: torch.Tensor,
    width: torch.Tensor,
    gamma: torch.Tensor | None = None,
    *,
    bits: int,
    weight: bool,
    axis: int | None = None,
    group_size: int | None = None,
    eps: float = 1e-8,
) -> torch.Tensor:
    """QIL in plain PyTorch: arguments, formula and errors as :func:`fastq.qil`."""
    from ..ops.qil import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    arguments = resolve(x, gamma, bits, weight, axis, group_size, eps)
    check(x, center, width, gamma, *arguments[1:4])
    return QILReference.apply(x, center, width, gamma, *arguments)


def qil_surrogate(
    x: torch.Tensor,
    center: torch.Tensor,
    width: torch.Tensor,
    gamma: torch.Tensor | None = None,
    *,
    bits: int,
    weight: bool,
    axis: int | None = None,
    group_size: int | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The function whose ordinary derivative QIL's gradient is: ``hat + r``, ``r = y - hat`` constant (None: that of ``x``).

    For intervals with ``center >= width > 0``, which no guard changes. This is how QIL is coded by hand; ``u`` is kept a
    little above 0 there, for ``pow``'s derivative is infinite at 0.
    """
    levels = level_count("qil_surrogate", bits, signed=weight)
    where = normalize_axis("qil_surrogate", x, axis, group_size)
    c, d = expand(center, x, *where), expand(width, x, *where)
    xf = x.to(compute_dtype(x))
    u = ((xf.abs() if weight else xf) - (c - d)) / (2 * d)
    if gamma is None:
        hat = u.clamp(0, 1)
    else:
        hat = torch.where(u > 0, u.clamp(1e-30, 1).pow(expand(gamma, x, *where)), 0.0)
    hat = hat * xf.sign() if weight else hat
    if residual is None:
        residual = ((hat * levels).round() / levels - hat).detach()
    return (hat + residual).to(x.dtype)
