"""EWGS: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..ranges import BOUNDARIES, LARGEST_FLOAT, check_eps, level_count
from ..reference.ewgs import ewgs_backward as reference_backward
from ..reference.ewgs import ewgs_forward as reference_forward
from . import _library

__all__ = ["EWGS", "ewgs"]


def _check_tensors(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, axis: int, group_size: int) -> None:
    check_input("ewgs", x)
    check_parameter("ewgs", "lower", lower, x, axis, group_size)
    check_parameter("ewgs", "upper", upper, x, axis, group_size)
    if upper.shape != lower.shape:
        raise ValueError(f"ewgs: upper must have the shape of lower, {tuple(lower.shape)}, got {tuple(upper.shape)}")


def check(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, axis: int, group_size: int) -> None:
    """The checks of EWGS's tensors, their values where the checking mode asks."""
    _check_tensors(x, lower, upper, axis, group_size)
    if checks.enabled():
        checks.check_values("ewgs", x, upper - lower, None, names=("upper - lower", ""))


def check_delta(delta: float, op: str = "ewgs") -> None:
    """``delta`` is a finite float of at least 0; ``TypeError`` or ``ValueError``."""
    if isinstance(delta, bool) or not isinstance(delta, (int, float, torch.SymFloat)):
        raise TypeError(f"{op}: delta must be a float, got {delta!r}")
    if not 0 <= delta <= LARGEST_FLOAT:
        raise ValueError(f"{op}: delta must be at least 0 and finite, got {delta}")


def check_boundary(boundary: str, op: str = "ewgs") -> None:
    """``boundary`` is one that a position between 0 and 1 can have."""
    if boundary not in ("open", "closed"):
        raise ValueError(f"{op}: boundary must be one of open, closed, got {boundary!r}")


def _fake_forward(x: Any, lower: Any, upper: Any, levels: int, axis: int, group_size: int, eps: float) -> Any:
    _check_tensors(x, lower, upper, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, lower: Any, upper: Any, levels: int, axis: int, group_size: int, eps: float, boundary: int, delta: float
) -> Any:
    _check_tensors(x, lower, upper, axis, group_size)
    return torch.empty_like(x), *(torch.empty_like(p, memory_format=torch.contiguous_format) for p in (lower, upper))


_library.define(
    "ewgs_forward",
    "(Tensor x, Tensor lower, Tensor upper, int levels, int axis, int group_size, float eps) -> Tensor",
    _fake_forward,
)
_library.define(
    "ewgs_backward",
    "(Tensor grad, Tensor x, Tensor lower, Tensor upper, int levels, int axis, int group_size, float eps, int boundary, "
    "float delta) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.ewgs_forward.default, "triton": torch.ops.fastq_triton.ewgs_forward.default}
_backward = {"cpu": torch.ops.fastq.ewgs_backward.default, "triton": torch.ops.fastq_triton.ewgs_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, lower: Any, upper: Any, arguments: tuple[Any, ...]) -> Any:
    return (reference_backward if backend == "reference" else _backward[backend])(g, x, lower, upper, *arguments)


class EWGS(torch.autograd.Function):
    """``EWGS.apply(x, lower, upper, levels, axis, group_size, eps, boundary, delta)``.

    The node under :func:`fastq.ewgs`, which documents the formula. ``levels`` is ``L = 2**bits - 1``, ``axis`` -1 and
    ``group_size`` 0 where absent, ``boundary`` 0 open, 1 closed. Saves ``x`` and the bounds. The backward pass returns
    gradients for the three; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, lower: Any, upper: Any, levels: int, axis: int = -1, group_size: int = 0,
        eps: float = 1e-8, boundary: int = 0, delta: float = 0.0,
    ) -> torch.Tensor:  # fmt: skip
        check(x, lower, upper, axis, group_size)
        check_delta(delta)
        backend = dispatch.select(x)
        ctx.save_for_backward(x, lower, upper)
        ctx.backend, ctx.arguments = backend, (levels, axis, group_size, eps, boundary, delta)
        if backend == "reference":
            return reference_forward(x, lower, upper, levels, axis, group_size, eps)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        return _forward[backend](x, lower, upper, levels, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.arguments)
        if torch.is_grad_enabled():  # under create_graph=True: computed, and not to be differentiated again
            gradients = _library.BackwardOnce.apply("ewgs", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, None, None, None, None, None, None


def resolve(
    x: torch.Tensor, bits: int, delta: float, axis: int | None, group_size: int | None, boundary: str, eps: float
) -> tuple[int, int, int, float, int, float]:
    """Check the public arguments, the tensors' values aside, and give those that follow ``upper`` in :class:`EWGS`."""
    check_input("ewgs", x)
    levels = level_count("ewgs", bits)
    check_delta(delta)
    check_boundary(boundary)
    check_eps("ewgs", eps)
    return levels, *normalize_axis("ewgs", x, axis, group_size), eps, BOUNDARIES[boundary], delta


def ewgs(
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    *,
    bits: int,
    delta: float,
    axis: int | None = None,
    group_size: int | None = None,
    boundary: str = "open",
    eps: float = 1e-8,
) -> torch.Tensor:
    """Quantize ``x`` to ``2**bits`` levels between 0 and 1, with gradients scaled by the rounding error (EWGS).

    Forward, with ``L = 2**bits - 1``, ``W = upper - lower`` and rounding half to even::

        c = clip((x - lower) / W, 0, 1)
        y = round(c * L) / L

    Backward, where ``0 < (x - lower) / W < 1`` (elsewhere every gradient is 0)::

        h      = g * (1 + delta * sign(g) * (c - y))
        dx     = h / W
        dupper = -sum h * c / W
        dlower = sum h * (c - 1) / W

    ``delta = 0`` is the straight-through estimator. The output is normalised: it has no units of ``x``, and zero lies at
    ``lower``. A weight is ``2 * (y - 0.5)`` times a scale: :class:`fastq.nn.EWGS` does that.

    Args:
        x: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64).
        lower, upper: the interval, float32 (float64 for float64 ``x``), in units of ``x``. One element per tensor; ``(C,)``
            with ``axis``; ``x.shape[:-1] + (K // group_size,)`` with ``group_size``, ``K = x.shape[-1]``.
        bits: 1 to 8.
        delta: how much the rounding error scales a gradient: a finite float >= 0 (:func:`fastq.nn.hessian_delta` finds one).
        axis: one interval per index of this axis. Excludes ``group_size``.
        group_size: one interval per so many consecutive elements of the last axis, which it must divide.
        boundary: where the gradient passes: ``"open"`` strictly inside the interval, ``"closed"`` at its ends as well (what
            autograd of clamp does).
        eps: the smallest width used.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``.

    Not finite: NaN in ``x`` gives NaN in ``y``, ``dx`` and the gradients it touches; an infinite ``x`` saturates; a bound of
    inf or NaN gives NaN. ``upper <= lower`` acts as a step that is not positive: the interval is ``[lower, lower + W]`` with
    ``W = max(|upper - lower|, eps)``, and the gradient that reaches the bounds through ``W`` has the sign of ``upper - lower``
    (:func:`fastq.set_checks` makes it raise).

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; a bound or an option has another type than it should.
        ValueError: a shape, axis, group size, number of bits, delta, boundary or eps does not fit.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Paper: Lee et al., Network Quantization with Element-wise Gradient Scaling, CVPR 2021, https://arxiv.org/abs/2104.00903.

    Example:
        >>> x = torch.randn(64, 128, requires_grad=True)
        >>> lower, upper = torch.tensor([-3.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
        >>> fastq.ewgs(x, lower, upper, bits=2, delta=0.1).square().sum().backward()
        >>> upper.grad.shape
        torch.Size([1])
    """
    return EWGS.apply(x, lower, upper, *resolve(x, bits, delta, axis, group_size, boundary, eps))
