"""LSQ and LSQ+ in plain PyTorch: the specification in code.

Learned step size quantization, Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153, and
LSQ+, Bhalgat et al., CVPR workshops 2020, https://arxiv.org/abs/2004.09576 (the learned offset).

    v = (x - offset) / s          s = max(|step|, eps); NaN where step is not finite
    q = round(clip(v, qmin, qmax)) + 0.0
    y = s * q + offset

    m  = lower < v < upper        the straight-through mask; see fastq.ranges.mask_bounds
    dx = g where m, else 0
    dstep   = G * sign(step) * sum g * (q - v where m; else qmin where v <= qmin; else qmax)
    doffset = G_offset * sum g where not m

NaN in x or step gives NaN in y, dx and the parameter gradients; +-inf saturates.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, expand, in_layout_of, normalize_axis, numel_per_parameter, sum_to_parameter
from ..ranges import mask_bounds

__all__ = ["lsq", "lsq_backward", "lsq_forward", "lsq_surrogate"]


def effective_step(step: torch.Tensor, eps: float) -> torch.Tensor:
    """``max(|step|, eps)``; NaN where ``step`` is inf or NaN."""
    return torch.where(step.isfinite(), step.abs().clamp(min=eps), math.nan)


def gradient_scale(x: torch.Tensor, step: torch.Tensor, qmax: int, grad_scale: float | str) -> float:
    """The factor G: a number as given; ``"lsq"`` 1/sqrt(N*qmax) with N = elements per step; ``"lsq-full"`` N = numel."""
    if grad_scale == "lsq":
        return 1.0 / math.sqrt(numel_per_parameter(x, step) * qmax)
    if grad_scale == "lsq-full":
        return 1.0 / math.sqrt(max(x.numel(), 1) * qmax)
    return float(grad_scale)


def _quantize(
    x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, qmin: int, qmax: int, axis: int, group_size: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``v``, ``q`` and the broadcast step and offset, in the arithmetic dtype."""
    s = expand(effective_step(step, eps), x, axis, group_size)
    v = x.to(compute_dtype(x))
    b = None
    if offset is not None:
        b = expand(offset, x, axis, group_size)
        v = v - b
    v = v / s
    return v, v.clamp(qmin, qmax).round() + 0.0, s, b


def codes(
    x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, qmin: int, qmax: int,
    axis: int | None, group_size: int | None, eps: float,
) -> torch.Tensor:  # fmt: skip
    """The integer codes ``q`` as int32, of the shape of ``x``; NaN becomes an arbitrary code."""
    axis_, group = normalize_axis("codes", x, axis, group_size)
    return _quantize(x, step, offset, qmin, qmax, axis_, group, eps)[1].to(torch.int32)


def lsq_forward(
    x: torch.Tensor,
    step: torch.Tensor,
    offset: torch.Tensor | None,
    qmin: int,
    qmax: int,
    axis: int,
    group_size: int,
    eps: float,
) -> torch.Tensor:
    """``y``, of the dtype and layout of ``x``."""
    _, q, s, b = _quantize(x, step, offset, qmin, qmax, axis, group_size, eps)
    y = s * q
    if b is not None:
        y = y + b
    return in_layout_of(x, y)


def lsq_backward(
    g: torch.Tensor,
    x: torch.Tensor,
    step: torch.Tensor,
    offset: torch.Tensor | None,
    qmin: int,
    qmax: int,
    axis: int,
    group_size: int,
    eps: float,
    boundary: int,
    grad_scale: float | str,
    offset_grad_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``(dx, dstep, doffset)`` for the gradient ``g`` of ``y``; ``doffset`` is None without an offset."""
    v, q, _, b = _quantize(x, step, offset, qmin, qmax, axis, group_size, eps)
    lower, upper = mask_bounds(qmin, qmax, boundary, v.dtype)
    m = (v > lower) & (v < upper)
    nan = torch.where(v.isnan(), v, 0.0)
    gf = g.to(v.dtype)
    dx = in_layout_of(x, torch.where(m, gf, nan))

    t = torch.where(m, q - v, torch.where(v <= qmin, float(qmin), float(qmax)) + nan)
    sign = torch.where(step < 0, -1.0, 1.0).to(step.dtype)
    dstep = sum_to_parameter(gf * t, step, axis, group_size) * gradient_scale(x, step, qmax, grad_scale) * sign
    if b is None or offset is None:
        return dx, dstep, None
    doffset = sum_to_parameter(torch.where(m, 0.0, gf + nan), offset, axis, group_size) * offset_grad_scale
    return dx, dstep, doffset


class LSQReference(torch.autograd.Function):
    """The two functions above as one autograd node. Saves ``x`` and the parameters, nothing else of the size of ``x``."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, offset: Any, qmin: int, qmax: int, axis: int, group_size: int,
        boundary: int, grad_scale: float | str, offset_grad_scale: float, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, step, offset)
        ctx.arguments = (qmin, qmax, axis, group_size, eps, boundary, grad_scale, offset_grad_scale)
        return lsq_forward(x, step, offset, qmin, qmax, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, step, offset = ctx.saved_tensors
        return *lsq_backward(g, x, step, offset, *ctx.arguments), *(None,) * 8


def lsq(
    x: torch.Tensor,
    step: torch.Tensor,
    *,
    bits: int | tuple[int, int],
    signed: bool = True,
    narrow: bool = False,
    offset: torch.Tensor | None = None,
    axis: int | None = None,
    group_size: int | None = None,
    boundary: str = "open",
    grad_scale: float | str = "lsq",
    offset_grad_scale: float = 1.0,
    eps: float = 1e-8,
) -> torch.Tensor:
    """LSQ / LSQ+ fake-quantization in plain PyTorch: arguments, formula and errors as :func:`fastq.lsq`."""
    from ..ops.lsq import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    arguments = resolve(x, step, bits, signed, narrow, offset, axis, group_size, boundary, grad_scale, offset_grad_scale, eps)
    check("lsq", x, step, offset, arguments[2], arguments[3])
    checks.check_values("lsq", x, step, offset)
    return LSQReference.apply(x, step, offset, *arguments)


def lsq_surrogate(
    x: torch.Tensor,
    step: torch.Tensor,
    *,
    qmin: int,
    qmax: int,
    offset: torch.Tensor | None = None,
    axis: int | None = None,
    group_size: int | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The function whose ordinary derivative LSQ's gradient is: ``s * (clip(v) + r) + offset``, ``r = q - clip(v)`` constant.

    ``residual=None`` computes ``r`` from ``x`` and detaches it. Written this way it is also how LSQ is usually coded by
    hand (a detached rounding residual, autograd for the rest), and so the eager and compiled baseline of the
    benchmarks; clamp's autograd makes its mask the ``closed`` one.
    """
    axis_, group = normalize_axis("lsq_surrogate", x, axis, group_size)
    s = expand(step, x, axis_, group)
    v = x.to(compute_dtype(x))
    b = None if offset is None else expand(offset, x, axis_, group)
    if b is not None:
        v = v - b
    c = (v / s).clamp(qmin, qmax)
    r = (c.round() - c).detach() if residual is None else residual
    y = s * (c + r)
    if b is not None:
        y = y + b
    return y.to(x.dtype)
