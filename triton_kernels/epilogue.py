"""What follows a product, in Triton, with the bits of ``fastq/reference/int_gemm.py``: ``fastq.engine.Epilogue`` says the formula.

A kernel takes the arguments that :func:`arguments` names, makes ``y`` of its accumulators (:func:`dequantized`) and gives it to
:func:`write`. Tiles may lie either way round: ``m`` and ``n`` are the row and column of the output, shaped to broadcast against
``y``. It must be compiled with ``enable_fp_fusion=False``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastq.dispatch import triton_interpreted
from fastq.engine import Epilogue

from .functions import exp
from .numeric import clip, divide, narrow, round_clipped, widen


def arguments(e: Epilogue) -> dict[str, Any]:
    """The keyword arguments of a kernel that end in :func:`write`: ``bias, multiplier, addend, residual, out_scale, low: fp32,
    high: fp32, code_zero: fp32`` and the constexpr ``ACTIVATION, INTERPRETED``. The residual is made contiguous: for a
    convolution it is to be given with the channels last."""
    low, high, zero = e.out_codes
    return {
        "bias": e.bias,
        "multiplier": e.multiplier,
        "addend": e.addend,
        "residual": None if e.residual is None else e.residual.contiguous(),
        "out_scale": e.out_scale,
        "low": float(low - zero),
        "high": float(high - zero),
        "code_zero": float(zero),
        "ACTIVATION": e.activation,
        "INTERPRETED": triton_interpreted(),
    }


@triton.jit
def one_or_each(pointer, index, there, EACH: tl.constexpr):
    """A scale per row or channel, or the only one."""
    if EACH:
        return tl.load(pointer + index, mask=there, other=1.0)
    else:
        return tl.load(pointer)


@triton.jit
def dequantized(acc, scale, x_scale):
    """``float(acc) * (x_scale * scale)`` of int32 accumulators; ``x_scale`` None: 1."""
    if x_scale is None:
        return acc.to(tl.float32) * scale
    else:
        return acc.to(tl.float32) * (x_scale * scale)


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):
    """``ACTIVATION``: an index of ``fastq.engine.call.ACTIVATIONS``. NaN stays NaN."""
    if ACTIVATION == 1:
        return tl.where(y < 0.0, 0.0, y)
    elif ACTIVATION == 2:
        return (y * 0.5) * (1.0 + tl.erf(y * 0.70710678118654752440))
    elif ACTIVATION == 3:
        return divide(y, 1.0 + exp(-y))
    else:
        return y


@triton.jit
def finished(
    y, m, n, m_there, n_there, width, bias, multiplier, addend, residual, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr
):  # fmt: skip
    """From ``+ bias`` to the activation; ``width``: columns of the output, and of the residual."""
    if bias is not None:
        y = y + tl.load(bias + n, mask=n_there, other=0.0)
    if multiplier is not None:
        y = y * tl.load(multiplier + n, mask=n_there, other=0.0)
    if addend is not None:
        y = y + tl.load(addend + n, mask=n_there, other=0.0)
    if residual is not None:
        r = tl.load(residual + (m.to(tl.int64) * width + n), mask=m_there & n_there, other=0.0)
        y = y + widen(r, tl.float32, INTERPRETED and residual.dtype.element_ty == tl.bfloat16)
    return activated(y, ACTIVATION)


@triton.jit
def quantized(y, scale, low, high, code_zero, S: tl.constexpr):
    """``round(clip(y / scale, low, high)) + code_zero`` as ``S``, half to even; NaN gives ``code_zero``."""
    code = round_clipped(clip(divide(y, scale), low, high))
    return (tl.where(code == code, code, 0.0) + code_zero).to(tl.int32).to(S)


@triton.jit
def stored(y, out_scale, low, high, code_zero, S: tl.constexpr, INTERPRETED: tl.constexpr):
    """``y`` as the output's dtype ``S``: rounded, or with ``out_scale`` a code."""
    if out_scale is None:
        return narrow(y, S, INTERPRETED and S == tl.bfloat16)
    else:
        return quantized(y, tl.load(out_scale), low, high, code_zero, S)


@triton.jit
def write(
    y, out, m, n, m_there, n_there, width, bias, multiplier, addend, residual, out_scale, low, high, code_zero,
    ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The whole epilogue of float32 ``y``, into ``out`` with ``width`` columns, contiguous. Offsets are 64-bit."""
    y = finished(y, m, n, m_there, n_there, width, bias, multiplier, addend, residual, ACTIVATION, INTERPRETED)
    value = stored(y, out_scale, low, high, code_zero, out.dtype.element_ty, INTERPRETED)
    tl.store(out + (m.to(tl.int64) * width + n), value, mask=m_there & n_there)
