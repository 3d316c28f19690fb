"""Many tensors: a launch for each, by the kernels of one (``lsq.py``, ``dampening.py``, ``oscillation.py``)."""

from __future__ import annotations

from typing import Any

from fastq.ops._library import implement_triton

from .dampening import backward_op as dampening_backward
from .dampening import forward_op as dampening_forward
from .lsq import backward_op, forward_op
from .oscillation import step_op


def _forward_op(x: Any, step: Any, qmin: Any, qmax: Any, axis: Any, group_size: Any, eps: float) -> Any:
    each = zip(x, step, qmin, qmax, axis, group_size, strict=True)
    return [forward_op(w, s, None, low, high, a, group, eps) for w, s, low, high, a, group in each]


def _backward_op(
    grad: Any, x: Any, step: Any, qmin: Any, qmax: Any, axis: Any, group_size: Any, eps: float,
    boundary: int, grad_scale: float, grad_norm: int,
) -> Any:  # fmt: skip
    each = zip(grad, x, step, qmin, qmax, axis, group_size, strict=True)
    found = [
        backward_op(g, w, s, None, low, high, a, group, eps, boundary, grad_scale, grad_norm, 1.0)
        for g, w, s, low, high, a, group in each
    ]
    return [dx for dx, _, _ in found] + [dstep for _, dstep, _ in found]


implement_triton("foreach_lsq_forward", _forward_op)
implement_triton("foreach_lsq_backward", _backward_op)


def _dampening_forward_op(w: Any, step: Any, qmin: Any, qmax: Any, axis: Any, group_size: Any, eps: float) -> Any:
    return [dampening_forward(*one, eps) for one in zip(w, step, qmin, qmax, axis, group_size, strict=True)]


def _dampening_backward_op(
    grad: Any, w: Any, step: Any, qmin: Any, qmax: Any, axis: Any, group_size: Any, eps: float, factor: Any
) -> Any:
    each = zip(grad, w, step, qmin, qmax, axis, group_size, factor, strict=True)
    return [dampening_backward(*one[:-1], eps, one[-1]) for one in each]


def _oscillation_op(
    weight: Any, step: Any, freeze: Any, track: Any, qmin: Any, qmax: Any, axis: Any, group_size: Any, *same: Any
) -> None:
    for one in zip(weight, step, freeze, track, qmin, qmax, axis, group_size, strict=True):
        step_op(*one, *same)


implement_triton("foreach_dampening_forward", _dampening_forward_op)
implement_triton("foreach_dampening_backward", _dampening_backward_op)
implement_triton("foreach_oscillation_step", _oscillation_op)
