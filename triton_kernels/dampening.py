"""The dampening loss in Triton. The formula: ``fastq/reference/dampening.py``.

r = clip(w, s * qmin, s * qmax) - s * round(clip(w / s, qmin, qmax));   the loss is c * sum r^2
dw = r * (g * 2c), where r has been rounded to the type of w
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_forward, run_forward_sums
from .lsq import prepare
from .numeric import clip, divide, round_clipped


@triton.jit
def _prepare(parameters, r):
    s = prepare(parameters, r)[0]
    return s, s * r[0], s * r[1]


@triton.jit
def _prepare_gradient(parameters, r):
    s = prepare(parameters, r)[0]
    return s, s * r[0], s * r[1], parameters[1] * r[5]


@triton.jit
def _residual(w, p, r):
    return clip(w, p[1], p[2]) - p[0] * round_clipped(clip(divide(w, p[0]), r[0], r[1]))


@triton.jit
def _forward(w, p, r):
    residual = _residual(w, p, r)
    return residual, ((residual * residual).to(tl.float64),)


DAMPENING = Method("dampening", 1, 0, _prepare, _forward, None, None, sums=1, output=False)
DAMPENING_GRADIENT = Method("dampening_gradient", 2, 0, _prepare_gradient, _residual, None, None, scaled=True)


def forward_op(w: Any, step: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float) -> Any:
    return run_forward_sums(DAMPENING, w, (step,), qmin, qmax, axis, group_size, eps, total=True)[1]


def backward_op(grad: Any, w: Any, step: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, factor: float) -> Any:
    where = (qmin, qmax, axis, group_size, eps)
    return run_forward(DAMPENING_GRADIENT, w, (step, grad), *where, constants=(2 * factor,), shared=(False, True))


implement_triton("dampening_forward", forward_op)
implement_triton("dampening_backward", backward_op)
