"""LSQ of a weight some of whose elements are frozen, in Triton. The formula: ``fastq/reference/frozen_lsq.py``.

q = frozen ? frozen_int : round(clip(x / s, qmin, qmax));   y = s * q
dx    = 0 where frozen; else LSQ's
dstep = G * sign(step) * sum g * (frozen_int where frozen; else LSQ's)
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_backward, run_forward
from .lsq import finish, gradients, prepare, scale_of_gradient
from .numeric import clip, divide, round_clipped
from .oscillation import AVERAGE, AVERAGE_BITS, FROZEN


@triton.jit
def _integer(word, r):
    return ((word & AVERAGE) >> AVERAGE_BITS).to(tl.int32).to(r[0].dtype) + r[0]


@triton.jit
def _forward(x, word, p, r):
    q = round_clipped(clip(divide(x, p[0]), r[0], r[1]))
    return p[0] * tl.where((word >> FROZEN) != 0, _integer(word, r), q)


@triton.jit
def _backward(x, g, word, p, r):
    frozen = (word >> FROZEN) != 0
    dx, step_term, _ = gradients(divide(x, p[0]), g, r)
    return tl.where(frozen, 0.0, dx), (tl.where(frozen, g * _integer(word, r), step_term),)


FROZEN_LSQ = Method("frozen_lsq", 1, 1, prepare, _forward, _backward, finish, word="memory")


def _forward_op(x: Any, step: Any, freeze: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float) -> Any:
    return run_forward(FROZEN_LSQ, x, (step,), qmin, qmax, axis, group_size, eps, words=freeze)


def _backward_op(
    grad: Any, x: Any, step: Any, freeze: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    boundary: int, grad_scale: float, grad_norm: int,
) -> Any:  # fmt: skip
    scales = (scale_of_gradient(grad_scale, grad_norm, x, step, qmax),)
    dx, sums = run_backward(FROZEN_LSQ, grad, x, (step,), qmin, qmax, axis, group_size, eps, boundary, scales, words=freeze)
    return dx, sums[0]


implement_triton("frozen_lsq_forward", _forward_op)
implement_triton("frozen_lsq_backward", _backward_op)
