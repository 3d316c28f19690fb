"""The dampening loss in Triton. The formula: ``fastq/reference/dampening.py``.

r = clip(w, s * qmin, s * qmax) - s * round(clip(w / s, qmin, qmax));   the sum is of r^2; the gradient is 2 c r
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastq.ops._library import implement_triton

from .elementwise import Method, run_forward_sums
from .lsq import prepare
from .numeric import clip, divide, round_clipped


@triton.jit
def _prepare(parameters, r):
    s = prepare(parameters, r)[0]
    return s, s * r[0], s * r[1]


@triton.jit
def _forward(w, p, r):
    residual = clip(w, p[1], p[2]) - p[0] * round_clipped(clip(divide(w, p[0]), r[0], r[1]))
    return residual, ((residual * residual).to(tl.float64),)


DAMPENING = Method("dampening", 1, 0, _prepare, _forward, None, None, sums=1, warps=16)
DAMPENING_LOSS = Method("dampening_loss", 1, 0, _prepare, _forward, None, None, sums=1, output=False)


def dampening_op(w: Any, step: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, gradient: bool) -> Any:
    method = DAMPENING if gradient else DAMPENING_LOSS
    r, total = run_forward_sums(method, w, (step,), qmin, qmax, axis, group_size, eps, total=True)
    return (r if gradient else torch.empty(0, dtype=w.dtype, device=w.device)), total


implement_triton("dampening", dampening_op)
