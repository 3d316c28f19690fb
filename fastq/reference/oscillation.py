"""Oscillation tracking and iterative freezing in plain PyTorch: the specification in code.

Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086. Once per
training step, in one pass over the weights, with LSQ's ``s``, ``qmin``, ``qmax`` and rounding:

    k = frozen ? frozen_int : round(clip(w / s, qmin, qmax))
    d = sign(k - prev_int) ; o = (prev_dir * d == -1) ; f = m * o + (1 - m) * f
    where d != 0: prev_dir = d
    prev_int = k
    if threshold > 0:
        newly = f > threshold and not frozen ; frozen_int = round(ema_int) where newly ; frozen = frozen or newly
        ema_int = m * k + (1 - m) * ema_int
    w = s * frozen_int where frozen

The average is the one before its update. The first switch of all counts as no oscillation (the authors' code); with
``count_first`` it does (their paper). A NaN has no code and leaves ``k = prev_int``.

:class:`OscillationTrace` is this, in fp64, a tensor for each variable. :func:`oscillation_step_` is the same in the fixed point of
:mod:`fastq.oscillation`, by int64 arithmetic: what every kernel computes, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..granularity import expand, in_layout_of
from ..oscillation import (
    AVERAGE_BITS,
    AVERAGE_MASK,
    CODE_BITS,
    CODE_MASK,
    DIRECTION_SHIFT,
    ONE,
    OscillationState,
    rounded_average,
    toward,
)
from .lsq import _quantize, effective_step

__all__ = ["OscillationTrace", "oscillation_step_"]


@dataclass
class OscillationTrace:
    """The state machine in fp64, unpacked. ``step`` takes the codes that the weights would have if none were frozen.

    Args:
        prev_int, prev_dir, frequency, ema_int, frozen_int: float64 tensors of one shape.
        frozen: bool, of that shape.
    """

    prev_int: torch.Tensor
    prev_dir: torch.Tensor
    frequency: torch.Tensor
    ema_int: torch.Tensor
    frozen: torch.Tensor
    frozen_int: torch.Tensor

    @staticmethod
    def of(codes: torch.Tensor) -> OscillationTrace:
        """Before the first step: the codes as they are, no switch, nothing frozen."""
        k = codes.to(torch.float64)
        zero = torch.zeros_like(k)
        return OscillationTrace(k, zero, zero, k, torch.zeros_like(codes, dtype=torch.bool), zero)

    def step(self, codes: torch.Tensor, momentum: float, threshold: float = 0.0, count_first: bool = False) -> torch.Tensor:
        """One training step; gives the codes ``k`` that it saw."""
        k = torch.where(self.frozen, self.frozen_int, codes.to(torch.float64))
        d = torch.sign(k - self.prev_int)
        o = (d != 0) & (self.prev_dir != d) if count_first else self.prev_dir * d == -1
        self.frequency = momentum * o + (1 - momentum) * self.frequency
        self.prev_dir, self.prev_int = torch.where(d != 0, d, self.prev_dir), k
        if threshold > 0:
            newly = (self.frequency > threshold) & ~self.frozen
            self.frozen_int = torch.where(newly, self.ema_int.round(), self.frozen_int)
            self.frozen = self.frozen | newly
            self.ema_int = momentum * k + (1 - momentum) * self.ema_int
        return k


def first_codes(
    weight: torch.Tensor, step: torch.Tensor, qmin: int, qmax: int, axis: int, group_size: int, eps: float
) -> torch.Tensor:
    """The codes as int32, in the layout of ``torch.empty_like(weight)``; where NaN has none, the nearest to 0."""
    q = _quantize(weight, step, None, qmin, qmax, axis, group_size, eps)[1].nan_to_num(float(min(max(0, qmin), qmax)))
    return torch.empty_like(weight, dtype=torch.int32).copy_(q)


def step_in_place(
    weight: torch.Tensor, step: torch.Tensor, freeze: torch.Tensor, track: torch.Tensor, qmin: int, qmax: int,
    axis: int, group_size: int, eps: float, momentum: float, ema_momentum: float, limit: int, count_first: bool,
) -> None:  # fmt: skip
    """What the operator does: ``momentum`` (and ``ema_momentum``, 0 where nothing freezes) of fp32, ``limit`` of 24 bits."""
    q = _quantize(weight, step, None, qmin, qmax, axis, group_size, eps)[1]
    held, tracked = freeze.to(torch.int64), track.to(torch.int64)
    frozen, last, average = held < 0, (held >> DIRECTION_SHIFT) & 3, held & AVERAGE_MASK
    frequency, previous = (tracked >> CODE_BITS) & (ONE - 1), tracked & CODE_MASK

    k = torch.where(q.isnan(), previous, q.nan_to_num().to(torch.int64) - qmin)
    k = torch.where(frozen, average >> AVERAGE_BITS, k)
    switched, direction = k != previous, torch.where(k > previous, 1, 2)
    reversed_ = switched & (last != direction) & ((last != 0) | count_first)
    frequency = toward(frequency, torch.where(reversed_, ONE, 0), momentum).clamp(max=ONE - 1)
    last = torch.where(switched, direction, last)

    newly = (frequency > limit) & ~frozen
    rounded = rounded_average(average, qmin) << AVERAGE_BITS
    average = torch.where(newly, rounded, torch.where(frozen, average, toward(average, k << AVERAGE_BITS, ema_momentum)))
    frozen = frozen | newly

    sign = torch.where(frozen, -(1 << 31), 0)
    freeze.copy_(sign | (last << DIRECTION_SHIFT) | average)
    frequency = torch.where(frequency >= ONE // 2, frequency - ONE, frequency)  # the sign bit of an int32
    track.copy_((frequency << CODE_BITS) | k)
    s = expand(effective_step(step, eps), weight, axis, group_size)
    integer = ((average >> AVERAGE_BITS) + qmin).to(s.dtype)
    weight.copy_(torch.where(frozen, in_layout_of(weight, s * integer), weight))


def oscillation_step_(
    weight: torch.Tensor, step: torch.Tensor, state: OscillationState | None = None, *, bits: int | tuple[int, int],
    momentum: float = 0.01, threshold: float = 0.0, signed: bool = True, narrow: bool = False, axis: int | None = None,
    group_size: int | None = None, count_first: bool = False, eps: float = 1e-8,
) -> OscillationState:  # fmt: skip
    """Oscillation tracking in plain PyTorch: arguments, results and errors as :func:`fastq.oscillation_step_`."""
    from ..ops.oscillation import run  # the one set of checks; imported late because fastq.ops builds on this module

    return run(
        weight, step, state, bits, momentum, threshold, signed, narrow, axis, group_size, count_first, eps, backend="reference"
    )
