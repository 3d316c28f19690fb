"""Floating point numbers as integer codes: ``fastq.quantize`` with a given step, ``fastq.quantize_per_token`` with one per row."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch

from .. import checks, dispatch
from ..reference import int_gemm as reference
from . import _library

__all__ = ["quantize", "quantize_per_token"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_library.define(
    "quantize",
    "(Tensor x, Tensor scale, Tensor? offset, int[] codes, ScalarType dtype) -> Tensor",
    lambda x, scale, offset, codes, dtype: torch.empty_like(x, dtype=dtype),
)
_library.define(
    "quantize_per_token",
    "(Tensor x, int bits) -> (Tensor, Tensor)",
    lambda x, bits: (x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)),
)


def check_codes(op: str, dtype: torch.dtype, range_: Any, zero_point: Any, prefix: str = "") -> tuple[int, int, int]:
    """``range`` and ``zero_point`` of codes of ``dtype``: lo, hi, zp."""
    whole = torch.iinfo(dtype)
    if range_ is None:
        range_ = (whole.min, whole.max)
    if not isinstance(range_, (tuple, list)) or len(range_) != 2 or any(type(n) is not int for n in range_):
        raise TypeError(f"{op}: {prefix}range must be two ints, lowest and highest code, got {range_!r:.60}")
    if type(zero_point) is not int:
        raise TypeError(f"{op}: {prefix}zero_point must be an int, got {zero_point!r:.60}")
    low, high = range_
    if not whole.min <= low < high <= whole.max:
        within = f"{whole.min} to {whole.max}, those of {dtype}, the lowest code first"
        raise ValueError(f"{op}: {prefix}range must lie within {within}, got {low} to {high}")
    if not low <= zero_point <= high:
        raise ValueError(f"{op}: {prefix}zero_point must be one of the codes {low} to {high}, got {zero_point}")
    return low, high, zero_point


def plain(t: torch.Tensor) -> torch.Tensor:
    """``t`` as float32 without a gradient; itself, which costs nothing, where it is that."""
    t = t.detach() if t.requires_grad else t
    return t if t.dtype == torch.float32 else t.to(torch.float32)


def check_scale(op: str, name: str, scale: Any, device: torch.device, rows: tuple[int, ...] | None = None) -> torch.Tensor | None:
    """A scale as a float32 tensor ``(1,)``, or ``(M,)`` where ``rows`` allows one for each row; None stays None."""
    if scale is None:
        return None
    if isinstance(scale, torch.Tensor):
        if not scale.is_floating_point():
            raise TypeError(f"{op}: {name} must be a floating point tensor or a number, got {scale.dtype}")
        if scale.device != device:
            raise ValueError(f"{op}: {name} is on {scale.device} and x on {device}")
        if scale.numel() == 1 and (rows is None or tuple(scale.shape) != rows):
            return plain(scale) if scale.dim() == 1 else plain(scale).reshape(1)
        if rows is None or tuple(scale.shape) not in (rows, (*rows, 1)):
            expected = "one element" if rows is None else f"one element or shape {rows}, one for each row"
            raise ValueError(f"{op}: {name} must have {expected}, got {tuple(scale.shape)}")
        return plain(scale).reshape(-1).contiguous()
    if not isinstance(scale, (int, float)) and isinstance(scale, numbers.Real):
        scale = float(scale)  # NumPy's
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"{op}: {name} must be a number or a floating point tensor, got {scale!r:.60}")
    # a compiled program's number may have no value yet
    if not torch.compiler.is_compiling() and not abs(scale) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{op}: {name} must be finite in float32, got {scale!r}")
    return torch.full((1,), scale, dtype=torch.float32, device=device)


def quantize(
    x: torch.Tensor, scale: torch.Tensor | float, *, offset: torch.Tensor | float | None = None, zero_point: int = 0,
    range: tuple[int, int] | None = None, dtype: torch.dtype = torch.int8,
) -> torch.Tensor:  # fmt: skip
    """Integer codes of ``x``, by the rounding of the training quantizers (half to even, after a true division)::

        code = round(clip((x - offset) / scale, lo - zero_point, hi - zero_point)) + zero_point          NaN gives zero_point

    Args:
        x: float32, bfloat16 or float16, any shape and strides; computed in float32.
        scale: the step, in units of ``x``: a number or one element.
        offset: what the code ``zero_point`` stands for: a number or one element; None: 0.
        zero_point: an integer among the codes.
        range: lowest and highest code, ``(lo, hi)``; None: those of ``dtype``.
        dtype: int8 or uint8.

    Returns:
        Codes of the shape and memory layout of ``x``. Not differentiable: training quantizes with :func:`fastq.lsq` and the like.

    Raises:
        TypeError: a dtype or a type does not fit.
        ValueError: a range, zero-point, shape or device does not fit.
        RuntimeError: the backend asked for cannot serve; ``x`` requires a gradient.
    """
    op = "quantize"
    if not isinstance(x, torch.Tensor) or x.dtype not in FLOATS:
        raise TypeError(
            f"{op}: x must be float32, bfloat16 or float16, got {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}"
        )
    if dtype not in (torch.int8, torch.uint8):
        raise TypeError(f"{op}: dtype must be torch.int8 or torch.uint8, got {dtype!r:.60}")
    codes = check_codes(op, dtype, range, zero_point)
    of = check_scale(op, "scale", scale, x.device)
    if of is None:
        raise TypeError(f"{op}: scale must be a number or a floating point tensor, got None")
    from_ = check_scale(op, "offset", offset, x.device)
    checks.check_finite(op, x=x, offset=from_)
    checks.check_positive(op, scale=of)
    _library.refuse_to_train(op, x=x)
    backend = dispatch.select(x)
    if backend == "reference":
        return reference.quantize(x, of, from_, codes, dtype)
    return _call(backend, "quantize")(x, of, from_, list(codes), dtype)  # type: ignore[no-any-return]


def quantize_per_token(x: torch.Tensor, *, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 codes of each row of ``x``, with a scale of its own::

        scale = max |x| / (2**(bits-1) - 1)        of the row; 1 where that is 0, NaN where the row holds NaN
        code  = round(clip(x / scale, -(2**(bits-1) - 1), 2**(bits-1) - 1))        half to even; NaN gives 0

    Args:
        x: float32, bfloat16 or float16, ``(..., K)``, any strides; computed in float32.
        bits: 2 to 8.

    Returns:
        int8 codes ``(..., K)`` and float32 scales ``(...)``. A row of an infinite value has that scale and NaN for results.

    Raises:
        TypeError: a dtype does not fit. ValueError: ``bits`` or the shape does not fit.
        RuntimeError: the backend asked for cannot serve; ``x`` requires a gradient.
    """
    op = "quantize_per_token"
    if not isinstance(x, torch.Tensor) or x.dtype not in FLOATS:
        raise TypeError(
            f"{op}: x must be float32, bfloat16 or float16, got {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}"
        )
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"{op}: bits must be an int from 2 to 8, got {bits!r:.60}")
    if x.dim() < 1:
        raise ValueError(f"{op}: x must be (..., K), got shape {tuple(x.shape)}")
    checks.check_finite(op, x=x)
    _library.refuse_to_train(op, x=x)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()
    backend = dispatch.select(x)
    run = reference.quantize_per_token if backend == "reference" else _call(backend, "quantize_per_token")
    codes, scale = run(rows, bits)
    return codes.view(x.shape), scale.view(x.shape[:-1])


def _call(backend: str, name: str) -> Any:
    if backend == "triton":
        from .. import triton_kernels  # noqa: F401  registers the kernels
    return getattr(getattr(torch.ops, "fastq_triton" if backend == "triton" else "fastq"), name).default
