"""The per-channel error of a quantizer with one step, in plain PyTorch: the specification in code.

    v = x / s ;  q = round(clip(v, qmin, qmax)) + 0.0 ;  Q = s * q      s = max(|step|, eps); NaN where step is not finite
    y = Q                                                               in the dtype of x
    error_c = sum over channel c of (x - Q)^2                           in fp64, as are sum x, sum x^2, sum x*q, sum q^2

    dx    = (g where lower < v < upper, else 0) + (2e_c * (x - Q) where e_c != 0, else 0)        e: the gradient of the error
    dstep = G * sign(step) * sum g * (q - v inside; else qmin where v <= qmin; else qmax)
          + sign(step) * sum 2e_c * (Q - x) * q                         the codes held fixed

y's part is LSQ's (Esser et al., https://arxiv.org/abs/1902.08153). The objective that weighs channels by their variance
(fastq/channels.py) is a reconstruction: its equations are not published in the sources we had.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, expand, in_layout_of
from ..ranges import mask_bounds
from .lsq import effective_step, gradient_scale

__all__ = ["channel_error", "channel_error_surrogate", "channel_stats"]


def _sums(t: torch.Tensor, axis: int) -> torch.Tensor:
    """Over everything but the channels, in fp64."""
    return t.double().movedim(axis, 0).unsqueeze(-1).flatten(1).sum(1)


def channel_error_forward(
    x: torch.Tensor, step: torch.Tensor, qmin: int, qmax: int, axis: int, eps: float, everything: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``y``, and fp64 sums of shape ``(1, C)``, the error; or ``(5, C)``: x, x^2, x*q, q^2, the error."""
    f = x.to(compute_dtype(x))
    s = expand(effective_step(step, eps), x, -1, 0)
    q = (f / s).clamp(qmin, qmax).round() + 0.0
    y = s * q
    wide, code = f.double(), q.double()
    terms = [(wide - y.double()).square()]
    if everything:
        terms = [wide, wide * wide, wide * code, code * code, *terms]
    return in_layout_of(x, y), torch.stack([_sums(t, axis) for t in terms])


def channel_error_backward(
    g: torch.Tensor, x: torch.Tensor, step: torch.Tensor, grad_error: torch.Tensor, qmin: int, qmax: int, axis: int, eps: float,
    boundary: int, grad_scale: float | str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """``dx``, and the two parts of ``dstep``: by ``y`` and by the error."""
    f = x.to(compute_dtype(x))
    s = expand(effective_step(step, eps), x, -1, 0)
    v = f / s
    q = v.clamp(qmin, qmax).round() + 0.0
    lower, upper = mask_bounds(qmin, qmax, boundary, v.dtype)
    inside = (v > lower) & (v < upper)
    nan = torch.where(v.isnan(), v, 0.0)
    gf = g.to(v.dtype)
    e2 = expand(grad_error + grad_error, x, axis, 0)
    rest = torch.where(e2 == 0, 0.0, e2 * (f - s * q))
    dx = in_layout_of(x, torch.where(inside, gf, nan) + rest)

    t = torch.where(inside, q - v, torch.where(v <= qmin, float(qmin), float(qmax)) + nan)
    sign = torch.where(step < 0, -1.0, 1.0).to(step.dtype)
    by_y = (gf * t).sum().reshape(step.shape) * gradient_scale(x, step, qmax, grad_scale) * sign
    by_error = torch.where(e2 == 0, 0.0, -rest * q).sum().reshape(step.shape) * sign
    return dx, by_y, by_error


class ChannelErrorReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, qmin: int, qmax: int, axis: int, boundary: int, grad_scale: float | str, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, step)
        ctx.arguments = (qmin, qmax, axis, eps, boundary, grad_scale)
        y, sums = channel_error_forward(x, step, qmin, qmax, axis, eps, False)
        return y, sums[0].to(compute_dtype(x))

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, e: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, step = ctx.saved_tensors
        dx, by_y, by_error = channel_error_backward(g, x, step, e, *ctx.arguments)
        return dx, by_y + by_error, *(None,) * 6


def channel_error(
    x: torch.Tensor, step: torch.Tensor, *, bits: int | tuple[int, int], signed: bool = True, narrow: bool = False, axis: int = 1,
    boundary: str = "open", grad_scale: float | str = "lsq", eps: float = 1e-8,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Arguments, formula and errors as :func:`fastq.channel_error`, in plain PyTorch."""
    from ..ops.channel_error import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    arguments = resolve("channel_error", x, bits, signed, narrow, axis, boundary, grad_scale, eps)
    check("channel_error", x, step, arguments[2])
    checks.check_values("channel_error", x, step, None)
    return ChannelErrorReference.apply(x, step, *arguments)


def channel_stats(
    x: torch.Tensor, step: torch.Tensor, *, bits: int | tuple[int, int], signed: bool = True, narrow: bool = False, axis: int = 1,
    eps: float = 1e-8,
) -> Any:  # fmt: skip
    """Arguments, formula and errors as :func:`fastq.channel_stats`, in plain PyTorch."""
    from ..ops.channel_error import check, resolve, stats_of

    qmin, qmax, axis_, *_ = resolve("channel_stats", x, bits, signed, narrow, axis, "open", 1.0, eps)
    check("channel_stats", x, step, axis_)
    checks.check_values("channel_stats", x, step, None)
    with torch.no_grad():
        return stats_of(x, axis_, channel_error_forward(x, step, qmin, qmax, axis_, eps, True)[1])


def channel_error_surrogate(
    x: torch.Tensor, step: torch.Tensor, *, qmin: int, qmax: int, axis: int = 1, residual: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The functions whose ordinary derivatives the gradients are: LSQ's ``s * (clip(v) + residual)``, and
    ``sum (x - s * codes)^2`` of each channel, ``residual`` and ``codes`` constant."""
    y = step * ((x / step).clamp(qmin, qmax) + residual)
    return y, _sums((x - step * codes).square(), axis)
