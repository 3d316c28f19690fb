"""Schedules of what changes while a network is trained: pure functions of the training step, with no state of their own."""

from __future__ import annotations

import math

__all__ = ["dampening_weight", "freezing_threshold", "tempering_decay"]


def _progress(op: str, step: float, total_steps: float, delay: float) -> float:
    """How far the part of the run after ``delay`` has come, from 0 to 1; below 0 during the delay."""
    if not total_steps > 0:
        raise ValueError(f"{op}: total_steps must be positive, got {total_steps}")
    if not 0 <= step <= total_steps:
        raise ValueError(f"{op}: step must lie in [0, total_steps] = [0, {total_steps}], got {step}")
    if not 0 <= delay < 1:
        raise ValueError(f"{op}: delay must lie in [0, 1), a fraction of the run, got {delay}")
    return (step - delay * total_steps) / ((1 - delay) * total_steps)


def _finite(op: str, name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{op}: {name} must be finite and not negative, got {value}")


def freezing_threshold(step: float, total_steps: float, *, first: float, last: float, delay: float = 0.25) -> float:
    """The threshold of iterative freezing: 0 (nothing freezes) at first, then from ``first`` to ``last`` along a cosine.

    With ``T = total_steps`` and ``r = (step - delay * T) / ((1 - delay) * T)``::

        0                                                       while step < delay * T
        last + (first - last) / 2 * (1 + cos(pi * r))           from there

    Args:
        step: of the optimizer (or epoch, in the unit of ``total_steps``), 0 to ``total_steps``.
        total_steps: of the run, T.
        first, last: oscillations per training step above which a weight freezes; the paper has 0.04 and 0.01 for
            MobileNetV2 with weights of 3 bits.
        delay: the fraction of the run before anything freezes.

    Raises ``ValueError`` for a step beyond the run, a delay outside [0, 1) or a threshold that is negative or not finite.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.

    Example:
        >>> freezing_threshold(100, 100, first=0.04, last=0.01)
        0.01
    """
    _finite("freezing_threshold", "first", first)
    _finite("freezing_threshold", "last", last)
    r = _progress("freezing_threshold", step, total_steps, delay)
    return 0.0 if r < 0 else last + (first - last) / 2 * (1 + math.cos(math.pi * r))


def dampening_weight(step: float, total_steps: float, *, last: float, delay: float = 0.25) -> float:
    """The weight (lambda) of the dampening loss: 0 at first, then up to ``last`` along a cosine.

    With ``T = total_steps`` and ``r = (step - delay * T) / ((1 - delay) * T)``::

        0                                     while step < delay * T
        last / 2 * (1 - cos(pi * r))          from there

    Args and errors: as :func:`freezing_threshold`; ``last`` multiplies :func:`fastq.dampening`.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.
    """
    _finite("dampening_weight", "last", last)
    r = _progress("dampening_weight", step, total_steps, delay)
    return 0.0 if r < 0 else last / 2 * (1 - math.cos(math.pi * r))


def tempering_decay(step: int, total: int, *, initial: float = 1.0, rate: float = 5.0) -> float:
    """``initial * exp(-rate * step / total)``: the ``decay`` of training step ``step`` (from 0) of ``total``.

    A reconstruction, as :func:`fastq.tempered` is: ``initial`` (lambda_0, from 0 to 1) and ``rate`` (kappa, not negative; 5 leaves
    0.7 % at the end) are ours. Past the end it stays at its last value. Raises ``ValueError`` for what is out of range.
    """
    if not 1 <= total < math.inf:
        raise ValueError(f"tempering_decay: total must be finite and at least 1 step, got {total}")
    if not step >= 0:
        raise ValueError(f"tempering_decay: step must be at least 0, got {step}")
    if not 0 <= initial <= 1:
        raise ValueError(f"tempering_decay: initial must be from 0 to 1, got {initial}")
    if not 0 <= rate < math.inf:
        raise ValueError(f"tempering_decay: rate must be finite and not negative, got {rate}")
    return initial * math.exp(-rate * min(step, total) / total)
