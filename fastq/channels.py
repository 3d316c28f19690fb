"""One step for a layer, judged channel by channel: weights, objective and updates on the sums of ``fastq.channel_stats``.

Reconstruction of quantization whose objective is weighed by each channel's own variance; the equations are not published in the
sources we had::

    J = (1/C) sum_c w_c sum_i (x_ci - s*q_ci)^2 ,   w_c = 1 / (N_c * (var_c + eps))
    codes fixed:  s_new = sum_c w_c sum x*q / sum_c w_c sum q^2 ;   s <- momentum * s + (1 - momentum) * s_new
    gradient:     dJ/ds = (2/C) sum_c w_c sum (s*q - x)*q

Everything here is arithmetic on C numbers in fp64, in plain PyTorch, without waiting for a device.
"""

from __future__ import annotations

import math

import torch

from .ops.channel_error import ChannelStats
from .ranges import check_number

__all__ = ["channel_objective", "channel_weights", "step_gradient", "update_step_"]


def _check_stats(op: str, stats: ChannelStats) -> None:
    if not isinstance(stats, ChannelStats):
        raise TypeError(f"{op}: stats must be a fastq.ops.channel_error.ChannelStats, got {type(stats).__name__}")


def _check_float(op: str, name: str, t: torch.Tensor) -> None:
    if not isinstance(t, torch.Tensor) or not t.is_floating_point():
        raise TypeError(f"{op}: {name} must be a float tensor, got {t.dtype if isinstance(t, torch.Tensor) else type(t).__name__}")


def _check_weights(op: str, weights: torch.Tensor, like: torch.Tensor) -> None:
    _check_float(op, "weights", weights)
    if weights.shape != like.shape:
        raise ValueError(f"{op}: weights must have shape {tuple(like.shape)}, one per channel, got {tuple(weights.shape)}")


def _check_step(op: str, step: torch.Tensor) -> None:
    if not isinstance(step, torch.Tensor) or not step.is_floating_point() or step.numel() != 1:
        kind = f"{step.dtype} {tuple(step.shape)}" if isinstance(step, torch.Tensor) else type(step).__name__
        raise TypeError(f"{op}: step must be a float tensor of one element, got {kind}")


def channel_weights(stats: ChannelStats, *, eps: float = 1e-8) -> torch.Tensor:
    """``w_c = 1 / (N_c * (var_c + eps))``, fp64 ``(C,)``: the error of every channel counted in units of its own variance.

    ``eps`` is in squared units of ``x``; it keeps a constant channel's weight finite. A reconstruction; see :mod:`fastq.channels`.
    Raises ``TypeError`` for another type of stats or ``eps``, ``ValueError`` for an ``eps`` that is not positive and finite.
    """
    _check_stats("channel_weights", stats)
    check_number("channel_weights", "eps", eps)
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"channel_weights: eps must be positive and finite, got {eps}")
    return 1.0 / (max(stats.elements, 1) * (stats.var + eps))


def channel_objective(error: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``J = (1/C) sum_c w_c error_c``, 0-d, in the dtype of ``error``, differentiable in it: a term for a loss.

    ``error``: the second result of :func:`fastq.channel_error`, or ``stats.error``; ``weights``: of :func:`channel_weights`, taken
    as constants, or ones. Raises ``TypeError`` or ``ValueError`` where they are not float tensors of one shape ``(C,)``.
    """
    _check_float("channel_objective", "error", error)
    if error.dim() != 1:
        raise ValueError(f"channel_objective: error must have shape (C,), one per channel, got {tuple(error.shape)}")
    _check_weights("channel_objective", weights, error)
    return (weights.detach().to(error.dtype) * error).sum() / max(error.numel(), 1)


def step_gradient(step: torch.Tensor, stats: ChannelStats, weights: torch.Tensor) -> torch.Tensor:
    """``dJ/ds = (2/C) sum_c w_c sum (s*q - x)*q`` for the step that ``stats`` were taken with; of the shape and dtype of ``step``.

    What autograd gives for ``channel_objective(channel_error(x, step)[1], weights)``, from the sums alone.
    Raises ``TypeError`` or ``ValueError`` where an argument does not fit.
    """
    _check_stats("step_gradient", stats)
    _check_step("step_gradient", step)
    _check_weights("step_gradient", weights, stats.qq)
    magnitude = step.detach().double().abs().reshape(())
    slope = 2.0 * (weights.double() * (magnitude * stats.qq - stats.xq)).sum() / max(stats.qq.numel(), 1)
    return torch.where(step.detach() < 0, -slope, slope).reshape(step.shape).to(step.dtype)


@torch.no_grad()
def update_step_(step: torch.Tensor, stats: ChannelStats, weights: torch.Tensor, *, momentum: float = 0.9) -> torch.Tensor:
    """Move ``step``, in place, towards the optimum of J for the codes as they are.

    ::

        s_new = sum_c w_c sum x*q / sum_c w_c sum q^2
        step <- momentum * step + (1 - momentum) * s_new

    Where ``s_new`` is not positive and finite (every code is 0, or ``x`` is NaN) the step stays. ``momentum = 0`` goes to the
    optimum at once. Returns ``step``. A reconstruction; see :mod:`fastq.channels`. Raises ``TypeError`` or ``ValueError`` where an
    argument does not fit.
    """
    _check_stats("update_step_", stats)
    _check_step("update_step_", step)
    _check_weights("update_step_", weights, stats.qq)
    if isinstance(momentum, bool) or not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
        raise ValueError(f"update_step_: momentum must be from 0 to below 1, got {momentum!r}")
    w = weights.double()
    best = (w * stats.xq).sum() / (w * stats.qq).sum()
    before = step.double()
    moved = momentum * before + (1 - momentum) * best
    step.copy_(torch.where(best.isfinite() & (best > 0), moved, before))
    return step
