"""EWGS in plain PyTorch: the specification in code.

Element-wise gradient scaling, Lee et al., CVPR 2021, https://arxiv.org/abs/2104.00903.

    W = max(|upper - lower|, eps) ; sign = -1 where upper < lower, else 1          NaN where upper - lower is not finite
    t = (x - lower) / W ; c = clip(t, 0, 1)
    y = round(c * L) / L                             a level between 0 and 1

    m  = 0 < t < 1                                   boundary "closed": 0 <= t <= 1
    h  = g * (1 + delta * sign(g) * (c - y))
    dx = h / W where m, else 0
    dupper = -sign * sum dx * c                      over m
    dlower = sum dx * (sign * c - 1)                 over m

NaN in x or a bound gives NaN in y, dx and the bounds' gradients; +-inf saturates.
"""

from __future__ import annotations

from typing import Any

import torch

from ..granularity import compute_dtype, divided, expand, in_layout_of, normalize_axis, sum_to_parameter
from ..ranges import level_count, mask_bounds
from .lsq import effective_step

__all__ = ["ewgs", "ewgs_backward", "ewgs_forward", "ewgs_surrogate"]


def _position(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, axis: int, group_size: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``t`` and the broadcast ``W``, in the arithmetic dtype."""
    width = expand(effective_step(upper - lower, eps), x, axis, group_size)
    return (x.to(compute_dtype(x)) - expand(lower, x, axis, group_size)) / width, width


def codes(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int, axis: int, group_size: int, eps: float
) -> torch.Tensor:
    """The integer codes ``y * L`` as int32, of the shape of ``x``; NaN becomes an arbitrary code."""
    t, _ = _position(x, lower, upper, axis, group_size, eps)
    return (t.clamp(0, 1) * levels).round().to(torch.int32)


def ewgs_forward(
    x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int, axis: int, group_size: int, eps: float
) -> torch.Tensor:
    """``y``, of the dtype and layout of ``x``."""
    t, _ = _position(x, lower, upper, axis, group_size, eps)
    return in_layout_of(x, divided((t.clamp(0, 1) * levels).round() + 0.0, levels))


def ewgs_backward(
    g: torch.Tensor,
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    levels: int,
    axis: int,
    group_size: int,
    eps: float,
    boundary: int,
    delta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(dx, dlower, dupper)`` for the gradient ``g`` of ``y``."""
    t, width = _position(x, lower, upper, axis, group_size, eps)
    c = t.clamp(0, 1)
    low, high = mask_bounds(0, 1, boundary, t.dtype)
    m = (t > low) & (t < high)
    gf = g.to(t.dtype)
    scaled = delta * (c - divided((c * levels).round() + 0.0, levels))
    h = gf * (1.0 + torch.where(gf < 0, -scaled, scaled)) / width
    h = torch.where(m, h, torch.where(t.isnan(), t, 0.0))
    sign = expand(torch.where(upper - lower < 0, -1.0, 1.0).to(lower.dtype), x, axis, group_size)
    dlower = torch.where(m, h * (sign * c - 1), h)
    dupper = torch.where(m, h * (sign * c), h)
    dx = in_layout_of(x, h)
    return dx, sum_to_parameter(dlower, lower, axis, group_size), -sum_to_parameter(dupper, upper, axis, group_size)


class EWGSReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, lower: Any, upper: Any, levels: int, axis: int, group_size: int, eps: float, boundary: int, delta: float
    ) -> torch.Tensor:
        ctx.save_for_backward(x, lower, upper)
        ctx.arguments = (levels, axis, group_size, eps, boundary, delta)
        return ewgs_forward(x, lower, upper, levels, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *ewgs_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 6


def ewgs(
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    *,
    bits: int,
    delta: float,
    axis: int | None = None,
    group_size: int | None = None,
    boundary: str = "open",
    eps: float = 1e-8,
) -> torch.Tensor:
    """EWGS in plain PyTorch: arguments, formula and errors as :func:`fastq.ewgs`."""
    from ..ops.ewgs import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    arguments = resolve(x, bits, delta, axis, group_size, boundary, eps)
    check(x, lower, upper, arguments[1], arguments[2])
    return EWGSReference.apply(x, lower, upper, *arguments)


def ewgs_surrogate(
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    *,
    bits: int,
    axis: int | None = None,
    group_size: int | None = None,
    factor: torch.Tensor | float = 1.0,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The function whose ordinary derivative EWGS's gradient is: ``factor * c + r``, both held constant.

    ``factor = 1 + delta * sign(g) * (c - y)`` depends on the gradient, so the caller gives it; 1 is ``delta = 0``, the
    straight-through estimator. ``residual=None`` is the ``r`` that makes the value ``y``.
    """
    levels = level_count("ewgs_surrogate", bits)
    where = normalize_axis("ewgs_surrogate", x, axis, group_size)
    low, high = expand(lower, x, *where), expand(upper, x, *where)
    c = ((x.to(compute_dtype(x)) - low) / (high - low)).clamp(0, 1)
    if residual is None:
        residual = ((c * levels).round() / levels - factor * c).detach()
    return (factor * c + residual).to(x.dtype)
