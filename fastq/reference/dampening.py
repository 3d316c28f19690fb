"""The dampening loss in plain PyTorch: the specification in code.

Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086. It pulls every
weight to the middle of its bin, in LSQ's ``s``, ``qmin``, ``qmax`` and rounding:

    w^   = s * (round(clip(w / s, qmin, qmax)) + 0.0)            a constant, like s
    r    = clip(w, s * qmin, s * qmax) - w^
    loss = c * sum r^2            c: "sum" 1; "mean" 1 / N; "kernel" O / N, the mean of each kernel, O = w.shape[0]
    dw   = 2 * c * r

Outside the clip range ``r`` is 0, and so ``dw`` is: the mask needs no other formula. NaN gives NaN.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, expand, in_layout_of, normalize_axis
from .lsq import _quantize, effective_step

__all__ = ["REDUCTIONS", "dampening", "dampening_by_hand", "dampening_residual", "loss_factor"]

REDUCTIONS = ("sum", "mean", "kernel")


def loss_factor(w: torch.Tensor, reduction: str) -> float:
    """``c``."""
    if reduction == "sum":
        return 1.0
    kernels = w.shape[0] if reduction == "kernel" and w.dim() else 1
    return kernels / max(w.numel(), 1)


def dampening_residual(
    w: torch.Tensor, step: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``r``, of the dtype and layout of ``w``; and ``sum r^2``, of terms in the arithmetic dtype, in fp64."""
    _, q, s, _ = _quantize(w, step, None, qmin, qmax, axis, group_size, eps)
    low, high = s * qmin, s * qmax
    clipped = w.to(s.dtype)
    clipped = torch.where(clipped < low, low, clipped)  # selects keep the sign of a zero, which clamp does not
    r = torch.where(clipped > high, high, clipped) - s * q
    return in_layout_of(w, r), (r * r).to(torch.float64).sum()


class DampeningReference(torch.autograd.Function):
    """The loss and its gradient as one autograd node, which keeps ``r``."""

    @staticmethod
    def forward(ctx: Any, w: Any, step: Any, qmin: int, qmax: int, axis: int, group_size: int, factor: float, eps: float) -> Any:
        r, total = dampening_residual(w, step, qmin, qmax, axis, group_size, eps)
        ctx.save_for_backward(r)
        ctx.factor = factor
        return (total * factor).to(compute_dtype(w))

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (r,) = ctx.saved_tensors
        return scaled(r, g, ctx.factor), *(None,) * 7


def scaled(r: torch.Tensor, g: torch.Tensor, factor: float) -> torch.Tensor:
    """``dw = r * (2 * c * g)``, the product of the scalars first, in the dtype of ``g``; rounded once to that of ``w``."""
    return (r.to(g.dtype) * (g * (2 * factor))).to(r.dtype)


def dampening(
    w: torch.Tensor, step: torch.Tensor, *, bits: int | tuple[int, int], reduction: str = "kernel", signed: bool = True,
    narrow: bool = False, axis: int | None = None, group_size: int | None = None, eps: float = 1e-8,
) -> torch.Tensor:  # fmt: skip
    """The dampening loss in plain PyTorch: arguments, formula and errors as :func:`fastq.dampening`."""
    from ..ops.dampening import check, resolve  # the one set of checks; imported late because fastq.ops builds on this module

    arguments = resolve(w, bits, signed, narrow, axis, group_size, reduction, eps)
    check(w, step, *arguments[2:4])
    checks.check_values("dampening", w, step, None, of="w")
    return DampeningReference.apply(w, step.detach(), *arguments)


def dampening_by_hand(
    w: torch.Tensor, step: torch.Tensor, *, qmin: int, qmax: int, reduction: str = "kernel", axis: int | None = None,
    group_size: int | None = None, center: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The loss as it is coded by hand, left to autograd: the baseline of the benchmarks. ``center``: ``w^``, else computed."""
    where = normalize_axis("dampening_by_hand", w, axis, group_size)
    s = expand(effective_step(step.detach(), 1e-8), w, *where)
    x = w.to(s.dtype)
    center = s * (x / s).clamp(qmin, qmax).round().detach() if center is None else center
    return loss_factor(w, reduction) * (center - x.clamp(s * qmin, s * qmax)).square().sum()
