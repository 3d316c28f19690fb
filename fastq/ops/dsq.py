"""DSQ: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..reference.dsq import dsq_backward as reference_backward
from ..reference.dsq import dsq_forward as reference_forward
from . import _library

__all__ = ["DSQ", "dsq"]


def check(
    op: str, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, alpha: torch.Tensor | float | None,
    axis: int, group_size: int,
) -> None:  # fmt: skip
    """The checks of DSQ's tensors, for every backend and for the fake kernels."""
    check_input(op, x)
    names = {"lower": lower, "upper": upper} | ({"alpha": alpha} if isinstance(alpha, torch.Tensor) else {})
    for name, p in names.items():
        check_parameter(op, name, p, x, axis, group_size)
        if p.shape != lower.shape:
            raise ValueError(f"{op}: {name} must have the shape of lower, {tuple(lower.shape)}, got {tuple(p.shape)}")


def _fake_forward(x: Any, lower: Any, upper: Any, levels: int, axis: int, group_size: int) -> Any:
    check("dsq", x, lower, upper, None, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, lower: Any, upper: Any, alpha: Any, constant: float, levels: int, axis: int, group_size: int
) -> Any:
    check("dsq", x, lower, upper, alpha, axis, group_size)
    dalpha = lower.new_empty(0) if alpha is None else torch.empty_like(alpha, memory_format=torch.contiguous_format)
    bounds = (torch.empty_like(p, memory_format=torch.contiguous_format) for p in (lower, upper))
    return torch.empty_like(x), *bounds, dalpha


_library.define(
    "dsq_forward", "(Tensor x, Tensor lower, Tensor upper, int levels, int axis, int group_size) -> Tensor", _fake_forward
)
_library.define(
    "dsq_backward",
    "(Tensor grad, Tensor x, Tensor lower, Tensor upper, Tensor? alpha, float constant, int levels, int axis, int group_size) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.dsq_forward.default, "triton": torch.ops.fastq_triton.dsq_forward.default}
_backward = {"cpu": torch.ops.fastq.dsq_backward.default, "triton": torch.ops.fastq_triton.dsq_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, lower: Any, upper: Any, alpha: Any, constant: float, arguments: Any) -> Any:
    if backend == "reference":
        return reference_backward(g, x, lower, upper, constant if alpha is None else alpha, *arguments)
    *gradients, dalpha = _backward[backend](g, x, lower, upper, alpha, constant, *arguments)
    return *gradients, None if alpha is None else dalpha


class DSQ(torch.autograd.Function):
    """``DSQ.apply(x, lower, upper, alpha, levels, axis, group_size)``.

    The node under :func:`fastq.dsq`, which documents the formula. Here every argument is given, already resolved: ``alpha`` a
    tensor or a number, ``levels`` is ``2**bits - 1``, ``axis`` -1 and ``group_size`` 0 where absent. Saves ``x`` and the
    parameters. The backward pass returns gradients for ``x``, ``lower``, ``upper`` and a tensor ``alpha``; a second one raises
    ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, lower: Any, upper: Any, alpha: Any, levels: int, axis: int = -1, group_size: int = 0
    ) -> torch.Tensor:
        check("dsq", x, lower, upper, alpha, axis, group_size)
        checks.check_dsq("dsq", x, lower, upper, alpha)
        learned = isinstance(alpha, torch.Tensor)
        backend = dispatch.select(x)
        ctx.save_for_backward(x, lower, upper, alpha if learned else None)
        ctx.backend = backend
        ctx.constant = 0.0 if learned else alpha
        ctx.arguments = arguments = (levels, axis, group_size)
        if backend == "reference":
            return reference_forward(x, lower, upper, *arguments)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        return _forward[backend](x, lower, upper, *arguments)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.constant, ctx.arguments)
        if torch.is_grad_enabled():
            gradients = _library.BackwardOnce.apply("dsq", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, None, None, None


def check_bits(op: str, bits: int) -> int:
    """``2**bits - 1`` for 1 to 8 bits."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{op}: bits must be an int from 1 to 8, got {bits!r}")
    if not 1 <= bits <= 8:
        raise ValueError(f"{op}: bits must be from 1 to 8, got {bits}")
    return 2**bits - 1


def check_alpha(op: str, alpha: torch.Tensor | float) -> None:
    """A tensor, whose values only the checking mode looks at, or a number between 0 and 1."""
    if isinstance(alpha, torch.Tensor):
        return
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"{op}: alpha must be a torch.Tensor or a float between 0 and 1, got {type(alpha).__name__}")
    if not 0 < alpha < 1:
        raise ValueError(f"{op}: alpha must lie between 0 and 1 (both excluded), got {alpha}")


def resolve(
    x: torch.Tensor, bits: int, alpha: torch.Tensor | float, axis: int | None, group_size: int | None
) -> tuple[int, int, int]:
    """Check the public arguments, the tensors' values aside, and give those that follow ``alpha`` in :class:`DSQ`."""
    check_input("dsq", x)
    levels = check_bits("dsq", bits)
    check_alpha("dsq", alpha)
    return levels, *normalize_axis("dsq", x, axis, group_size)


def dsq(
    x: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    *,
    bits: int,
    alpha: torch.Tensor | float,
    axis: int | None = None,
    group_size: int | None = None,
) -> torch.Tensor:
    """Fake-quantize ``x`` between two learned bounds, with the gradient of a soft staircase (DSQ).

    Forward, with ``L = 2**bits - 1`` and rounding half to even::

        D = max(upper - lower, 1e-8) / L
        v = (x - lower) / D
        q = round(clip(v, 0, L))
        y = D * q + lower

    Backward: each step of the staircase is a piece of tanh, softer for a larger ``a``. With ``c = clip(v, 0, L)``,
    ``f = floor(c)``, ``r = c - f - 0.5``, ``k = ln(2 / a - 1)``, ``S = 1 / (1 - a)`` and the mask ``m = 0 < v < L``::

        phi    = f + 0.5 + 0.5 * S * tanh(k * r)              goes through (f, f) and (f + 1, f + 1); round(phi) = q
        slope  = dphi/dv = 0.5 * S * k / cosh(k * r)**2
        dx     = g * slope where m, else 0
        dlower = sum g * ((1 - q / L) - slope * (1 - c / L) where m; else 1 where v <= 0; else 0)
        dupper = sum g * ((q - slope * c) / L where m; else 0 where v <= 0; else 1)
        dalpha = sum g * D * 0.5 * S * (S * tanh(k * r) - r * 2 / (a * (2 - a)) / cosh(k * r)**2) where m

    A reconstruction: the equations of these gradients were not published in the sources we had. They are the chain rule on the soft
    staircase, the rounding of ``phi`` passed straight through: the derivatives of ``lower + D * (phi + rho)``, ``rho = q - phi``
    held constant. tanh keeps the sign of ``r``, so the codes need none and ``y`` has the same bits on every backend; ``dx`` has
    the same bits on CPU, CUDA and Triton for float32 arithmetic, and is within a few ulp of the reference, which takes torch's
    exp. The sums are the same on every run and for any number of threads. One pass forward, one backward; the backward pass keeps
    ``x`` and the parameters, nothing else.

    Args:
        x: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64).
        lower, upper: the bounds, float32 (float64 for float64 ``x``), in units of ``x``. One element per tensor; ``(C,)`` with
            ``axis``; ``x.shape[:-1] + (K // group_size,)`` with ``group_size``, ``K = x.shape[-1]``.
        bits: 1 to 8; the codes are 0 to ``2**bits - 1``.
        alpha: the softness ``a``, between 0 (hard) and 1 (a straight line), brought into [1e-4, 0.99]: a tensor of the shape and
            dtype of ``lower``, which gets a gradient (that at the value used, so that it can come back), or a number.
        axis: one pair of bounds per index of this axis. Excludes ``group_size``.
        group_size: one pair per so many consecutive elements of the last axis, which it must divide.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``: ``2**bits`` values from ``lower`` to ``upper``.

    Not finite: NaN in ``x`` gives NaN in ``y``, ``dx`` and the gradients of the parameters it touches; an infinite ``x``
    saturates; a bound of inf or NaN gives NaN. Bounds that meet or cross act as if 1e-8 apart (:func:`fastq.set_checks` makes
    that raise, and an ``alpha`` outside (0, 1)). An empty ``x`` gives an empty ``y`` and zero gradients.

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; a parameter has another dtype than it should.
        ValueError: a shape, axis, group size, number of bits or a float ``alpha`` does not fit; the message says what was expected.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Paper: Gong et al., Differentiable Soft Quantization, ICCV 2019, https://arxiv.org/abs/1908.05033.

    Example:
        >>> x = torch.randn(64, 128, requires_grad=True)
        >>> lower, upper = torch.tensor([-2.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
        >>> fastq.dsq(x, lower, upper, bits=2, alpha=0.2).square().sum().backward()
        >>> upper.grad.shape
        torch.Size([1])
    """
    levels, axis_, group = resolve(x, bits, alpha, axis, group_size)
    return DSQ.apply(x, lower, upper, alpha, levels, axis_, group)
