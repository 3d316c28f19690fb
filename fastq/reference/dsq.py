"""DSQ in plain PyTorch: the specification in code.

Differentiable soft quantization, Gong et al., ICCV 2019, https://arxiv.org/abs/1908.05033: a staircase whose steps are pieces of
tanh takes the place of the straight-through gradient. ``a`` in (0, 1) says how soft: the gap that a piece of tanh leaves at the
ends of its step, closed by the factor S. The gradients are a reconstruction: the equations for the bounds and ``a`` were not
published in the sources we had; they are the chain rule on the soft staircase.

    D = max(upper - lower, eps) / L          L = 2**bits - 1; NaN where a bound is not finite
    v = (x - lower) / D ;  c = clip(v, 0, L) ;  f = floor(c) ;  r = c - f - 0.5
    phi = f + 0.5 + 0.5 * S * tanh(k * r)    S = 1 / (1 - a) ;  k = ln(2 / a - 1) ;  phi(f) = f, phi(f + 1) = f + 1
    q = round(phi) = round(c)                tanh keeps the sign of r, so that the codes need no tanh
    y = D * q + lower

    m      = 0 < v < L
    slope  = dphi/dv = 0.5 * S * k * sech2(k * r)
    dx     = g * slope where m, else 0
    dlower = sum g * ((1 - q / L) - slope * (1 - c / L) where m; else 1 where v <= 0; else 0)
    dupper = sum g * ((q - slope * c) / L where m; else 0 where v <= 0; else 1)
    dalpha = sum g * D * 0.5 * S * (S * tanh(k * r) - sech2(k * r) * r * 2 / (a * (2 - a))) where m

These are the derivatives of ``lower + D * (phi + rho)`` with ``rho = q - phi`` held constant. ``a`` is ``alpha`` brought into
:data:`ALPHA_RANGE`; its gradient is that at the value used. NaN in x or a parameter gives NaN; +-inf saturates.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, expand, in_layout_of, normalize_axis, sum_to_parameter

__all__ = ["ALPHA_RANGE", "EPS", "dsq", "dsq_backward", "dsq_forward", "dsq_surrogate"]

#: The smallest width ``upper - lower`` that is used.
EPS = 1e-8
#: Softness that is used: below, the staircase is the hard one; above, it is a straight line and ``S`` takes the digits of its
#: terms.
ALPHA_RANGE = (1e-4, 0.99)


def step_width(lower: torch.Tensor, upper: torch.Tensor, levels: int) -> torch.Tensor:
    """``D``; NaN where a bound is inf or NaN."""
    width = upper - lower
    return (width.clamp(min=EPS) + (width - width)) / levels


def effective_alpha(alpha: torch.Tensor | float, lower: torch.Tensor) -> torch.Tensor:
    """``a``: a tensor of the dtype of ``lower``."""
    return torch.as_tensor(alpha, dtype=lower.dtype, device=lower.device).clamp(*ALPHA_RANGE)


def _quantize(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int, axis: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``v``, ``c``, ``q`` and the broadcast ``D`` and ``lower``, in the arithmetic dtype."""
    d = expand(step_width(lower, upper, levels), x, axis, group_size)
    low = expand(lower, x, axis, group_size)
    v = (x.to(compute_dtype(x)) - low) / d
    c = v.clamp(0, levels)
    return v, c, c.round() + 0.0, d, low


def codes(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int, axis: int, group_size: int) -> torch.Tensor:
    """The integer codes ``q`` as int32, of the shape of ``x``; NaN becomes an arbitrary code."""
    return _quantize(x, lower, upper, levels, axis, group_size)[2].to(torch.int32)


def sech2(z: torch.Tensor) -> torch.Tensor:
    """``1 / cosh(z)**2`` to a few ulp, where ``1 - tanh(z)**2`` loses its digits as tanh goes to 1."""
    e = (z.abs() * -2).exp()
    return 4 * e / ((1 + e) * (1 + e))


def dsq_forward(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int, axis: int, group_size: int) -> torch.Tensor:
    """``y``, of the dtype and layout of ``x``; ``levels`` is L."""
    _, _, q, d, low = _quantize(x, lower, upper, levels, axis, group_size)
    return in_layout_of(x, d * q + low)


def dsq_backward(
    g: torch.Tensor, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, alpha: torch.Tensor | float,
    levels: int, axis: int, group_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """``(dx, dlower, dupper, dalpha)`` for the gradient ``g`` of ``y``; ``dalpha`` is None where ``alpha`` is a number."""
    v, c, q, d, _ = _quantize(x, lower, upper, levels, axis, group_size)
    a = effective_alpha(alpha, lower)
    a = expand(a, x, axis, group_size) if isinstance(alpha, torch.Tensor) else a
    s, k = 1 / (1 - a), (2 / a - 1).log()
    m = (v > 0) & (v < levels)
    nan = torch.where(v.isnan(), v, 0.0)
    below = v <= 0
    gf = g.to(v.dtype)

    r = (c - torch.where(q > c, q - 1, q)) - 0.5
    bell = sech2(k * r)
    slope = 0.5 * s * k * bell
    dx = in_layout_of(x, torch.where(m, gf * slope, nan))
    to_lower = torch.where(m, gf * ((1 - q / levels) - slope * (1 - c / levels)), torch.where(below, gf, 0.0) + nan)
    to_upper = torch.where(m, gf * ((q - slope * c) / levels), torch.where(below, 0.0, gf) + nan)
    dlower = sum_to_parameter(to_lower, lower, axis, group_size)
    dupper = sum_to_parameter(to_upper, upper, axis, group_size)
    if not isinstance(alpha, torch.Tensor):
        return dx, dlower, dupper, None
    inner = s * (k * r).tanh() - bell * (r * (2 / (a * (2 - a))))
    to_alpha = torch.where(m, gf * (d * (0.5 * s) * inner), nan)
    return dx, dlower, dupper, sum_to_parameter(to_alpha, alpha, axis, group_size)


class DSQReference(torch.autograd.Function):
    """The two functions above as one autograd node. Saves ``x`` and the parameters, nothing else of the size of ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Any, lower: Any, upper: Any, alpha: Any, levels: int, axis: int, group_size: int) -> torch.Tensor:
        learned = isinstance(alpha, torch.Tensor)
        ctx.save_for_backward(x, lower, upper, alpha if learned else None)
        ctx.arguments = (None if learned else alpha, levels, axis, group_size)
        return dsq_forward(x, lower, upper, levels, axis, group_size)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, lower, upper, alpha = ctx.saved_tensors
        constant, *arguments = ctx.arguments
        return *dsq_backward(g, x, lower, upper, constant if alpha is None else alpha, *arguments), None, None, None


def dsq(
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    *,
    bits: int,
    alpha: torch.Tensor | float,
    axis: int | None = None,
    group_size: int | None = None,
) -> torch.Tensor:
    """DSQ in plain PyTorch: arguments, formula and errors as :func:`fastq.dsq`."""
    from ..ops.dsq import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    levels, axis_, group = resolve(x, bits, alpha, axis, group_size)
    check("dsq", x, lower, upper, alpha, axis_, group)
    checks.check_dsq("dsq", x, lower, upper, alpha)
    return DSQReference.apply(x, lower, upper, alpha, levels, axis_, group)


def dsq_surrogate(
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    alpha: torch.Tensor | float,
    *,
    bits: int,
    axis: int | None = None,
    group_size: int | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The function whose ordinary derivative DSQ's gradient is: ``lower + D * (phi + rho)``, ``rho = round(phi) - phi`` constant.

    ``residual=None`` computes ``rho`` from ``x`` and detaches it: how DSQ is coded by hand, and so the eager and compiled baseline
    of the benchmarks.
    """
    axis_, group = normalize_axis("dsq_surrogate", x, axis, group_size)
    levels = 2**bits - 1
    low, high = expand(lower, x, axis_, group), expand(upper, x, axis_, group)
    a = expand(alpha, x, axis_, group) if isinstance(alpha, torch.Tensor) else torch.tensor(alpha, dtype=lower.dtype)
    d = (high - low) / levels
    c = ((x.to(compute_dtype(x)) - low) / d).clamp(0, levels)
    f = c.detach().floor()
    phi = f + 0.5 + 0.5 / (1 - a) * torch.tanh((2 / a - 1).log() * (c - f - 0.5))
    rho = (phi.round() - phi).detach() if residual is None else residual
    return (low + d * (phi + rho)).to(x.dtype)
