"""Oscillation tracking and iterative freezing: the public function and its operator's schema. There is nothing to differentiate."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..oscillation import OscillationState, check_range, check_state, frequency_limit, momentum_in_fp32
from ..ranges import check_eps, check_flag, integer_range
from ..reference.oscillation import first_codes
from ..reference.oscillation import step_in_place as reference_step
from . import _library

__all__ = ["oscillation_step_"]


def _fake(
    weight: Any, step: Any, freeze: Any, track: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    momentum: float, ema_momentum: float, limit: int, count_first: bool,
) -> None:  # fmt: skip
    check_input("oscillation_step_", weight)
    check_parameter("oscillation_step_", "step", step, weight, axis, group_size)


_library.define(
    "oscillation_step",
    "(Tensor(a!) weight, Tensor step, Tensor(b!) freeze, Tensor(c!) track, int qmin, int qmax, int axis, int group_size, "
    "float eps, float momentum, float ema_momentum, int limit, bool count_first) -> ()",
    _fake,
)

_operators: dict[str, Any] = {
    "reference": reference_step,
    "cpu": torch.ops.fastq.oscillation_step.default,
    "cuda": torch.ops.fastq.oscillation_step.default,  # one operator; the dispatcher knows the device
    "triton": torch.ops.fastq_triton.oscillation_step.default,
}


def check_separate(op: str, weight: torch.Tensor) -> None:
    """No two elements of ``weight`` are one in memory: ``ValueError``."""
    if any(size > 1 and stride == 0 for size, stride in zip(weight.shape, weight.stride(), strict=True)):
        raise ValueError(f"{op}: weight is written in place and must not overlap itself, got strides {tuple(weight.stride())}")


def run(
    weight: torch.Tensor, step: torch.Tensor, state: OscillationState | None, bits: Any, momentum: float, threshold: float,
    signed: bool, narrow: bool, axis: int | None, group_size: int | None, count_first: bool, eps: float, backend: str | None = None,
) -> OscillationState:  # fmt: skip
    """:func:`oscillation_step_` on ``backend``, or on the one that serves ``weight``."""
    op = "oscillation_step_"
    check_input(op, weight, "weight")
    axis_, group = normalize_axis(op, weight, axis, group_size, "weight")
    qmin, qmax = integer_range(op, bits, signed, narrow)
    check_range(op, qmin, qmax)
    check_parameter(op, "step", step, weight, axis_, group, "weight")
    factor, limit = momentum_in_fp32(op, momentum), frequency_limit(op, threshold)
    check_eps(op, eps)
    check_flag(op, "count_first", count_first)
    check_separate(op, weight)
    if state is not None:
        check_state(op, state, weight, "weight", qmin, qmax)
    checks.check_values(op, weight, step, None, of="weight")
    with torch.no_grad():
        if state is None:
            return OscillationState.of(first_codes(weight, step, qmin, qmax, axis_, group, eps), qmin, qmax)
        backend = backend or dispatch.select(weight)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        _operators[backend](
            weight, step, state.freeze, state.track, qmin, qmax, axis_, group, eps,
            factor, factor if threshold > 0 else 0.0, limit, count_first,
        )  # fmt: skip
    return state


def oscillation_step_(
    weight: torch.Tensor,
    step: torch.Tensor,
    state: OscillationState | None = None,
    *,
    bits: int | tuple[int, int],
    momentum: float = 0.01,
    threshold: float = 0.0,
    signed: bool = True,
    narrow: bool = False,
    axis: int | None = None,
    group_size: int | None = None,
    count_first: bool = False,
    eps: float = 1e-8,
) -> OscillationState:
    """Track how often each weight's code turns back, and freeze those that do so too often: one pass, in place.

    Call it once per training step, after the optimizer's, and never in evaluation. With LSQ's codes and
    ``s = max(|step|, eps)``, for each weight::

        k = frozen ? frozen_int : round(clip(w / s, qmin, qmax))
        d = sign(k - prev_int);   o = 1 where d reverses the last switch, else 0
        f = momentum * o + (1 - momentum) * f;   prev_int = k;   prev_dir = d where d != 0
        if threshold > 0:
            where f > threshold: frozen, at frozen_int = round(ema_int)
            ema_int = momentum * k + (1 - momentum) * ema_int
        w = s * frozen_int where frozen

    What is frozen is the integer: :func:`fastq.frozen_lsq` goes on computing ``s * frozen_int`` while ``s`` is trained, and
    this function writes that into ``weight``. Frozen weights stay frozen. The state takes 8 bytes a weight, in fixed point
    (:mod:`fastq.oscillation` says which and why), and has the same bits on every backend.

    Args:
        weight: float32, bfloat16, float16 or float64, any shape and strides (a parameter too; no gradient is recorded).
            Changed in place where frozen.
        step: as in :func:`fastq.lsq`: float32 (float64 for float64 ``weight``), one element per tensor, ``(C,)`` with ``axis``,
            ``weight.shape[:-1] + (K // group_size,)`` with ``group_size``. Not changed.
        state: what the last call returned, changed in place; None makes one from the weight as it is, with nothing frozen.
        bits: 1 to 8 (1 with ``signed=False``), or ``(qmin, qmax)`` of at most 256 codes.
        momentum: of the frequency and of the average, above 0 and below 1 (used rounded to fp32; at least 2**-24). The authors'
            class has 0.01, their recipes 0.001.
        threshold: freeze what oscillates more often than this; 0 freezes nothing and leaves the average as it is.
            :func:`fastq.schedules.freezing_threshold` gives the paper's schedule.
        signed, narrow, axis, group_size, eps: as in :func:`fastq.lsq`.
        count_first: count the first switch of all as an oscillation, as the paper has it; the authors' code does not.

    Returns:
        The state: ``state.frozen`` (bool), ``state.frequency`` (float32; the paper's tables call a weight oscillating above
        0.005), ``state.frozen_codes`` and ``state.codes`` (int32), all of the shape of ``weight``.

    Not finite: a NaN in ``weight`` or ``step`` has no code; that weight counts as one that did not move. Infinities saturate.

    Raises:
        TypeError: ``weight`` or ``step`` has another dtype or layout than it should; ``state`` is no state.
        ValueError: a shape, axis, group size or range does not fit; ``state`` has another shape, device or range;
            ``momentum`` or ``threshold`` lies outside; ``weight`` overlaps itself.
        RuntimeError: the backend asked for cannot serve.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.

    Example:
        >>> state = fastq.oscillation_step_(weight, step, bits=4)
        >>> for batch in data:
        ...     train(batch)
        ...     fastq.oscillation_step_(weight, step, state, bits=4, momentum=0.001, threshold=0.02)
        >>> state.frozen.float().mean()
    """
    return run(weight, step, state, bits, momentum, threshold, signed, narrow, axis, group_size, count_first, eps)
