"""The dampening loss: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, compute_dtype, normalize_axis
from ..ranges import check_eps, integer_range
from ..reference.dampening import REDUCTIONS, loss_factor
from ..reference.dampening import dampening_backward as reference_backward
from ..reference.dampening import dampening_forward as reference_forward
from . import _library

__all__ = ["Dampening", "dampening"]


def check(w: torch.Tensor, step: torch.Tensor, axis: int, group_size: int) -> None:
    """The checks of the tensors, for every backend and for the fake kernel."""
    check_input("dampening", w, "w")
    check_parameter("dampening", "step", step, w, axis, group_size, "w")


def _fake_forward(w: Any, step: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float) -> Any:
    check(w, step, axis, group_size)
    return step.new_empty((1, 1), dtype=torch.float64)


def _fake_backward(
    grad: Any, w: Any, step: Any, qmin: int, qmax: int, axis: int, group_size: int, eps: float, factor: float
) -> Any:
    check(w, step, axis, group_size)
    return torch.empty_like(w)


_PLACE = "Tensor w, Tensor step, int qmin, int qmax, int axis, int group_size, float eps"
_library.define("dampening_forward", f"({_PLACE}) -> Tensor", _fake_forward)
_library.define("dampening_backward", f"(Tensor grad, {_PLACE}, float factor) -> Tensor", _fake_backward)

_forward: dict[str, Any] = {
    "reference": reference_forward,
    "cpu": torch.ops.fastq.dampening_forward.default,
    "cuda": torch.ops.fastq.dampening_forward.default,  # one operator; the dispatcher knows the device
    "triton": torch.ops.fastq_triton.dampening_forward.default,
}
_backward: dict[str, Any] = {
    "reference": reference_backward,
    "cpu": torch.ops.fastq.dampening_backward.default,
    "cuda": torch.ops.fastq.dampening_backward.default,
    "triton": torch.ops.fastq_triton.dampening_backward.default,
}


class Dampening(torch.autograd.Function):
    """``Dampening.apply(w, step, qmin, qmax, axis, group_size, factor, eps)``.

    The node under :func:`fastq.dampening`, which documents the formula. Here every argument is given, already resolved:
    ``axis`` -1 and ``group_size`` 0 where absent, ``factor`` the c of the formula. Saves ``w`` and ``step``. The backward pass
    returns a gradient for ``w``; a second one raises ``RuntimeError``.
    """

    @staticmethod
    def forward(
        ctx: Any, w: Any, step: Any, qmin: int, qmax: int, axis: int = -1, group_size: int = 0,
        factor: float = 1.0, eps: float = 1e-8,
    ) -> torch.Tensor:  # fmt: skip
        check(w, step, axis, group_size)
        checks.check_values("dampening", w, step, None, of="w")
        ctx.backend = backend = dispatch.select(w)
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        ctx.save_for_backward(w, step)
        ctx.arguments = (qmin, qmax, axis, group_size, eps, factor)
        total = _forward[backend](w, step, qmin, qmax, axis, group_size, eps)
        return (total * factor).to(compute_dtype(w)).reshape(())

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        run, arguments = _backward[ctx.backend], (g, *ctx.saved_tensors, *ctx.arguments)
        if torch.is_grad_enabled():  # under create_graph=True: computed, and not to be differentiated again
            dw = _library.BackwardOnce.apply("dampening", run, *arguments)
        else:
            dw = run(*arguments)
        return dw, None, None, None, None, None, None, None


def detached(step: Any) -> Any:
    """``step`` as a constant. What is no tensor stays, for :func:`check` to refuse."""
    return step.detach() if isinstance(step, torch.Tensor) else step


def resolve(
    w: torch.Tensor, bits: Any, signed: bool, narrow: bool, axis: int | None, group_size: int | None, reduction: str, eps: float
) -> tuple[int, int, int, int, float, float]:
    """Check the public arguments, the tensors' values aside, and give those that follow ``step`` in :class:`Dampening`."""
    check_input("dampening", w, "w")
    axis_, group = normalize_axis("dampening", w, axis, group_size, "w")
    qmin, qmax = integer_range("dampening", bits, signed, narrow)
    if reduction not in REDUCTIONS:
        raise ValueError(f"dampening: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    check_eps("dampening", eps)
    return qmin, qmax, axis_, group, loss_factor(w, reduction), eps


def dampening(
    w: torch.Tensor,
    step: torch.Tensor,
    *,
    bits: int | tuple[int, int],
    reduction: str = "kernel",
    signed: bool = True,
    narrow: bool = False,
    axis: int | None = None,
    group_size: int | None = None,
    eps: float = 1e-8,
) -> torch.Tensor:
    """The dampening loss of a weight: how far it lies from the middles of its quantization bins. Add it to the task's loss.

    With ``s = max(|step|, eps)`` and rounding half to even::

        w^   = s * round(clip(w / s, qmin, qmax))
        loss = c * sum (w^ - clip(w, s * qmin, s * qmax))^2
        dw   = g * 2 * c * (w - w^) inside the clip range, 0 outside

    ``w^`` and ``s`` count as constants: ``step`` gets no gradient. The weight of the loss (the paper's lambda) is yours to
    multiply by; :func:`fastq.schedules.dampening_weight` gives the paper's schedule. The forward pass reads ``w`` once; the
    backward pass reads it again and writes ``dw``. Nothing of its size is kept or made beside it: one pass for both would write
    ``dw`` up to ``g``, then read and write it again to multiply ``g`` in.

    Args:
        w: the weight: float32, bfloat16, float16 or float64, any shape and strides. Arithmetic is fp32 (fp64 for float64).
        step: as in :func:`fastq.lsq`.
        reduction: c: ``"sum"`` 1, ``"mean"`` 1 / N, ``"kernel"`` O / N, the sum over the O = ``w.shape[0]`` kernels of each one's
            mean; N = ``w.numel()``.
        bits, signed, narrow, axis, group_size, eps: as in :func:`fastq.lsq`.

    Returns:
        The loss, 0-d, float32 (float64 for float64 ``w``); summed in fp64 in a fixed order: the same bits for any number of
        threads.

    Not finite: NaN in ``w`` or ``step`` gives NaN; an infinite ``w`` is clipped and adds nothing. An empty ``w`` gives 0.

    Raises:
        TypeError: ``w`` or ``step`` has another dtype or layout than it should.
        ValueError: a shape, axis, group size, range or option does not fit; the message says what was expected.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.

    Example:
        >>> loss = task + 0.01 * sum(fastq.dampening(w, s, bits=4) for w, s in zip(weights, steps))
    """
    arguments = resolve(w, bits, signed, narrow, axis, group_size, reduction, eps)
    return Dampening.apply(w, detached(step), *arguments)
