"""The dampening loss in plain PyTorch: the specification in code.

Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086. It pulls every
weight to the middle of its bin, in LSQ's ``s``, ``qmin``, ``qmax`` and rounding:

    w^   = s * (round(clip(w / s, qmin, qmax)) + 0.0)            a constant, like s
    r    = clip(w, s * qmin, s * qmax) - w^
    loss = c * sum r^2            c: "sum" 1; "mean" 1 / N; "kernel" O / N, the mean of each kernel, O = w.shape[0]
    dw   = r * (g * (2 * c))                                     r in the dtype of w, the product in fp32 (fp64)

Outside the clip range ``r`` is 0, and so ``dw`` is: the mask needs no other formula. NaN gives NaN.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..granularity import compute_dtype, expand, in_layout_of, normalize_axis
from .lsq import _quantize, effective_step

__all__ = ["REDUCTIONS", "dampening", "dampening_backward", "dampening_by_hand", "dampening_forward", "loss_factor"]

REDUCTIONS = ("sum", "mean", "kernel")


def loss_factor(w: torch.Tensor, reduction: str) -> float:
    """``c``."""
    if reduction == "sum":
        return 1.0
    kernels = w.shape[0] if reduction == "kernel" and w.dim() else 1
    return kernels / max(w.numel(), 1)


def _residual(w: torch.Tensor, step: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float) -> torch.Tensor:
    """``r`` in the arithmetic dtype."""
    _, q, s, _ = _quantize(w, step, None, qmin, qmax, axis, group_size, eps)
    low, high = s * qmin, s * qmax
    clipped = w.to(s.dtype)
    clipped = torch.where(clipped < low, low, clipped)  # selects keep the sign of a zero, which clamp does not
    return torch.where(clipped > high, high, clipped) - s * q


def dampening_forward(
    w: torch.Tensor, step: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float
) -> torch.Tensor:
    """``sum r^2``, of terms in the arithmetic dtype, in fp64; of shape (1, 1)."""
    r = _residual(w, step, qmin, qmax, axis, group_size, eps)
    return (r * r).to(torch.float64).sum().reshape(1, 1)


def dampening_backward(
    g: torch.Tensor,
    w: torch.Tensor,
    step: torch.Tensor,
    qmin: int,
    qmax: int,
    axis: int,
    group_size: int,
    eps: float,
    factor: float,
) -> torch.Tensor:
    """``dw``, of the dtype and layout of ``w``, for the gradient ``g`` of the loss, which is in the arithmetic dtype."""
    r = in_layout_of(w, _residual(w, step, qmin, qmax, axis, group_size, eps))
    return (r.to(g.dtype) * (g * (2 * factor))).to(w.dtype)


class DampeningReference(torch.autograd.Function):
    """The two functions above as one autograd node."""

    @staticmethod
    def forward(ctx: Any, w: Any, step: Any, qmin: int, qmax: int, axis: int, group_size: int, factor: float, eps: float) -> Any:
        ctx.save_for_backward(w, step)
        ctx.arguments = (qmin, qmax, axis, group_size, eps, factor)
        return (dampening_forward(w, step, qmin, qmax, axis, group_size, eps) * factor).to(compute_dtype(w)).reshape(())

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return dampening_backward(g, *ctx.saved_tensors, *ctx.arguments), *(None,) * 7


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
