"""Freeze-aware LSQ: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..oscillation import OscillationState, check_state
from ..ranges import BOUNDARIES, check_eps, integer_range
from ..reference.frozen_lsq import frozen_lsq_backward as reference_backward
from ..reference.frozen_lsq import frozen_lsq_forward as reference_forward
from . import _library
from .lsq import gradient_factor

__all__ = ["FrozenLSQ", "frozen_lsq"]


def check(x: torch.Tensor, step: torch.Tensor, freeze: torch.Tensor, axis: int, group_size: int) -> None:
    """The checks of the tensors, for every backend and for the fake kernels."""
    check_input("frozen_lsq", x)
    check_parameter("frozen_lsq", "step", step, x, axis, group_size)
    if freeze.dtype != torch.int32:
        raise TypeError(f"frozen_lsq: freeze must be torch.int32, got {freeze.dtype}")
    if freeze.shape != x.shape or freeze.device != x.device:
        raise ValueError(
            f"frozen_lsq: freeze must have the shape and device of x, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(freeze.shape)} on {freeze.device}"
        )


def _fake_forward(x: Any, step: Any, freeze: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float) -> Any:
    check(x, step, freeze, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, step: Any, freeze: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    boundary: int, grad_scale: float, grad_norm: int,
) -> Any:  # fmt: skip
    check(x, step, freeze, axis, group_size)
    return torch.empty_like(x), torch.empty_like(step, memory_format=torch.contiguous_format)


_library.define(
    "frozen_lsq_forward",
    "(Tensor x, Tensor step, Tensor freeze, int qmin, int qmax, int axis, int group_size, float eps) -> Tensor",
    _fake_forward,
)
_library.define(
    "frozen_lsq_backward",
    "(Tensor grad, Tensor x, Tensor step, Tensor freeze, int qmin, int qmax, int axis, int group_size, float eps, "
    "int boundary, float grad_scale, int grad_norm) -> (Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.frozen_lsq_forward.default, "triton": torch.ops.fastq_triton.frozen_lsq_forward.default}
_backward = {"cpu": torch.ops.fastq.frozen_lsq_backward.default, "triton": torch.ops.fastq_triton.frozen_lsq_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, step: Any, freeze: Any, arguments: tuple[Any, ...]) -> Any:
    run = reference_backward if backend == "reference" else _backward[backend]
    return run(g, x, step, freeze, *arguments)


class FrozenLSQ(torch.autograd.Function):
    """``FrozenLSQ.apply(x, step, freeze, qmin, qmax, axis, group_size, boundary, grad_scale, eps)``.

    The node under :func:`fastq.frozen_lsq`, which documents the formula. Here every argument is given, already resolved:
    ``freeze`` the plane of that name of an :class:`fastq.OscillationState`, ``axis`` -1 and ``group_size`` 0 where absent,
    ``boundary`` 0 open, 1 closed, 2 rounded. Saves ``x``, ``step`` and ``freeze``, which are there anyway. A second backward
    pass raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, freeze: Any, qmin: int, qmax: int, axis: int = -1, group_size: int = 0,
        boundary: int = 0, grad_scale: float | str = "lsq", eps: float = 1e-8,
    ) -> torch.Tensor:  # fmt: skip
        check(x, step, freeze, axis, group_size)
        checks.check_values("frozen_lsq", x, step, None)
        factor = gradient_factor(grad_scale, "frozen_lsq")
        backend = dispatch.select(x)
        ctx.save_for_backward(x, step, freeze)
        ctx.backend = backend
        if backend == "reference":
            ctx.arguments = (qmin, qmax, axis, group_size, eps, boundary, grad_scale)
            return reference_forward(x, step, freeze, qmin, qmax, axis, group_size, eps)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        ctx.arguments = (qmin, qmax, axis, group_size, eps, boundary, *factor)
        return _forward[backend](x, step, freeze, qmin, qmax, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.arguments)
        if torch.is_grad_enabled():  # under create_graph=True: computed, and not to be differentiated again
            gradients = _library.BackwardOnce.apply("frozen_lsq", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, None, None, None, None, None, None, None, None


def resolve(
    x: torch.Tensor, state: OscillationState, bits: Any, signed: bool, narrow: bool,
    axis: int | None, group_size: int | None, boundary: str, grad_scale: float | str, eps: float,
) -> tuple[int, int, int, int, int, float | str, float]:  # fmt: skip
    """Check the public arguments, the tensors' values aside, and give those that follow ``freeze`` in :class:`FrozenLSQ`."""
    check_input("frozen_lsq", x)
    axis_, group = normalize_axis("frozen_lsq", x, axis, group_size)
    qmin, qmax = integer_range("frozen_lsq", bits, signed, narrow)
    check_state("frozen_lsq", state, x, "x", qmin, qmax)
    if boundary not in BOUNDARIES:
        raise ValueError(f"frozen_lsq: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    gradient_factor(grad_scale, "frozen_lsq")
    check_eps("frozen_lsq", eps)
    return qmin, qmax, axis_, group, BOUNDARIES[boundary], grad_scale, eps


def frozen_lsq(
    x: torch.Tensor,
    step: torch.Tensor,
    state: OscillationState,
    *,
    bits: int | tuple[int, int],
    signed: bool = True,
    narrow: bool = False,
    axis: int | None = None,
    group_size: int | None = None,
    boundary: str = "open",
    grad_scale: float | str = "lsq",
    eps: float = 1e-8,
) -> torch.Tensor:
    """LSQ of a weight of which some elements are frozen at an integer; what is not frozen is :func:`fastq.lsq`, bit for bit.

    With ``s = max(|step|, eps)`` and the state that :func:`fastq.oscillation_step_` keeps::

        v = x / s
        q = frozen ? frozen_int : round(clip(v, qmin, qmax))
        y = s * q

    Backward, for the gradient ``g`` of ``y``, where ``m`` says that ``v`` lies inside the clip range::

        dx    = 0 where frozen; else g where m, else 0
        dstep = G * sign(step) * sum g * (frozen_int where frozen;
                                          else q - v where m; qmin where v <= qmin; else qmax)

    The integer is what is frozen: ``y`` follows the step. Beside ``x`` it reads one plane of the state, 4 bytes a weight, forward
    and backward. A function of its own rather than an argument of ``lsq``: it goes with weights alone, and has no offset.

    Args:
        x: the weight: float32, bfloat16, float16 or float64, any shape and strides.
        step: as in :func:`fastq.lsq`.
        state: of :func:`fastq.oscillation_step_`, for a weight of the shape and device of ``x`` and the same range. Not changed;
            a step on it between forward and backward is an error, as any in-place change of what is needed is.
        bits, signed, narrow, axis, group_size, boundary, grad_scale, eps: as in :func:`fastq.lsq`. The authors' code has the
            boundary ``"rounded"`` and one step per tensor.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``.

    Not finite: as :func:`fastq.lsq`; an ``x`` that is frozen is not looked at.

    Raises:
        TypeError: ``x`` or ``step`` has another dtype or layout than it should; ``state`` is no state.
        ValueError: a shape, axis, group size, range or option does not fit; ``state`` has another shape, device or range.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Papers: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086;
    Esser et al., Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153.

    Example:
        >>> state = fastq.oscillation_step_(weight, step, bits=4)
        >>> y = fastq.frozen_lsq(weight, step, state, bits=4)
    """
    arguments = resolve(x, state, bits, signed, narrow, axis, group_size, boundary, grad_scale, eps)
    return FrozenLSQ.apply(x, step, state.freeze, *arguments)
