"""Noise in place of rounding, in plain PyTorch: the specification in code.

DiffQ (Defossez et al., 2021, https://arxiv.org/abs/2104.09987), NIPQ (Shin et al., CVPR 2023, https://arxiv.org/abs/2206.00820)
and plain additive uniform noise.

    z: zero-mean noise of the size of a rounding error, uniform on +-1/2, +-1/2, or N(0, 1) / 2 (fastq.reference.philox)

    "diffq", "uniform"   y = x + s * z                            s = max(|step|, eps); NaN where step is not finite
                         dx = g
                         dstep = G * sign(step) * sum g * z
    "nipq"               v = x / s;  m = qmin < v < qmax
                         y = x + s * z where m; else s * qmin where v <= qmin; else s * qmax
                         dx = g where m, else 0
                         dstep = G * sign(step) * sum g * (z where m; else qmin where v <= qmin; else qmax)

NaN in x or step gives NaN in y, dx and dstep; +-inf saturates where there is a range.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, expand, in_layout_of, sum_to_parameter
from .lsq import effective_step, gradient_scale, lsq
from .philox import HALF_STEP, noise

__all__ = ["noise_quant", "noise_quant_backward", "noise_quant_forward"]


def _parts(
    x: torch.Tensor, step: torch.Tensor, seed: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    clipped: bool, kind: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """``x`` and noise in the arithmetic dtype, the broadcast step, where noise is added, NaN, and the code of what is clipped."""
    s = expand(effective_step(step, eps), x, axis, group_size)
    z = noise(seed, x.shape, kind, HALF_STEP[kind]).to(s.dtype)
    xf = x.to(compute_dtype(x))
    v = xf / s
    nan = torch.where(v.isnan(), v, 0.0)
    m = (v > qmin) & (v < qmax) if clipped else ~v.isnan()
    return xf, z, s, m, nan, torch.where(v <= qmin, float(qmin), float(qmax)) + nan


def noise_quant_forward(
    x: torch.Tensor, step: torch.Tensor, seed: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    clipped: bool, kind: int,
) -> torch.Tensor:  # fmt: skip
    """``y``, of the dtype and layout of ``x``."""
    xf, z, s, m, _, edge = _parts(x, step, seed, qmin, qmax, axis, group_size, eps, clipped, kind)
    return in_layout_of(x, torch.where(m, xf + s * z, s * edge))


def noise_quant_backward(
    g: torch.Tensor, x: torch.Tensor, step: torch.Tensor, seed: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int,
    eps: float, clipped: bool, kind: int, grad_scale: float | str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``(dx, dstep)`` for the gradient ``g`` of ``y``."""
    _, z, _, m, nan, edge = _parts(x, step, seed, qmin, qmax, axis, group_size, eps, clipped, kind)
    gf = g.to(z.dtype)
    dx = in_layout_of(x, torch.where(m, gf, nan))
    sign = torch.where(step < 0, -1.0, 1.0).to(step.dtype)
    total = sum_to_parameter(gf * torch.where(m, z, edge), step, axis, group_size)
    return dx, total * gradient_scale(x, step, qmax, grad_scale) * sign


class NoiseQuantReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(ctx: Any, x: Any, step: Any, seed: Any, *arguments: Any) -> torch.Tensor:
        ctx.save_for_backward(x, step, seed)
        ctx.arguments = arguments
        return noise_quant_forward(x, step, seed, *arguments[:7])

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *noise_quant_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 9


def noise_quant(x: torch.Tensor, step: torch.Tensor, **keywords: Any) -> torch.Tensor:
    """Arguments, formula and errors as :func:`fastq.noise_quant`, in plain PyTorch."""
    from ..ops.noise_quant import check, evaluation, resolve  # the one set of checks; fastq.ops builds on this module

    if not keywords.get("training", True):
        return lsq(x, step, **evaluation(x, **keywords))
    seed, *arguments = resolve(x, **keywords)
    check("noise_quant", x, step, seed, *arguments[2:4])
    checks.check_values("noise_quant", x, step, None)
    return NoiseQuantReference.apply(x, step, seed, *arguments)
