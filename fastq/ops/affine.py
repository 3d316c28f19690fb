"""Drop-ins for PyTorch core's fake-quantize operators: the public functions, their Function and the operators' schemas."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import channel_axis, check_input, check_parameter, compute_dtype
from ..ranges import LARGEST_CODE, check_number
from ..reference.affine import affine_backward as reference_backward
from ..reference.affine import affine_forward as reference_forward
from . import _library

__all__ = [
    "FakeQuantizeAffine",
    "_fake_quantize_learnable_per_channel_affine",
    "_fake_quantize_learnable_per_tensor_affine",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
]


def check(op: str, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, of: str = "x") -> None:
    """The checks of the tensors, for every backend and for the fake kernels; ``of`` names ``x``."""
    check_input(op, x, of)
    check_parameter(op, "scale", scale, x, axis, 0, of)
    check_parameter(op, "zero_point", zero_point, x, axis, 0, of)


def _fake_forward(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int) -> Any:
    check("affine", x, scale, zero_point, axis)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int, learnable: bool, grad_factor: float
) -> Any:
    check("affine", x, scale, zero_point, axis)
    gradients = [
        torch.empty_like(p, memory_format=torch.contiguous_format) if learnable else p.new_empty(0) for p in (scale, zero_point)
    ]
    return torch.empty_like(x), *gradients


_library.define(
    "affine_forward", "(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, int axis) -> Tensor", _fake_forward
)
_library.define(
    "affine_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, int axis, bool learnable, float grad_factor) "
    "-> (Tensor, Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.affine_forward.default, "triton": torch.ops.fastq_triton.affine_forward.default}
_backward = {"cpu": torch.ops.fastq.affine_backward.default, "triton": torch.ops.fastq_triton.affine_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]


def _run_backward(backend: str, g: Any, x: Any, scale: Any, zero_point: Any, arguments: tuple[Any, ...]) -> Any:
    if backend == "reference":
        return reference_backward(g, x, scale, zero_point, *arguments)
    dx, dscale, dzero = _backward[backend](g, x, scale, zero_point, *arguments)
    return (dx, dscale, dzero) if arguments[3] else (dx, None, None)


class FakeQuantizeAffine(torch.autograd.Function):
    """``FakeQuantizeAffine.apply(x, scale, zero_point, qmin, qmax, axis, learnable, grad_factor)``.

    The node under the four drop-ins, which document the formula. ``scale`` and ``zero_point`` are float tensors of one element
    (``axis`` -1) or ``(C,)``; only with ``learnable`` do they get gradients. Saves ``x`` and the parameters; a second backward
    pass raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int = -1,
        learnable: bool = False, grad_factor: float = 1.0,
    ) -> torch.Tensor:  # fmt: skip
        check("fake_quantize_affine", x, scale, zero_point, axis)
        checks.check_values("fake_quantize_affine", x, scale, zero_point, ("scale", "zero_point"))
        backend = dispatch.select(x)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.backend, ctx.arguments = backend, (qmin, qmax, axis, learnable, grad_factor)
        if backend == "reference":
            return reference_forward(x, scale, zero_point, qmin, qmax, axis)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        return _forward[backend](x, scale, zero_point, qmin, qmax, axis)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, scale, zero_point = ctx.saved_tensors
        arguments = (ctx.backend, g, x, scale, zero_point, ctx.arguments)
        if torch.is_grad_enabled():
            gradients = _library.BackwardOnce.apply("fake_quantize_affine", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, None, None, None, None, None


def _parameter(op: str, name: str, value: Any, x: torch.Tensor) -> torch.Tensor:
    """A number or a tensor as the float tensor the operators take. Differentiable."""
    dtype = compute_dtype(x)
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{op}: {name} must be a float or integer tensor, got {value.dtype}")
        return value if value.dtype == dtype else value.to(dtype)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(value).__name__}")
    return torch.full((1,), value, dtype=dtype, device=x.device)


def resolve(
    op: str, x: torch.Tensor, scale: Any, zero_point: Any, qmin: int, qmax: int, *axis: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
    """Check the public arguments and give those of :class:`FakeQuantizeAffine` up to ``axis``, which is absent per tensor."""
    check_input(op, x, "input")
    if not isinstance(qmin, int) or not isinstance(qmax, int):
        raise TypeError(f"{op}: quant_min and quant_max must be ints, got {type(qmin).__name__} and {type(qmax).__name__}")
    if qmin > qmax:
        raise ValueError(f"{op}: quant_min must not exceed quant_max, got {qmin} and {qmax}")
    if max(-qmin, qmax) > LARGEST_CODE:
        raise ValueError(f"{op}: quant_min and quant_max must lie within ±{LARGEST_CODE}, got {qmin} and {qmax}")
    if isinstance(zero_point, int) and not qmin <= zero_point <= qmax:
        raise ValueError(f"{op}: zero_point must lie between quant_min and quant_max, [{qmin}, {qmax}], got {zero_point}")
    if isinstance(scale, float) and not math.isfinite(scale):
        raise ValueError(f"{op}: scale must be finite, got {scale}")
    axis_ = channel_axis(op, x, axis[0], "input") if axis else -1
    s, z = _parameter(op, "scale", scale, x), _parameter(op, "zero_point", zero_point, x)
    check(op, x, s, z, axis_, "input")
    return x, s, z, qmin, qmax, axis_


def resolve_learnable(
    op: str, x: torch.Tensor, scale: Any, zero_point: Any, qmin: int, qmax: int, grad_factor: float, *axis: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, int, bool, float]:
    """:func:`resolve` of a learnable function: all arguments of :class:`FakeQuantizeAffine`."""
    check_number(op, "grad_factor", grad_factor)
    return *resolve(op, x, scale, zero_point, qmin, qmax, *axis), True, grad_factor


def fake_quantize_per_tensor_affine(
    input: torch.Tensor, scale: float | torch.Tensor, zero_point: int | torch.Tensor, quant_min: int, quant_max: int
) -> torch.Tensor:
    """``torch.fake_quantize_per_tensor_affine`` as one fused kernel: same arguments, same numbers.

    ::

        c  = round(input * (1 / scale)) + zero_point                    round half to even
        y  = (clip(c, quant_min, quant_max) - zero_point) * scale
        dx = g where quant_min <= c <= quant_max, else 0

    Args:
        input: float32, bfloat16, float16 or float64, any shape and strides.
        scale: a number, or a tensor of one element; in units of ``input``.
        zero_point: an int in ``[quant_min, quant_max]``, or a tensor of one element (rounded and clipped into that range).
        quant_min, quant_max: the integer range, within ±65536.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``input``. ``scale`` and ``zero_point`` get no gradient.

    Equal to torch core, ``torch.equal``, in ``y`` and ``dx`` for float32, bfloat16 and float16. It differs where core is odd: NaN
    stays NaN (core turns it into ``quant_min``) and shows in ``dx``; a masked gradient is 0 even where ``g`` is infinite (core:
    NaN); a scale of 0, which gives zeros, lets ``g`` through (core: 0), and one below ``2**-128``, whose inverse is infinite, makes
    NaN of an ``input`` of 0 (core: ``quant_min``); a zero-point tensor beyond the range is clipped (core uses it as it is, and
    raises per channel if it is of integers); float64 is computed in float64 (core rounds through float32); ranges beyond ±65536
    are refused. Core keeps a mask for the backward pass, this keeps ``input`` alone.

    Raises:
        TypeError: a dtype, layout or type does not fit.
        ValueError: a range, a zero-point outside of it, a scale that is not finite, more than one element.
    """
    name = "fake_quantize_per_tensor_affine"
    return FakeQuantizeAffine.apply(*resolve(name, input, scale, zero_point, quant_min, quant_max))


def fake_quantize_per_channel_affine(
    input: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, quant_min: int, quant_max: int
) -> torch.Tensor:
    """``torch.fake_quantize_per_channel_affine`` as one fused kernel: same arguments, same numbers.

    The formula, the result and the differences from core of :func:`fake_quantize_per_tensor_affine`, with one scale and
    zero-point for each index of ``axis``.

    Args:
        input: float32, bfloat16, float16 or float64, any shape and strides.
        scale: ``(input.shape[axis],)``, float.
        zero_point: ``(input.shape[axis],)``, int or float. Core leaves fractions in a float zero-point; they are rounded here.
        axis: the channel axis; negative counts from the end.
        quant_min, quant_max: the integer range, within ±65536.

    Raises:
        TypeError: a dtype, layout or type does not fit.
        ValueError: a range, an axis or a shape does not fit.
    """
    name = "fake_quantize_per_channel_affine"
    return FakeQuantizeAffine.apply(*resolve(name, input, scale, zero_point, quant_min, quant_max, axis))


def _fake_quantize_learnable_per_tensor_affine(
    input: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, quant_min: int, quant_max: int, grad_factor: float = 1.0
) -> torch.Tensor:
    """``torch._fake_quantize_learnable_per_tensor_affine`` as one fused kernel: scale and zero-point learn as well.

    Forward as :func:`fake_quantize_per_tensor_affine` with ``z = clip(round(zero_point), quant_min, quant_max)``. Backward as
    core on x86-64: ``z = trunc(clip(zero_point + 0.5, quant_min, quant_max))``, ``c = round(input * (1 / scale) + z)`` with the
    product not rounded by itself, inside meaning ``quant_min <= c <= quant_max``::

        dx          = g where inside, else 0
        dscale      = grad_factor * sum g * ((y - input) / scale inside; quant_min - z below; quant_max - z above)
        dzero_point = grad_factor * sum -g * scale where not inside

    Args:
        input: float32, bfloat16, float16 or float64, any shape and strides.
        scale, zero_point: float tensors of one element.
        quant_min, quant_max: the integer range, within ±65536.
        grad_factor: multiplies the gradients of ``scale`` and ``zero_point`` (LSQ's ``1 / sqrt(N * quant_max)``).

    Equal to torch core in ``y`` and ``dx``; the sums agree to fp32 rounding. Differences: those of
    :func:`fake_quantize_per_tensor_affine`; no synchronisation with the device (core reads ``zero_point`` on the host); no buffers
    of the size of ``input`` for the sums. The straight-through gradient follows LSQ (https://arxiv.org/abs/1902.08153).

    Raises:
        TypeError, ValueError: as :func:`fake_quantize_per_tensor_affine`.
    """
    name = "_fake_quantize_learnable_per_tensor_affine"
    return FakeQuantizeAffine.apply(*resolve_learnable(name, input, scale, zero_point, quant_min, quant_max, grad_factor))


def _fake_quantize_learnable_per_channel_affine(
    input: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, quant_min: int, quant_max: int,
    grad_factor: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """``torch._fake_quantize_learnable_per_channel_affine`` as one fused kernel.

    :func:`_fake_quantize_learnable_per_tensor_affine` with ``scale`` and ``zero_point`` of shape ``(input.shape[axis],)``, and with
    the forward pass's ``z`` in the backward pass too.
    """
    name = "_fake_quantize_learnable_per_channel_affine"
    return FakeQuantizeAffine.apply(*resolve_learnable(name, input, scale, zero_point, quant_min, quant_max, grad_factor, axis))
