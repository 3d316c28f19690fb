"""QIL: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..ranges import check_eps, check_flag, level_count
from ..reference.qil import qil_backward as reference_backward
from ..reference.qil import qil_forward as reference_forward
from . import _library

__all__ = ["QIL", "qil"]


def _check_tensors(x: Any, center: Any, width: Any, gamma: Any, weight: bool, axis: int, group_size: int) -> None:
    check_input("qil", x)
    check_parameter("qil", "center", center, x, axis, group_size)
    for name, p in (("width", width), ("gamma", gamma)):
        if p is not None or name == "width":
            check_parameter("qil", name, p, x, axis, group_size)
            if p.shape != center.shape:
                raise ValueError(f"qil: {name} must have the shape of center, {tuple(center.shape)}, got {tuple(p.shape)}")
    if gamma is not None and not weight:
        raise ValueError("qil: gamma is for weights (weight=True); an activation's transformer is linear")


def check(x: Any, center: Any, width: Any, gamma: Any, weight: bool, axis: int, group_size: int) -> None:
    """The checks of QIL's tensors, their values where the checking mode asks."""
    _check_tensors(x, center, width, gamma, weight, axis, group_size)
    if checks.enabled():
        checks.check_values("qil", x, width, center, names=("width", "center"))
        if gamma is not None:
            checks.check_values("qil", x, gamma, None, names=("gamma", ""))
        if weight and not bool((center - width >= 0).all()):
            raise ValueError(
                "qil: center - width must be at least 0 everywhere for weights, "
                f"got {(center - width).detach().flatten()[:8].tolist()}"
            )


def _fake_forward(
    x: Any, center: Any, width: Any, gamma: Any, levels: int, weight: bool, axis: int, group_size: int, eps: float
) -> Any:
    _check_tensors(x, center, width, gamma, weight, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, center: Any, width: Any, gamma: Any, levels: int, weight: bool, axis: int, group_size: int, eps: float
) -> Any:
    _check_tensors(x, center, width, gamma, weight, axis, group_size)
    dcenter, dwidth = (torch.empty_like(p, memory_format=torch.contiguous_format) for p in (center, width))
    dgamma = center.new_empty(0) if gamma is None else torch.empty_like(gamma, memory_format=torch.contiguous_format)
    return torch.empty_like(x), dcenter, dwidth, dgamma


_ARGUMENTS = "Tensor x, Tensor center, Tensor width, Tensor? gamma, int levels, bool weight, int axis, int group_size, float eps"
_library.define("qil_forward", f"({_ARGUMENTS}) -> Tensor", _fake_forward)
_library.define("qil_backward", f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)", _fake_backward)

_forward = {"cpu": torch.ops.fastq.qil_forward.default, "triton": torch.ops.fastq_triton.qil_forward.default}
_backward = {"cpu": torch.ops.fastq.qil_backward.default, "triton": torch.ops.fastq_triton.qil_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, center: Any, width: Any, gamma: Any, arguments: tuple[Any, ...]) -> Any:
    if backend == "reference":
        return reference_backward(g, x, center, width, gamma, *arguments)
    dx, dcenter, dwidth, dgamma = _backward[backend](g, x, center, width, gamma, *arguments)
    return dx, dcenter, dwidth, None if gamma is None else dgamma


class QIL(torch.autograd.Function):
    """``QIL.apply(x, center, width, gamma, levels, weight, axis, group_size, eps)``.

    The node under :func:`fastq.qil`, which documents the formula. ``gamma`` is a tensor or None, ``levels`` is ``L``,
    ``axis`` -1 and ``group_size`` 0 where absent. Saves ``x`` and the parameters. The backward pass returns gradients for
    them all; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, center: Any, width: Any, gamma: Any, levels: int, weight: bool, axis: int = -1,
        group_size: int = 0, eps: float = 1e-8,
    ) -> torch.Tensor:  # fmt: skip
        check(x, center, width, gamma, weight, axis, group_size)
        backend = dispatch.select(x)
        ctx.save_for_backward(x, center, width, gamma)
        ctx.backend, ctx.arguments = backend, (levels, weight, axis, group_size, eps)
        if backend == "reference":
            return reference_forward(x, center, width, gamma, levels, weight, axis, group_size, eps)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        return _forward[backend](x, center, width, gamma, levels, weight, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.arguments)
        if torch.is_grad_enabled():  # under create_graph=True: computed, and not to be differentiated again
            gradients = _library.BackwardOnce.apply("qil", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, None, None, None, None, None


def resolve(
    x: torch.Tensor, gamma: Any, bits: int, weight: bool, axis: int | None, group_size: int | None, eps: float
) -> tuple[int, bool, int, int, float]:
    """Check the public arguments, the tensors' values aside, and give those that follow ``gamma`` in :class:`QIL`."""
    check_input("qil", x)
    check_flag("qil", "weight", weight)
    levels = level_count("qil", bits, signed=weight)
    check_eps("qil", eps)
    return levels, weight, *normalize_axis("qil", x, axis, group_size), eps


def qil(
    x: torch.Tensor,
    center: torch.Tensor,
    width: torch.Tensor,
    gamma: torch.Tensor | None = None,
    *,
    bits: int,
    weight: bool,
    axis: int | None = None,
    group_size: int | None = None,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Prune below, clip above and quantize inside an interval whose centre and half-width are learned (QIL).

    With ``u = (a - (center - width)) / (2 * width)``, where ``a = |x|`` and ``sign = sign(x)`` for weights, ``a = x`` and
    ``sign = 1`` for activations, and rounding half to even::

        hat = sign * (0 where u <= 0;  1 where u >= 1;  else u**gamma)
        y   = round(hat * L) / L                      L = 2**(bits-1) - 1 for weights, 2**bits - 1 for activations

    Backward, where ``0 < u < 1`` (elsewhere every gradient is 0), with ``P = gamma * u**(gamma - 1)``::

        dx      = g * P / (2 * width)
        dcenter = -sum g * sign * P / (2 * width)
        dwidth  = -sum g * sign * P * (a - center) / (2 * width**2)
        dgamma  =  sum g * sign * u**gamma * ln(u)

    The output lies between -1 and 1 (activations: 0 and 1) and is not scaled back: a batch norm follows. 2 bits are
    ternary weights; 1 bit has no level beside 0 and is refused for weights.

    Args:
        x: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64).
        center, width: the interval's centre and half its width, float32 (float64 for float64 ``x``), in units of ``x``. One
            element per tensor; ``(C,)`` with ``axis``; ``x.shape[:-1] + (K // group_size,)`` with ``group_size``,
            ``K = x.shape[-1]``.
        gamma: the exponent, of the shape of ``center``, for weights alone. None is an exponent of 1 that is not learned.
        bits: 1 to 8; 2 to 8 for weights.
        weight: whether ``x`` is a weight.
        axis: one interval per index of this axis. Excludes ``group_size``.
        group_size: one interval per so many consecutive elements of the last axis, which it must divide.
        eps: the smallest width, and the smallest gamma, used.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``. With a gamma, backends agree to a few ulp of ``u**gamma``: in
        ``y`` to the same level wherever that is not next to a tie. Without one they have the same bits.

    Guards, through which gradients pass as if they were not there: a width or gamma of zero or below acts as
    ``max(|p|, eps)``, its gradient with the sign of ``p``; for weights a center below the width acts as the width, so that the
    interval begins at 0 at the lowest (:func:`fastq.set_checks` makes all three raise). NaN in ``x`` gives NaN in ``y``, ``dx``
    and the gradients it touches; an infinite ``x`` saturates; a parameter of inf or NaN gives NaN.

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; a parameter or an option has another type than it should.
        ValueError: a shape, axis, group size, number of bits or eps does not fit; a gamma for an activation.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Paper: Jung et al., Learning to Quantize Deep Networks by Optimizing Quantization Intervals with Task Loss (QIL), CVPR
    2019, https://arxiv.org/abs/1808.05779.

    Example:
        >>> w = torch.randn(64, 128, requires_grad=True)
        >>> center, width, gamma = (torch.tensor([v], requires_grad=True) for v in (2.0, 1.5, 1.0))
        >>> fastq.qil(w, center, width, gamma, bits=3, weight=True).square().sum().backward()
        >>> gamma.grad.shape
        torch.Size([1])
    """
    return QIL.apply(x, center, width, gamma, *resolve(x, gamma, bits, weight, axis, group_size, eps))
