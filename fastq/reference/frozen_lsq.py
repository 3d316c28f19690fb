"""LSQ of a weight some of whose elements are frozen at an integer, in plain PyTorch: the specification in code.

Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086 (iterative
freezing), on LSQ, Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153. With the state of :func:`fastq.oscillation_step_`:

    v = x / s                     s = max(|step|, eps)
    q = frozen ? frozen_int : round(clip(v, qmin, qmax)) + 0.0
    y = s * q

    dx    = 0 where frozen; else g where lower < v < upper, else 0
    dstep = G * sign(step) * sum g * (frozen_int where frozen; else LSQ's)

A frozen x is not looked at, NaN or not.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, expand, in_layout_of, normalize_axis, sum_to_parameter
from ..oscillation import AVERAGE_BITS, AVERAGE_MASK, OscillationState
from ..ranges import mask_bounds
from .lsq import _quantize, gradient_scale

__all__ = ["frozen_lsq", "frozen_lsq_backward", "frozen_lsq_forward", "frozen_lsq_surrogate"]


def _frozen(freeze: torch.Tensor, qmin: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a weight is frozen, and its integer there (elsewhere some other number)."""
    return freeze < 0, (((freeze & AVERAGE_MASK) >> AVERAGE_BITS) + qmin).to(dtype)


def frozen_lsq_forward(
    x: torch.Tensor, step: torch.Tensor, freeze: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float
) -> torch.Tensor:
    """``y``, of the dtype and layout of ``x``."""
    _, q, s, _ = _quantize(x, step, None, qmin, qmax, axis, group_size, eps)
    frozen, integer = _frozen(freeze, qmin, s.dtype)
    return in_layout_of(x, s * torch.where(frozen, integer, q))


def frozen_lsq_backward(
    g: torch.Tensor, x: torch.Tensor, step: torch.Tensor, freeze: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int,
    eps: float, boundary: int, grad_scale: float | str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``(dx, dstep)`` for the gradient ``g`` of ``y``."""
    v, q, s, _ = _quantize(x, step, None, qmin, qmax, axis, group_size, eps)
    frozen, integer = _frozen(freeze, qmin, s.dtype)
    lower, upper = mask_bounds(qmin, qmax, boundary, v.dtype)
    m = (v > lower) & (v < upper)
    nan = torch.where(v.isnan(), v, 0.0)
    gf = g.to(v.dtype)
    dx = in_layout_of(x, torch.where(frozen, 0.0, torch.where(m, gf, nan)))
    t = torch.where(m, q - v, torch.where(v <= qmin, float(qmin), float(qmax)) + nan)
    t = torch.where(frozen, integer, t)
    sign = torch.where(step < 0, -1.0, 1.0).to(step.dtype)
    return dx, sum_to_parameter(gf * t, step, axis, group_size) * gradient_scale(x, step, qmax, grad_scale) * sign


class FrozenLSQReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, freeze: Any, qmin: int, qmax: int, axis: int, group_size: int,
        boundary: int, grad_scale: float | str, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, step, freeze)
        ctx.arguments = (qmin, qmax, axis, group_size, eps, boundary, grad_scale)
        return frozen_lsq_forward(x, step, freeze, qmin, qmax, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return *frozen_lsq_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 8


def frozen_lsq(
    x: torch.Tensor, step: torch.Tensor, state: OscillationState, *, bits: int | tuple[int, int], signed: bool = True,
    narrow: bool = False, axis: int | None = None, group_size: int | None = None, boundary: str = "open",
    grad_scale: float | str = "lsq", eps: float = 1e-8,
) -> torch.Tensor:  # fmt: skip
    """Freeze-aware LSQ in plain PyTorch: arguments, formula and errors as :func:`fastq.frozen_lsq`."""
    from ..ops.frozen_lsq import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    arguments = resolve(x, state, bits, signed, narrow, axis, group_size, boundary, grad_scale, eps)
    check(x, step, state.freeze, *arguments[2:4])
    checks.check_values("frozen_lsq", x, step, None)
    return FrozenLSQReference.apply(x, step, state.freeze, *arguments)


def frozen_lsq_surrogate(
    x: torch.Tensor, step: torch.Tensor, state: OscillationState, *, axis: int | None = None, group_size: int | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The function whose derivative the gradient is: ``s * (frozen ? frozen_int : clip(v) + r)``, ``r = q - clip(v)`` constant.

    ``residual=None`` computes ``r`` from ``x`` and detaches it: how the formula is coded by hand, and the benchmarks' baseline.
    """
    axis_, group = normalize_axis("frozen_lsq_surrogate", x, axis, group_size)
    s = expand(step, x, axis_, group)
    c = (x.to(compute_dtype(x)) / s).clamp(state.qmin, state.qmax)
    r = (c.round() - c).detach() if residual is None else residual
    return (s * torch.where(state.frozen, state.frozen_codes.to(s.dtype), c + r)).to(x.dtype)
