"""First values of a step and an offset, from the tensor they will quantize.

===========  =======================================================================================================
``"lsq"``    ``s = 2 * mean|x| / sqrt(qmax)`` (Esser et al., https://arxiv.org/abs/1902.08153)
``"lsq+"``   without an offset ``s = max(|mu - 3 sigma|, |mu + 3 sigma|) * 2 / (qmax - qmin + 1)``, for b bits the paper's division
             by ``2**(b-1)``; with one, ``(s, offset)`` that minimise ``||y - x||^2``, searched from the candidates of "mse"
             (Bhalgat et al., https://arxiv.org/abs/2004.09576)
``"mse"``    the best of 100 steps, equally spaced up to the range of ``x``, by ``||y - x||^2`` (as oscillations-qat does)
===========  =======================================================================================================

All work on ``x`` as ``[parameters, elements]``. Searches look at 65536 elements per parameter at most, evenly spaced. Where ``x``
holds nothing to go by (all zeros, empty, not finite) the step is 1, never 0 or NaN.
"""

from __future__ import annotations

import math

import torch

__all__ = ["INITIALIZERS", "initial_values"]

INITIALIZERS = ("lsq", "lsq+", "mse")
CANDIDATES = 100
SAMPLE = 65536


def as_rows(x: torch.Tensor, axis: int | None, group_size: int | None) -> torch.Tensor:
    """``x`` as one row of elements for each parameter."""
    if group_size is not None:
        return x.reshape(-1, group_size)
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], x.numel() // max(x.shape[axis], 1))


def _error(rows: torch.Tensor, step: torch.Tensor, offset: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    s, b = step[:, None], offset[:, None]
    return ((((rows - b) / s).clamp(qmin, qmax).round() * s + b) - rows).square().mean(1)


def _search(rows: torch.Tensor, qmin: int, qmax: int, with_offset: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of ``CANDIDATES`` clip ranges, then (with an offset) least squares for fixed codes while that helps."""
    low, high = rows.amin(1), rows.amax(1)
    zero = torch.zeros_like(low)
    widest = (high - low) / (qmax - qmin) if with_offset else torch.maximum(high / qmax, low / qmin if qmin < 0 else zero)
    known = widest > 0
    widest = torch.where(known, widest, torch.ones_like(widest))
    best_step, best_offset, best = widest, low - qmin * widest if with_offset else zero, torch.full_like(low, math.inf)
    for k in range(1, CANDIDATES + 1):
        step = widest * (k / CANDIDATES)
        offset = (low + high) / 2 - (qmin + qmax) / 2 * step if with_offset else zero
        error = _error(rows, step, offset, qmin, qmax)
        better = error < best
        best_step, best_offset = torch.where(better, step, best_step), torch.where(better, offset, best_offset)
        best = torch.where(better, error, best)
    for _ in range(20 if with_offset else 0):
        q = ((rows - best_offset[:, None]) / best_step[:, None]).clamp(qmin, qmax).round()
        q_mean, x_mean = q.mean(1), rows.mean(1)
        spread = (q - q_mean[:, None]).square().mean(1)
        step = ((q - q_mean[:, None]) * (rows - x_mean[:, None])).mean(1) / spread
        step = torch.where((spread > 0) & (step > 0), step, best_step)
        offset = x_mean - step * q_mean
        error = _error(rows, step, offset, qmin, qmax)
        better = error < best
        if not bool(better.any()):
            break
        best_step, best_offset = torch.where(better, step, best_step), torch.where(better, offset, best_offset)
        best = torch.where(better, error, best)
    # One value throughout, or nothing above 0 for an unsigned range: every step is as good, and the smallest would do harm later.
    constant = low - min(max(qmin, 0), qmax) if with_offset else zero
    return torch.where(known, best_step, 1.0), torch.where(known, best_offset, constant)


@torch.no_grad()
def initial_values(
    x: torch.Tensor, how: str, qmin: int, qmax: int, *, axis: int | None = None, group_size: int | None = None, offset: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(step, offset)``, one element per parameter, float32; the offset is 0 unless ``offset``."""
    if how not in INITIALIZERS:
        raise ValueError(f"init must be one of {', '.join(INITIALIZERS)}, got {how!r}")
    rows = as_rows(x.detach(), axis, group_size).float()
    zero = rows.new_zeros(rows.shape[0])
    if rows.numel() == 0:
        return torch.ones_like(zero), zero
    if how == "lsq" or (how == "lsq+" and not offset):
        if how == "lsq":
            step = 2 * rows.abs().mean(1) / math.sqrt(qmax)
        else:
            mean, deviation = rows.mean(1), rows.std(1, correction=0)
            step = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs()) * 2 / (qmax - qmin + 1)
        start = zero
    else:
        step, start = _search(rows[:, :: -(-rows.shape[1] // SAMPLE)], qmin, qmax, offset)
    good = (step > 0) & step.isfinite() & start.isfinite()
    return torch.where(good, step, 1.0), torch.where(good, start, 0.0)
