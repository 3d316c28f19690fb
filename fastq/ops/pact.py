"""PACT: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, normalize_axis
from ..ranges import check_eps, check_flags, level_count
from ..reference.pact import pact_backward as reference_backward
from ..reference.pact import pact_forward as reference_forward
from . import _library

__all__ = ["PACT", "pact"]


def _check_tensors(x: torch.Tensor, alpha: torch.Tensor, axis: int, group_size: int) -> None:
    check_input("pact", x)
    check_parameter("pact", "alpha", alpha, x, axis, group_size)


def check(x: torch.Tensor, alpha: torch.Tensor, axis: int, group_size: int) -> None:
    """The checks of PACT's tensors, their values where the checking mode asks."""
    _check_tensors(x, alpha, axis, group_size)
    checks.check_values("pact", x, alpha, None, names=("alpha", ""))


def _fake_forward(x: Any, alpha: Any, levels: int, two_sided: bool, axis: int, group_size: int, eps: float) -> Any:
    _check_tensors(x, alpha, axis, group_size)
    return torch.empty_like(x)


def _fake_backward(
    grad: Any, x: Any, alpha: Any, levels: int, two_sided: bool, axis: int, group_size: int, eps: float, calibrated: bool
) -> Any:
    _check_tensors(x, alpha, axis, group_size)
    return torch.empty_like(x), torch.empty_like(alpha, memory_format=torch.contiguous_format)


_library.define(
    "pact_forward",
    "(Tensor x, Tensor alpha, int levels, bool two_sided, int axis, int group_size, float eps) -> Tensor",
    _fake_forward,
)
_library.define(
    "pact_backward",
    "(Tensor grad, Tensor x, Tensor alpha, int levels, bool two_sided, int axis, int group_size, float eps, "
    "bool calibrated) -> (Tensor, Tensor)",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.pact_forward.default, "triton": torch.ops.fastq_triton.pact_forward.default}
_backward = {"cpu": torch.ops.fastq.pact_backward.default, "triton": torch.ops.fastq_triton.pact_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: Any, x: Any, alpha: Any, arguments: tuple[Any, ...]) -> Any:
    return (reference_backward if backend == "reference" else _backward[backend])(g, x, alpha, *arguments)


class PACT(torch.autograd.Function):
    """``PACT.apply(x, alpha, levels, two_sided, axis, group_size, eps, calibrated)``.

    The node under :func:`fastq.pact`, which documents the formula. ``levels`` is ``L = 2**bits - 1``, ``axis`` -1 and
    ``group_size`` 0 where absent. Saves ``x`` and ``alpha``. The backward pass returns gradients for both; a second one
    raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, alpha: Any, levels: int, two_sided: bool = False, axis: int = -1, group_size: int = 0,
        eps: float = 1e-8, calibrated: bool = True,
    ) -> torch.Tensor:  # fmt: skip
        check(x, alpha, axis, group_size)
        backend = dispatch.select(x)
        ctx.save_for_backward(x, alpha)
        ctx.backend, ctx.arguments = backend, (levels, two_sided, axis, group_size, eps, calibrated)
        if backend == "reference":
            return reference_forward(x, alpha, levels, two_sided, axis, group_size, eps)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        return _forward[backend](x, alpha, levels, two_sided, axis, group_size, eps)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arguments = (ctx.backend, g, *ctx.saved_tensors, ctx.arguments)
        if torch.is_grad_enabled():  # under create_graph=True: computed, and not to be differentiated again
            gradients = _library.BackwardOnce.apply("pact", _run_backward, *arguments)
        else:
            gradients = _run_backward(*arguments)
        return *gradients, None, None, None, None, None, None


def resolve(
    x: torch.Tensor, bits: int, calibrated: bool, two_sided: bool, axis: int | None, group_size: int | None, eps: float
) -> tuple[int, bool, int, int, float, bool]:
    """Check the public arguments, the tensors' values aside, and give those that follow ``alpha`` in :class:`PACT`."""
    check_input("pact", x)
    levels = level_count("pact", bits)
    check_flags("pact", calibrated=calibrated, two_sided=two_sided)
    check_eps("pact", eps)
    return levels, two_sided, *normalize_axis("pact", x, axis, group_size), eps, calibrated


def pact(
    x: torch.Tensor,
    alpha: torch.Tensor,
    *,
    bits: int,
    calibrated: bool = True,
    two_sided: bool = False,
    axis: int | None = None,
    group_size: int | None = None,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Clip ``x`` to a learned range ``[0, alpha]`` and fake-quantize it (PACT), by default with the calibrated gradient.

    With ``A = max(|alpha|, eps)``, ``L = 2**bits - 1``, ``s = A / L``, ``v = x / s`` and rounding half to even::

        y      = s * q,  q = round(clip(v, 0, L))
        dx     = g where 0 < x < A, else 0
        dalpha = sign(alpha) * sum g * ((q - v) / L where 0 < x < A;  1 where x >= A;  else 0)      calibrated
        dalpha = sign(alpha) * sum g * (0           where 0 < x < A;  1 where x >= A;  else 0)      plain

    ``two_sided`` clips to ``[-A, A]``, and ``L`` steps of ``2 * s`` divide that::

        q      = 2 * round((clip(v, -L, L) + L) / 2) - L
        dx     = g where -A < x < A, else 0
        dalpha = as above with -A < x < A; -1 where x <= -A

    Its codes ``q`` are odd, from ``-L`` to ``L``: there is no level 0 (``x = 0`` is a tie), and 8 bits do not fit int8.

    The calibrated gradient is that of :func:`fastq.lsq` with ``step = alpha / L``: ``dalpha = dstep / L``, and ``y`` and
    ``dx`` have its bits, save that here the edge is exactly at ``x == A``. There is no gradient scale.

    Args:
        x: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64).
        alpha: the clip, float32 (float64 for float64 ``x``), in units of ``x``. One element per tensor; ``(C,)`` with
            ``axis``; ``x.shape[:-1] + (K // group_size,)`` with ``group_size``, ``K = x.shape[-1]``.
        bits: 1 to 8.
        calibrated: whether the rounding inside the range counts in ``dalpha``.
        two_sided: clip to ``[-A, A]`` instead of ``[0, A]``.
        axis: one clip per index of this axis. Excludes ``group_size``.
        group_size: one clip per so many consecutive elements of the last axis, which it must divide.
        eps: the smallest ``A`` used.

    Returns:
        ``y``, with the shape, dtype and memory layout of ``x``.

    Not finite: NaN in ``x`` gives NaN in ``y``, ``dx`` and the ``dalpha`` it touches; an infinite ``x`` saturates; an alpha
    of inf or NaN gives NaN. A zero or negative alpha acts as ``max(|alpha|, eps)``, its gradient with the sign of alpha
    (:func:`fastq.set_checks` makes it raise).

    Raises:
        TypeError: ``x`` is not a dense float tensor of a dtype above; ``alpha`` or an option has another type than it should.
        ValueError: a shape, axis, group size, number of bits or eps does not fit.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Papers: Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018,
    https://arxiv.org/abs/1805.06085; the calibrated gradient and the two-sided form: Jin et al., Towards Efficient Training
    for Neural Network Quantization (SAT), 2019, https://arxiv.org/abs/1912.10207.

    Example:
        >>> x = torch.randn(64, 128, requires_grad=True)
        >>> alpha = torch.tensor([8.0], requires_grad=True)
        >>> fastq.pact(x, alpha, bits=4).square().sum().backward()
        >>> alpha.grad.shape
        torch.Size([1])
    """
    return PACT.apply(x, alpha, *resolve(x, bits, calibrated, two_sided, axis, group_size, eps))
