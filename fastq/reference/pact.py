"""PACT and gradient-calibrated PACT in plain PyTorch: the specification in code.

PACT, Choi et al., 2018, https://arxiv.org/abs/1805.06085, and the calibrated gradient of SAT, Jin et al., 2019,
https://arxiv.org/abs/1912.10207.

    A = max(|alpha|, eps) ; s = A / L ; v = x / s                  NaN where alpha is not finite
    y  = s * q       q = round(clip(v, 0, L))                      two-sided: q = 2 * round((clip(v, -L, L) + L) / 2) - L
    m  = 0 < x < A                                                 two-sided: -A < x < A
    dx = g where m, else 0
    dalpha = sign(alpha) * sum g * ((q - v) / L where m; 1 where x >= A; else 0, two-sided -1)     calibrated
    dalpha = sign(alpha) * sum g * (0 where m; 1 where x >= A; else 0, two-sided -1)               plain

NaN in x or alpha gives NaN in y, dx and dalpha; +-inf saturates.
"""

from __future__ import annotations

from typing import Any

import torch

from ..granularity import compute_dtype, divided, expand, in_layout_of, normalize_axis, sum_to_parameter
from ..ranges import level_count
from .lsq import effective_step

__all__ = ["pact", "pact_backward", "pact_forward", "pact_surrogate"]


def _quantize(
    x: torch.Tensor, alpha: torch.Tensor, levels: int, two_sided: bool, axis: int, group_size: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``v``, ``q`` and the broadcast clip and step, in the arithmetic dtype."""
    a = expand(effective_step(alpha, eps), x, axis, group_size)
    s = divided(a, levels)
    v = x.to(compute_dtype(x)) / s
    if two_sided:
        q = 2 * ((v.clamp(-levels, levels) + levels) / 2).round() - levels
    else:
        q = v.clamp(0, levels).round() + 0.0
    return v, q, a, s


def codes(
    x: torch.Tensor, alpha: torch.Tensor, levels: int, two_sided: bool, axis: int, group_size: int, eps: float
) -> torch.Tensor:
    """The integer codes as int32, of the shape of ``x``: ``q``, two-sided ``(q - 1) / 2``; NaN becomes an arbitrary code."""
    q = _quantize(x, alpha, levels, two_sided, axis, group_size, eps)[1]
    return ((q - 1) / 2 if two_sided else q).to(torch.int32)


def pact_forward(
    x: torch.Tensor, alpha: torch.Tensor, levels: int, two_sided: bool, axis: int, group_size: int, eps: float
) -> torch.Tensor:
    """``y``, of the dtype and layout of ``x``."""
    _, q, _, s = _quantize(x, alpha, levels, two_sided, axis, group_size, eps)
    return in_layout_of(x, s * q)


def pact_backward(
    g: torch.Tensor,
    x: torch.Tensor,
    alpha: torch.Tensor,
    levels: int,
    two_sided: bool,
    axis: int,
    group_size: int,
    eps: float,
    calibrated: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(dx, dalpha)`` for the gradient ``g`` of ``y``."""
    v, q, a, _ = _quantize(x, alpha, levels, two_sided, axis, group_size, eps)
    xf, gf = x.to(v.dtype), g.to(v.dtype)
    low = -a if two_sided else torch.zeros_like(a)
    m = (xf > low) & (xf < a)
    nan = torch.where(v.isnan(), v, 0.0)
    dx = in_layout_of(x, torch.where(m, gf, nan))
    below = gf * -float(levels) + nan if two_sided else nan
    t = torch.where(m, gf * (q - v) if calibrated else nan, torch.where(xf <= low, below, gf * float(levels) + nan))
    sign = torch.where(alpha < 0, -1.0, 1.0).to(alpha.dtype)
    # 1 / L on the sum and not on its terms: these are then LSQ's, and so is the sum but for that factor.
    return dx, sum_to_parameter(t, alpha, axis, group_size) * (1.0 / levels) * sign


class PACTReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, alpha: Any, levels: int, two_sided: bool, axis: int, group_size: int, eps: float, calibrated: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.arguments = (levels, two_sided, axis, group_size, eps, calibrated)
        return pact_forward(x, alpha, levels, two_sided, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *pact_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 6


def pact(
    x: torch.Tensor,
    alpha: torch.Tensor,
    *,
    bits: int,
    calibrated: bool = True,
    two_sided: bool = False,
    axis: int | None = None,
    group_size: int | None = None,
    eps: float = 1e-8,
) -> torch.Tensor:
    """PACT in plain PyTorch: arguments, formula and errors as :func:`fastq.pact`."""
    from ..ops.pact import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    arguments = resolve(x, bits, calibrated, two_sided, axis, group_size, eps)
    check(x, alpha, arguments[2], arguments[3])
    return PACTReference.apply(x, alpha, *arguments)


def pact_surrogate(
    x: torch.Tensor,
    alpha: torch.Tensor,
    *,
    bits: int,
    calibrated: bool = True,
    two_sided: bool = False,
    axis: int | None = None,
    group_size: int | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The function whose ordinary derivative PACT's gradient is, ``r = q - clip(v)`` constant (None: that of ``x``).

    Calibrated ``s * (clip(v) + r)``, LSQ's; plain ``clip(x) + s * r`` with ``s`` a constant as well, which is how PACT is
    coded by hand: clip, then round straight through. clamp's autograd makes the mask a closed one.
    """
    levels = level_count("pact_surrogate", bits)
    a = expand(alpha, x, *normalize_axis("pact_surrogate", x, axis, group_size))
    s = a / levels
    c = (x.to(compute_dtype(x)) / s).clamp(-levels if two_sided else 0, levels)
    if residual is None:
        q = 2 * ((c + levels) / 2).round() - levels if two_sided else c.round()
        residual = (q - c).detach()
    return (s * c + (s if calibrated else s.detach()) * residual).to(x.dtype)
