"""The per-channel error of a quantizer with one step: the public functions, the Function and the operators' schemas."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import checks, dispatch
from ..granularity import channel_axis, check_input, check_parameter, compute_dtype
from ..ranges import BOUNDARIES, check_eps, integer_range
from ..reference.channel_error import channel_error_backward as reference_backward
from ..reference.channel_error import channel_error_forward as reference_forward
from . import _library
from .lsq import gradient_factor

__all__ = ["ChannelError", "ChannelStats", "channel_error", "channel_stats"]


class ChannelStats(NamedTuple):
    """Sums over the elements of each channel, fp64 of shape ``(C,)``, and their number."""

    elements: int  #: of one channel
    x: torch.Tensor  #: sum x
    xx: torch.Tensor  #: sum x^2
    xq: torch.Tensor  #: sum x*q, q the integer codes
    qq: torch.Tensor  #: sum q^2
    error: torch.Tensor  #: sum (x - s*q)^2

    @property
    def mean(self) -> torch.Tensor:
        """Of ``x``."""
        return self.x / max(self.elements, 1)

    @property
    def var(self) -> torch.Tensor:
        """Of ``x``: the mean square from the mean, never below 0."""
        return (self.xx / max(self.elements, 1) - self.mean.square()).clamp(min=0)

    @property
    def mse(self) -> torch.Tensor:
        """The mean squared error of the quantized ``x``."""
        return self.error / max(self.elements, 1)


def stats_of(x: torch.Tensor, axis: int, sums: torch.Tensor) -> ChannelStats:
    """The ``(5, C)`` sums of an operator by their names."""
    return ChannelStats(x.numel() // max(x.shape[axis], 1), *sums.unbind(0))


def check(op: str, x: torch.Tensor, step: torch.Tensor, axis: int) -> None:
    """The checks of the tensors, for every backend and for the fake kernels."""
    check_input(op, x)
    if not 0 <= axis < x.dim():
        raise ValueError(f"{op}: axis must be in [0, {x.dim() - 1}] for x of {x.dim()} dimensions, got {axis}")
    check_parameter(op, "step", step, x, -1, 0)


def _fake_forward(x: Any, step: Any, qmin: int, qmax: int, axis: int, eps: float, everything: bool) -> Any:
    check("channel_error", x, step, axis)
    return torch.empty_like(x), x.new_empty((5 if everything else 1, x.shape[axis]), dtype=torch.float64)


def _fake_backward(
    grad: Any, x: Any, step: Any, grad_error: Any, qmin: int, qmax: int, axis: int, eps: float,
    boundary: int, grad_scale: float, grad_norm: int,
) -> Any:  # fmt: skip
    check("channel_error", x, step, axis)
    check_parameter("channel_error", "grad_error", grad_error, x, axis, 0)
    parts = [torch.empty_like(step, memory_format=torch.contiguous_format) for _ in range(2)]
    return torch.empty_like(x), *parts


_library.define(
    "channel_error_forward",
    "(Tensor x, Tensor step, int qmin, int qmax, int axis, float eps, bool everything) -> (Tensor, Tensor)",
    _fake_forward,
)
_library.define(
    "channel_error_backward",
    "(Tensor grad, Tensor x, Tensor step, Tensor grad_error, int qmin, int qmax, int axis, float eps, int boundary, "
    "float grad_scale, int grad_norm) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.channel_error_forward.default, "triton": torch.ops.fastq_triton.channel_error_forward.default}
_backward = {"cpu": torch.ops.fastq.channel_error_backward.default, "triton": torch.ops.fastq_triton.channel_error_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_forward(backend: str, x: Any, step: Any, *arguments: Any) -> Any:
    if backend == "reference":
        return reference_forward(x, step, *arguments)
    if backend == "triton":
        from .. import triton_kernels  # noqa: F401  registers the kernels
    return _forward[backend](x, step, *arguments)


def _run_backward(backend: str, g: Any, e: Any, x: Any, step: Any, arguments: tuple[Any, ...], grad_scale: float | str) -> Any:
    if backend == "reference":
        qmin, qmax, axis, eps, boundary = arguments
        dx, by_y, by_error = reference_backward(g, x, step, e, qmin, qmax, axis, eps, boundary, grad_scale)
    else:
        dx, by_y, by_error = _backward[backend](g, x, step, e, *arguments, *gradient_factor(grad_scale))
    return dx, by_y + by_error


class ChannelError(torch.autograd.Function):
    """``ChannelError.apply(x, step, qmin, qmax, axis, boundary, grad_scale, eps, everything)`` gives ``(y, error)``.

    The node under :func:`fastq.channel_error`, which documents the formula. Every argument is given, already resolved, as for
    :class:`fastq.autograd.LSQ`. With ``everything`` the second result is the ``(5, C)`` sums of :func:`fastq.channel_stats`,
    which get no gradient. Saves ``x`` and ``step``. The backward pass returns gradients for both; a second one raises
    ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, qmin: int, qmax: int, axis: int = 1, boundary: int = 0, grad_scale: float | str = "lsq",
        eps: float = 1e-8, everything: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        check("channel_error", x, step, axis)
        checks.check_values("channel_error", x, step, None)
        gradient_factor(grad_scale, "channel_error")
        backend = dispatch.select(x)
        ctx.save_for_backward(x, step)
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.arguments, ctx.grad_scale = backend, (qmin, qmax, axis, eps, boundary), grad_scale
        y, sums = _run_forward(backend, x, step, qmin, qmax, axis, eps, everything)
        if everything:
            ctx.mark_non_differentiable(sums)
            return y, sums
        return y, sums[0].to(compute_dtype(x))

    @staticmethod
    def backward(ctx: Any, g: Any, e: Any) -> tuple[Any, ...]:
        x, step = ctx.saved_tensors
        if g is None and e is None:
            return (None,) * 9
        if g is None:
            g = x.new_zeros(()).expand(x.shape)
        if e is None:
            e = step.new_zeros((x.shape[ctx.arguments[2]],))
        arguments = (ctx.backend, g, e, x, step, ctx.arguments, ctx.grad_scale)
        if torch.is_grad_enabled():
            gradients = _library.BackwardOnce.apply("channel_error", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, *(None,) * 7


def resolve(
    op: str, x: torch.Tensor, bits: Any, signed: bool, narrow: bool, axis: Any, boundary: str, grad_scale: float | str, eps: float
) -> tuple[int, int, int, int, float | str, float]:
    """Check the public arguments, the tensors' values aside, and give those that follow ``step`` in :class:`ChannelError`."""
    check_input(op, x)
    axis_ = channel_axis(op, x, axis)
    qmin, qmax = integer_range(op, bits, signed, narrow)
    if boundary not in BOUNDARIES:
        raise ValueError(f"{op}: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    gradient_factor(grad_scale, op)
    check_eps(op, eps)
    return qmin, qmax, axis_, BOUNDARIES[boundary], grad_scale, eps


def channel_error(
    x: torch.Tensor, step: torch.Tensor, *, bits: int | tuple[int, int], signed: bool = True, narrow: bool = False, axis: int = 1,
    boundary: str = "open", grad_scale: float | str = "lsq", eps: float = 1e-8,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Fake-quantize ``x`` with one learned step, and tell each channel's squared error, in one pass.

    Forward, with ``s = max(|step|, eps)``, rounding half to even, and sums in fp64::

        q = round(clip(x / s, qmin, qmax))
        y = s * q                                       the bits of fastq.lsq
        error[c] = sum over channel c of (x - s*q)^2

    Backward, for the gradients ``g`` of ``y`` and ``e`` of ``error``; ``m`` is LSQ's mask, and to the error codes are constant::

        dx    = (g where m, else 0) + 2 * e[c] * (x - s*q)
        dstep = G * sign(step) * sum g * (q - v where m; else qmin where v <= qmin; else qmax)
              + sign(step) * sum 2 * e[c] * (s*q - x) * q

    One pass forward, one backward; ``x`` and ``step`` are kept, nothing else. The bits of ``y`` and ``dx`` are the same on every
    backend; the sums are the same on every run and for any number of threads. For 16-bit ``x`` the error is that of ``s*q`` before
    it is rounded to the dtype of ``y``.

    Args:
        x: float32, bfloat16, float16 or float64, any shape of at least one dimension and any strides.
        step: the step, float32 (float64 for float64 ``x``), one element, in units of ``x``.
        bits, signed, narrow, boundary, grad_scale, eps: as in :func:`fastq.lsq`; ``grad_scale`` is for ``y``'s part alone.
        axis: the axis of the C channels.

    Returns:
        ``(y, error)``: ``y`` with the shape, dtype and memory layout of ``x``; ``error`` of shape ``(C,)``, float32 (float64 for
        float64 ``x``), in squared units of ``x``.

    Not finite: NaN in ``x`` gives NaN in ``y``, in its channel's error and in the gradients; an infinite ``x`` saturates and has an
    infinite error, and a gradient that is not finite where the error has one. An empty ``x`` gives zeros.

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; ``step`` has another dtype than it should; no axis.
        ValueError: a shape, axis, range or option does not fit.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    What it is for: one step for a layer whose objective weighs each channel by its own variance, so that a few channels of high
    variance do not decide it: :func:`fastq.channel_weights`, :func:`fastq.channel_objective`, :func:`fastq.update_step_`,
    :class:`fastq.nn.ChannelError`. That objective is a reconstruction; its equations are not published in the sources we had. The
    quantizer is LSQ's: Esser et al., Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153.

    Example:
        >>> x, step = torch.randn(8, 16, 14, 14), torch.tensor([0.1], requires_grad=True)
        >>> y, error = fastq.channel_error(x, step, bits=4)
        >>> error.shape
        torch.Size([16])
    """
    return ChannelError.apply(x, step, *resolve("channel_error", x, bits, signed, narrow, axis, boundary, grad_scale, eps))


def channel_stats(
    x: torch.Tensor, step: torch.Tensor, *, bits: int | tuple[int, int], signed: bool = True, narrow: bool = False, axis: int = 1,
    eps: float = 1e-8,
) -> ChannelStats:  # fmt: skip
    """The sums over each channel that a step is judged by, in one pass over ``x``.

    Arguments and quantizer of :func:`fastq.channel_error`. Returns a :class:`ChannelStats` of fp64 tensors of shape ``(C,)``::

        x = sum x;  xx = sum x^2;  xq = sum x*q;  qq = sum q^2;  error = sum (x - s*q)^2
        mean, var, mse: of each channel          elements: how many it has

    In fp64 because ``sum x^2 - mean^2`` cancels: with a mean of 1000 deviations, six of fp32's seven digits. The sums are the same
    on every run and for any number of threads. They carry no gradient. Raises what :func:`fastq.channel_error` raises.
    """
    qmin, qmax, axis_, *_ = resolve("channel_stats", x, bits, signed, narrow, axis, "open", 1.0, eps)
    check("channel_stats", x, step, axis_)
    checks.check_values("channel_stats", x, step, None)
    with torch.no_grad():
        return stats_of(x, axis_, _run_forward(dispatch.select(x), x, step, qmin, qmax, axis_, eps, True)[1])
