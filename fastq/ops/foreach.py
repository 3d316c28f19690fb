"""LSQ of many tensors in one pass: the public function, its ``torch.autograd.Function`` and the operators' schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import checks, dispatch
from ..granularity import check_input, normalize_axis
from ..ranges import BOUNDARIES, integer_range
from ..reference.lsq import lsq_backward as reference_backward
from ..reference.lsq import lsq_forward as reference_forward
from . import _library
from .lsq import check, gradient_factor

__all__ = ["ForeachLSQ", "foreach_lsq"]


@dataclass(frozen=True)
class Arguments:
    """What a call brings beside its tensors, resolved: the lists have an entry for each tensor."""

    qmin: list[int]
    qmax: list[int]
    axis: list[int]
    group_size: list[int]
    boundary: int
    grad_scale: float | str
    eps: float

    def of(self, i: int) -> tuple[int, int, int, int]:
        return self.qmin[i], self.qmax[i], self.axis[i], self.group_size[i]

    def some(self, chosen: list[int]) -> Arguments:
        """Of these tensors alone."""
        low, high, axis, group = (
            [values[i] for i in chosen] for values in (self.qmin, self.qmax, self.axis, self.group_size)
        )  # fmt: skip
        return Arguments(low, high, axis, group, self.boundary, self.grad_scale, self.eps)


def _check_all(x: Sequence[torch.Tensor], step: Sequence[torch.Tensor], axis: Sequence[int], group_size: Sequence[int]) -> None:
    for i, (w, s) in enumerate(zip(x, step, strict=True)):
        try:
            check("foreach_lsq", w, s, None, axis[i], group_size[i])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (tensor {i})") from None
        if w.device != x[0].device:
            raise ValueError(f"foreach_lsq: all weights must be on one device, got {x[0].device} and {w.device} (tensor {i})")


def _fake_forward(
    x: list[Any], step: list[Any], qmin: list[int], qmax: list[int], axis: list[int], group_size: list[int], eps: float
) -> list[Any]:
    _check_all(x, step, axis, group_size)
    return [torch.empty_like(w) for w in x]


def _fake_backward(
    grad: list[Any], x: list[Any], step: list[Any], qmin: list[int], qmax: list[int], axis: list[int], group_size: list[int],
    eps: float, boundary: int, grad_scale: float, grad_norm: int,
) -> list[Any]:  # fmt: skip
    _check_all(x, step, axis, group_size)
    return [torch.empty_like(w) for w in x] + [torch.empty_like(s, memory_format=torch.contiguous_format) for s in step]


_EACH = "int[] qmin, int[] qmax, int[] axis, int[] group_size, float eps"
_library.define("foreach_lsq_forward", f"(Tensor[] x, Tensor[] step, {_EACH}) -> Tensor[]", _fake_forward)
_library.define(
    "foreach_lsq_backward",
    f"(Tensor[] grad, Tensor[] x, Tensor[] step, {_EACH}, int boundary, float grad_scale, int grad_norm) -> Tensor[]",
    _fake_backward,
)

_forward = {"cpu": torch.ops.fastq.foreach_lsq_forward.default, "triton": torch.ops.fastq_triton.foreach_lsq_forward.default}
_backward = {"cpu": torch.ops.fastq.foreach_lsq_backward.default, "triton": torch.ops.fastq_triton.foreach_lsq_backward.default}
_forward["cuda"], _backward["cuda"] = _forward["cpu"], _backward["cpu"]  # one operator; the dispatcher knows the device


def _run_backward(backend: str, g: list[Any], x: list[Any], step: list[Any], a: Arguments) -> Any:
    """Every dx, then every dstep."""
    if backend == "reference":
        each = [
            reference_backward(
                g[i], x[i], step[i], None, *a.of(i), a.eps, a.boundary, a.grad_scale, 1.0
            )
            for i in range(len(x))
        ]  # fmt: skip
        return *(dx for dx, _, _ in each), *(dstep for _, dstep, _ in each)
    factor, norm = gradient_factor(a.grad_scale, "foreach_lsq")
    return tuple(
        _backward[backend](g, x, step, a.qmin, a.qmax, a.axis, a.group_size, a.eps, a.boundary, factor, norm)
    )  # fmt: skip


def _run_backward_flat(backend: str, arguments: Arguments, *tensors: Any) -> Any:
    n = len(tensors) // 3
    return _run_backward(backend, list(tensors[:n]), list(tensors[n : 2 * n]), list(tensors[2 * n :]), arguments)


class ForeachLSQ(torch.autograd.Function):
    """``ForeachLSQ.apply(arguments, *weights, *steps)``: a tuple of the quantized weights.

    The node under :func:`fastq.foreach_lsq`, which documents the formula; ``arguments`` is what its ``resolve`` gives. Saves the
    weights and steps. Tensors whose output gets no gradient are left out of the backward pass; a second one raises
    ``RuntimeError``.
    """

    @staticmethod
    def forward(ctx: Any, arguments: Arguments, *tensors: torch.Tensor) -> Any:
        n = len(tensors) // 2
        x, step = list(tensors[:n]), list(tensors[n:])
        _check_all(x, step, arguments.axis, arguments.group_size)
        for w, s in zip(x, step, strict=True):
            checks.check_values("foreach_lsq", w, s, None)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.arguments = arguments
        ctx.backend = backend = dispatch.select(x[0])
        a = arguments
        if backend == "reference":
            return tuple(reference_forward(w, s, None, *a.of(i), a.eps) for i, (w, s) in enumerate(zip(x, step, strict=True)))
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        return tuple(_forward[backend](x, step, a.qmin, a.qmax, a.axis, a.group_size, a.eps))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:  # type: ignore[override]
        n = len(gradients)
        there = [i for i, g in enumerate(gradients) if g is not None]
        saved = ctx.saved_tensors
        g, x, step = [gradients[i] for i in there], [saved[i] for i in there], [saved[n + i] for i in there]
        arguments = ctx.arguments if len(there) == n else ctx.arguments.some(there)
        if torch.is_grad_enabled():
            found = _library.BackwardOnce.apply("foreach_lsq", _run_backward_flat, ctx.backend, arguments, *g, *x, *step)
        else:
            found = _run_backward(ctx.backend, g, x, step, arguments)
        if len(there) == n:
            return None, *found
        result: list[Any] = [None] * (2 * n)
        for k, i in enumerate(there):
            result[i], result[n + i] = found[k], found[len(there) + k]
        return None, *result


def _each(name: str, value: Any, n: int) -> list[Any]:
    """A list of n: given as one, or the one value for all."""
    if isinstance(value, list):
        if len(value) != n:
            raise ValueError(f"foreach_lsq: {name} must be one value or a list of {n}, one for each weight, got {len(value)}")
        return value
    return [value] * n


def resolve(
    weights: Sequence[torch.Tensor], steps: Sequence[torch.Tensor], *, bits: Any, signed: Any = True, narrow: Any = False,
    axis: Any = None, group_size: Any = None, boundary: str = "open", grad_scale: float | str = "lsq", eps: float = 1e-8,
) -> Arguments:  # fmt: skip
    """Check the public arguments, the tensors' values aside."""
    op = "foreach_lsq"
    for name, tensors in (("weights", weights), ("steps", steps)):
        if isinstance(tensors, torch.Tensor) or not isinstance(tensors, Sequence):
            raise TypeError(f"{op}: {name} must be a list or tuple of tensors, got {type(tensors).__name__}")
    if len(weights) != len(steps):
        raise ValueError(f"{op}: there must be a step for each weight, got {len(weights)} weights and {len(steps)} steps")
    n = len(weights)
    if boundary not in BOUNDARIES:
        raise ValueError(f"{op}: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    gradient_factor(grad_scale, op)
    if not eps > 0:
        raise ValueError(f"{op}: eps must be positive, got {eps}")
    ranges, places = [], []
    each = (_each(name, value, n) for name, value in (("bits", bits), ("signed", signed), ("narrow", narrow),
                                                     ("axis", axis), ("group_size", group_size)))  # fmt: skip
    for w, b, s, small, a, group in zip(weights, *each, strict=True):
        check_input(op, w)
        ranges.append(integer_range(op, b, s, small))
        places.append(normalize_axis(op, w, a, group))
    return Arguments(
        [low for low, _ in ranges], [high for _, high in ranges], [a for a, _ in places], [group for _, group in places],
        BOUNDARIES[boundary], grad_scale, eps,
    )  # fmt: skip


def foreach_lsq(
    weights: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    *,
    bits: int | tuple[int, int] | list[Any],
    signed: bool | list[bool] = True,
    narrow: bool | list[bool] = False,
    axis: int | list[int | None] | None = None,
    group_size: int | list[int | None] | None = None,
    boundary: str = "open",
    grad_scale: float | str = "lsq",
    eps: float = 1e-8,
) -> tuple[torch.Tensor, ...]:
    """Fake-quantize many tensors in one pass, forward and backward: ``[lsq(w, s, ...) for w, s in zip(weights, steps)]``.

    Formula, gradients and bits are those of :func:`fastq.lsq`, tensor by tensor; what is saved is the cost of a call for each.
    The weights of a model are many and mostly small. On CUDA up to 96 tensors of one dtype take one launch forward and two
    backward (the second finishes the sums); the Triton backend launches its kernels tensor by tensor.

    Args:
        weights: list or tuple of tensors on one device; any mix of dtypes (float32, bfloat16, float16, float64), shapes, strides.
        steps: the step of each, as :func:`fastq.lsq` takes it: float32 (float64 for float64), in units of the weight.
        bits, signed, narrow, axis, group_size: as in :func:`fastq.lsq`; one value for all, or a list with one for each weight.
        boundary, grad_scale, eps: as in :func:`fastq.lsq`, for all.

    Returns:
        A tuple of the quantized weights, each with the shape, dtype and memory layout of its weight. An empty list gives ``()``.

    Not finite, zero or negative steps, empty tensors: as in :func:`fastq.lsq`.

    Raises:
        TypeError, ValueError: as :func:`fastq.lsq`, with the number of the tensor; lists of different lengths; tensors on
            different devices.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Paper: Esser et al., Learned Step Size Quantization, ICLR 2020, https://arxiv.org/abs/1902.08153.

    Example:
        >>> weights = [torch.randn(8, 3, 3, 3, requires_grad=True), torch.randn(16, 8, requires_grad=True)]
        >>> steps = [torch.full((8,), 0.1, requires_grad=True), torch.tensor([0.1], requires_grad=True)]
        >>> quantized = fastq.foreach_lsq(weights, steps, bits=[4, 8], axis=[0, None])
        >>> sum(w.sum() for w in quantized).backward()
        >>> steps[0].grad.shape
        torch.Size([8])
    """
    arguments = resolve(
        weights, steps, bits=bits, signed=signed, narrow=narrow, axis=axis, group_size=group_size,
        boundary=boundary, grad_scale=grad_scale, eps=eps,
    )  # fmt: skip
    return ForeachLSQ.apply(arguments, *weights, *steps) if weights else ()
