"""LSQ and LSQ+: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..ranges import BOUNDARIES, check_eps, check_number, integer_range
from ..reference.lsq import lsq_backward as reference_backward
from ..reference.lsq import lsq_forward as reference_forward
from . import _library

__all__ = ["LSQ", "lsq"]

#: How the operators encode ``grad_scale``: a factor and whether (and with which N) 1/sqrt(N*qmax) multiplies it.
GRAD_NORMS = {"lsq": 1, "lsq-full": 2}


def check(op: str, x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, axis: int, group_size: int) -> None:
    """The checks of LSQ's tensors, for every backend and for the fake kernels."""
    check_input(op, x)
    check_parameter(op, "step", step, x, axis, group_size)
    if offset is not None:
        check_parameter(op, "offset", offset, x, axis, group_size)
        if offset.shape != step.shape:
            raise ValueError(f"{op}: offset must have the shape of step, {tuple(step.shape)}, got {tuple(offset.shape)}")


def gradient_factor(grad_scale: float | str, op: str = "lsq") -> tuple[float, int]:
    """``grad_scale`` as the operators take it: a factor, and 0 or the number of the norm that multiplies it."""
    if isinstance(grad_scale, str):
        if grad_scale in GRAD_NORMS:
            return 1.0, GRAD_NORMS[grad_scale]
        raise ValueError(f"{op}: grad_scale must be a float, 'lsq' or 'lsq-full', got {grad_scale!r}")
    check_number(op, "grad_scale", grad_scale, "a float, 'lsq' or 'lsq-full'")
    return grad_scale, 0


def _fake_forward(x: Any, step: Any, offset: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float) -> Any:
    check("lsq", x, step, offset, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, step: Any, offset: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float,
    boundary: int, grad_scale: float, grad_norm: int, offset_grad_scale: float,
) -> Any:  # fmt: skip
    check("lsq", x, step, offset, axis, group_size)
    doffset = step.new_empty(0) if offset is None else torch.empty_like(step, memory_format=torch.contiguous_format)
    return torch.empty_like(x), torch.empty_like(step, memory_format=torch.contiguous_format), doffset


_library.define(
    "lsq_forward",
    "(Tensor x, Tensor step, Tensor? offset, int qmin, int qmax, int axis, int group_size, float eps) -> Tensor",
    _fake_forward,
)
_library.define(
    "lsq_backward",
    "(Tensor grad, Tensor x, Tensor step, Tensor? offset, int qmin, int qmax, int axis, int group_size, float eps, "
    "int boundary, float grad_scale, int grad_norm, float offset_grad_scale) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.lsq_forward.default, "triton": torch.ops.fastq_triton.lsq_forward.default}
_backward = {"cpu": torch.ops.fastq.lsq_backward.default, "triton": torch.ops.fastq_triton.lsq_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, step: Any, offset: Any, arguments: tuple[Any, ...]) -> Any:
    if backend == "reference":
        return reference_backward(g, x, step, offset, *arguments)
    dx, dstep, doffset = _backward[backend](g, x, step, offset, *arguments)
    return dx, dstep, None if offset is None else doffset


class LSQ(torch.autograd.Function):
    """``LSQ.apply(x, step, offset, qmin, qmax, axis, group_size, boundary, grad_scale, offset_grad_scale, eps)``.

    The node under :func:`fastq.lsq`, which documents the formula. Here every argument is given, already resolved:
    ``offset`` a tensor or None, ``axis`` -1 and ``group_size`` 0 where absent, ``boundary`` 0 open, 1 closed,
    2 rounded, ``grad_scale`` a float, ``"lsq"`` or ``"lsq-full"``. Saves ``x`` and the parameters. The backward pass
    returns gradients for ``x``, ``step`` and ``offset``; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, offset: Any, qmin: int, qmax: int, axis: int = -1, group_size: int = 0,
        boundary: int = 0, grad_scale: float | str = "lsq", offset_grad_scale: float = 1.0, eps: float = 1e-8,
    ) -> torch.Tensor:  # fmt: skip
        check("lsq", x, step, offset, axis, group_size)
        checks.check_values("lsq", x, step, offset)
        factor, norm = gradient_factor(grad_scale)
        backend = dispatch.select(x)
        ctx.save_for_backward(x, step, offset)
        ctx.backend = backend
        if backend == "reference":
            ctx.arguments = (qmin, qmax, axis, group_size, eps, boundary, grad_scale, offset_grad_scale)
            return reference_forward(x, step, offset, qmin, qmax, axis, group_size, eps)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        ctx.arguments = (qmin, qmax, axis, group_size, eps, boundary, factor, norm, offset_grad_scale)
        return _forward[backend](x, step, offset, qmin, qmax, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, step, offset = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, dstep, doffset = _library.BackwardOnce.apply("lsq", _run_backward, ctx.backend, g, x, step, offset, ctx.arguments)
        else:
            dx, dstep, doffset = _run_backward(ctx.backend, g, x, step, offset, ctx.arguments)
        return dx, dstep, doffset, None, None, None, None, None, None, None, None


def resolve(
    x: torch.Tensor, step: torch.Tensor, bits: Any, signed: bool, narrow: bool, offset: Any,
    axis: int | None, group_size: int | None, boundary: str, grad_scale: float | str, offset_grad_scale: float, eps: float,
) -> tuple[int, int, int, int, int, float | str, float, float]:  # fmt: skip
    """Check the public arguments, the tensors' values aside, and give those that follow ``offset`` in :class:`LSQ`."""
    check_input("lsq", x)
    axis_, group = (-1, 0) if axis is None and group_size is None else normalize_axis("lsq", x, axis, group_size)
    qmin, qmax = integer_range("lsq", bits, signed, narrow)
    if boundary not in BOUNDARIES:
        raise ValueError(f"lsq: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    gradient_factor(grad_scale)
    check_number("lsq", "offset_grad_scale", offset_grad_scale)
    check_eps("lsq", eps)
    return qmin, qmax, axis_, group, BOUNDARIES[boundary], grad_scale, offset_grad_scale, eps


def lsq(
    x: torch.Tensor,
    step: torch.Tensor,
    *,
    bits: int | tuple[int, int],
    signed: bool = True,
    narrow: bool = False,
    offset: torch.Tensor | None = None,
    axis: int | None = None,
    group_size: int | None = None,
    boundary: str = "open",
    grad_scale: float | str = "lsq",
    offset_grad_scale: float = 1.0,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Fake-quantize ``x`` on a grid with a learned step (LSQ) and, with ``offset``, a learned offset (LSQ+).

    Forward, with ``s = max(|step|, eps)`` and rounding half to even::

        v = (x - offset) / s
        q = round(clip(v, qmin, qmax))
        y = s * q + offset

    Backward, for the gradient ``g`` of ``y``, where ``m`` says that ``v`` lies inside the clip range::

        dx      = g where m, else 0
        dstep   = G * sign(step) * sum g * (q - v where m; else qmin where v <= qmin; else qmax)
        doffset = offset_grad_scale * sum g where not m

    The bits of ``y`` and ``dx`` are the same on every backend; the sums are the same on every run and for any number
    of threads. One pass forward, one backward; the backward pass keeps ``x`` and the parameters, nothing else.

    Args:
        x: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64).
        step: the step, float32 (float64 for float64 ``x``), in units of ``x``. One element per tensor; ``(C,)`` with
            ``axis``; ``x.shape[:-1] + (K // group_size,)`` with ``group_size``, ``K = x.shape[-1]``.
        bits: 1 to 8 (1 with ``signed=False``), or the integer range itself as ``(qmin, qmax)``, ``qmin < qmax``, ``qmax >= 1``.
        signed: ``[-2**(b-1), 2**(b-1) - 1]`` if true, else ``[0, 2**b - 1]``.
        narrow: drop the lowest signed code, so that the range is symmetric.
        offset: the value that code 0 stands for, in units of ``x``; of the shape and dtype of ``step``. None is LSQ.
        axis: one step per index of this axis. Excludes ``group_size``.
        group_size: one step per so many consecutive elements of the last axis, which it must divide.
        boundary: where the gradient passes: ``"open"`` ``qmin < v < qmax`` (the paper), ``"closed"``
            ``qmin <= v <= qmax`` (what autograd of clamp does), ``"rounded"`` ``qmin <= round(v) <= qmax``
            (PyTorch core's learnable ops).
        grad_scale: the factor G of ``dstep``: ``"lsq"`` ``1 / sqrt(N * qmax)`` with N elements per step;
            ``"lsq-full"`` the same with N = ``x.numel()``; or a number.
        offset_grad_scale: the factor of ``doffset``.
        eps: the smallest step used: at least ``2**-126``, the smallest normal number of float32, and finite there.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``.

    Not finite: NaN in ``x`` gives NaN in ``y``, ``dx`` and the gradients of the parameters it touches; an infinite ``x``
    saturates; a step of inf or NaN gives NaN. A zero or negative step acts as ``max(|step|, eps)``
    (:func:`fastq.set_checks` makes it raise). An empty ``x`` gives an empty ``y`` and zero gradients.

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; a parameter or an option has another type than it should.
        ValueError: a shape, axis, group size, range or option does not fit; the message says what was expected.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Papers: Esser et al., Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153; Bhalgat et al.,
    LSQ+, CVPR workshops 2020, https://arxiv.org/abs/2004.09576.

    Example:
        >>> x = torch.randn(64, 128, requires_grad=True)
        >>> step = torch.full((64,), 0.1, requires_grad=True)
        >>> fastq.lsq(x, step, bits=4, axis=0).square().sum().backward()
        >>> step.grad.shape
        torch.Size([64])
    """
    arguments = resolve(x, step, bits, signed, narrow, offset, axis, group_size, boundary, grad_scale, offset_grad_scale, eps)
    return LSQ.apply(x, step, offset, *arguments)
