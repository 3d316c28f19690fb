"""Many tensors in one pass: LSQ, the dampening loss, the oscillation step. Public functions, autograd nodes, operators' schemas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from .. import checks, dispatch
from ..granularity import check_input, check_parameter, compute_dtype, normalize_axis
from ..oscillation import OscillationState, check_range, check_state, frequency_limit, momentum_in_fp32
from ..ranges import BOUNDARIES, check_eps, check_flag, integer_range
from ..reference.dampening import REDUCTIONS, dampening_backward, dampening_forward, loss_factor
from ..reference.lsq import lsq_backward as reference_backward
from ..reference.lsq import lsq_forward as reference_forward
from ..reference.oscillation import first_codes, step_in_place
from . import _library
from .dampening import detached
from .lsq import gradient_factor
from .oscillation import check_separate

__all__ = ["ForeachDampening", "ForeachLSQ", "foreach_dampening", "foreach_lsq", "foreach_oscillation_step_"]


@dataclass(frozen=True)
class Places:
    """The ranges and granularities of the tensors of a call, resolved: an entry for each."""

    qmin: list[int]
    qmax: list[int]
    axis: list[int]
    group_size: list[int]

    def of(self, i: int) -> tuple[int, int, int, int]:
        return self.qmin[i], self.qmax[i], self.axis[i], self.group_size[i]

    def some(self, chosen: list[int]) -> Self:
        """Of these tensors alone."""
        lists = ("qmin", "qmax", "axis", "group_size")
        return replace(self, **{name: [getattr(self, name)[i] for i in chosen] for name in lists})


@dataclass(frozen=True)
class Arguments(Places):
    """What a call of :func:`foreach_lsq` brings beside its tensors."""

    boundary: int
    grad_scale: float | str
    eps: float


def _for_each(check: Callable[..., Any], *lists: Sequence[Any]) -> list[Any]:
    """``check`` of what each tensor has in ``lists``; an error tells the number of its tensor."""
    found: list[Any] = []
    try:
        for one in zip(*lists, strict=True):
            found.append(check(*one))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} (tensor {len(found)})") from None
    return found


def check_all(
    x: Sequence[torch.Tensor], step: Sequence[torch.Tensor], axis: Sequence[int], group_size: Sequence[int], op: str = "foreach_lsq"
) -> None:
    """The checks of the tensors, for every backend and for the fake kernels."""
    device = x[0].device if x else None

    def check(w: torch.Tensor, s: torch.Tensor, a: int, group: int) -> None:
        check_input(op, w, "weights")
        check_parameter(op, "steps", s, w, a, group, "weights")
        if w.device != device:
            raise ValueError(f"{op}: all weights must be on one device, got {device} and {w.device}")

    _for_each(check, x, step, axis, group_size)


def _check_values(op: str, x: Sequence[torch.Tensor], step: Sequence[torch.Tensor]) -> None:
    """What the checking mode looks at."""
    if checks.enabled():
        _for_each(lambda w, s: checks.check_values(op, w, s, None, ("steps", ""), "weights"), x, step)


def _fake_forward(
    x: list[Any], step: list[Any], qmin: list[int], qmax: list[int], axis: list[int], group_size: list[int], eps: float
) -> list[Any]:
    check_all(x, step, axis, group_size)
    return [torch.empty_like(w) for w in x]


def _fake_backward(
    grad: list[Any], x: list[Any], step: list[Any], qmin: list[int], qmax: list[int], axis: list[int], group_size: list[int],
    eps: float, boundary: int, grad_scale: float, grad_norm: int,
) -> list[Any]:  # fmt: skip
    check_all(x, step, axis, group_size)
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
        check_all(x, step, arguments.axis, arguments.group_size)
        _check_values("foreach_lsq", x, step)
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


def _each(op: str, name: str, value: Any, n: int) -> list[Any]:
    """A list of n: given as one, or the one value for all."""
    if isinstance(value, list):
        if len(value) != n:
            raise ValueError(f"{op}: {name} must be one value or a list of {n}, one for each weight, got {len(value)}")
        return value
    return [value] * n


def places(
    op: str, weights: Sequence[torch.Tensor], steps: Sequence[torch.Tensor], bits: Any, signed: Any, narrow: Any, axis: Any,
    group_size: Any, eps: float,
) -> Places:  # fmt: skip
    """Check what the functions of this file share, the tensors' values aside."""
    for name, tensors in (("weights", weights), ("steps", steps)):
        if isinstance(tensors, torch.Tensor) or not isinstance(tensors, Sequence):
            raise TypeError(f"{op}: {name} must be a list or tuple of tensors, got {type(tensors).__name__}")
    if len(weights) != len(steps):
        raise ValueError(f"{op}: there must be a step for each weight, got {len(weights)} weights and {len(steps)} steps")
    check_eps(op, eps)
    n = len(weights)
    if isinstance(bits, list) or isinstance(signed, list) or isinstance(narrow, list):
        each = (_each(op, name, value, n) for name, value in (("bits", bits), ("signed", signed), ("narrow", narrow)))
        ranges = _for_each(lambda *one: integer_range(op, *one), *each)
    else:
        ranges = [integer_range(op, bits, signed, narrow)] * n

    def place(w: torch.Tensor, a: int | None, group: int | None) -> tuple[int, int]:
        check_input(op, w, "weights")
        return normalize_axis(op, w, a, group, "weights")

    where = _for_each(place, weights, _each(op, "axis", axis, n), _each(op, "group_size", group_size, n))
    return Places([low for low, _ in ranges], [high for _, high in ranges], [a for a, _ in where], [group for _, group in where])


def resolve(
    weights: Sequence[torch.Tensor], steps: Sequence[torch.Tensor], *, bits: Any, signed: Any = True, narrow: Any = False,
    axis: Any = None, group_size: Any = None, boundary: str = "open", grad_scale: float | str = "lsq", eps: float = 1e-8,
) -> Arguments:  # fmt: skip
    """Check the arguments of :func:`foreach_lsq`, the tensors' values aside."""
    p = places("foreach_lsq", weights, steps, bits, signed, narrow, axis, group_size, eps)
    if boundary not in BOUNDARIES:
        raise ValueError(f"foreach_lsq: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    gradient_factor(grad_scale, "foreach_lsq")
    return Arguments(p.qmin, p.qmax, p.axis, p.group_size, BOUNDARIES[boundary], grad_scale, eps)


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


# The dampening loss


def _fake_dampening(
    w: list[Any], step: list[Any], qmin: list[int], qmax: list[int], axis: list[int], group_size: list[int], eps: float
) -> list[Any]:
    check_all(w, step, axis, group_size, "foreach_dampening")
    return [one.new_empty((1, 1), dtype=torch.float64) for one in w]


def _fake_dampening_backward(
    grad: list[Any], w: list[Any], step: list[Any], qmin: list[int], qmax: list[int], axis: list[int], group_size: list[int],
    eps: float, factor: list[float],
) -> list[Any]:  # fmt: skip
    check_all(w, step, axis, group_size, "foreach_dampening")
    return [torch.empty_like(one) for one in w]


_library.define("foreach_dampening_forward", f"(Tensor[] w, Tensor[] step, {_EACH}) -> Tensor[]", _fake_dampening)
_library.define(
    "foreach_dampening_backward", f"(Tensor[] grad, Tensor[] w, Tensor[] step, {_EACH}, float[] factor) -> Tensor[]",
    _fake_dampening_backward,
)  # fmt: skip


def _reference_dampening(*lists: Any) -> list[Any]:
    *each, eps = lists
    return [dampening_forward(*(*one, eps)) for one in zip(*each, strict=True)]


def _reference_dampening_backward(*lists: Any) -> list[Any]:
    *each, eps, factor = lists
    return [dampening_backward(*(*one, eps, c)) for *one, c in zip(*each, factor, strict=True)]


_dampening: dict[str, Any] = {
    "reference": _reference_dampening,
    "cpu": torch.ops.fastq.foreach_dampening_forward.default,
    "cuda": torch.ops.fastq.foreach_dampening_forward.default,
    "triton": torch.ops.fastq_triton.foreach_dampening_forward.default,
}
_dampening_backward: dict[str, Any] = {
    "reference": _reference_dampening_backward,
    "cpu": torch.ops.fastq.foreach_dampening_backward.default,
    "cuda": torch.ops.fastq.foreach_dampening_backward.default,
    "triton": torch.ops.fastq_triton.foreach_dampening_backward.default,
}


def _run_dampening_backward(
    backend: str, where: Places, factors: tuple[float, ...], eps: float, g: torch.Tensor, *tensors: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    w, step = list(tensors[: len(tensors) // 2]), list(tensors[len(tensors) // 2 :])
    grad = [g.to(compute_dtype(one)) for one in w]
    lists = (grad, w, step, where.qmin, where.qmax, where.axis, where.group_size)
    return tuple(_dampening_backward[backend](*lists, eps, list(factors)))


class ForeachDampening(torch.autograd.Function):
    """``ForeachDampening.apply(places, factors, eps, *weights, *steps)``: the sum of the losses, 0-d.

    The node under :func:`fastq.foreach_dampening`, which documents the formula; ``factors`` has the c of each weight. Saves the
    weights and steps. A second backward pass raises ``RuntimeError``.
    """

    @staticmethod
    def forward(ctx: Any, where: Places, factors: tuple[float, ...], eps: float, *tensors: torch.Tensor) -> torch.Tensor:
        op, n = "foreach_dampening", len(tensors) // 2
        w, step = list(tensors[:n]), list(tensors[n:])
        check_all(w, step, where.axis, where.group_size, op)
        _check_values(op, w, step)
        ctx.backend = backend = dispatch.select(w[0])
        if backend == "triton":
            from .. import triton_kernels  # noqa: F401  registers the kernels
        ctx.save_for_backward(*tensors)
        ctx.arguments = (where, factors, eps)
        found = _dampening[backend](w, step, where.qmin, where.qmax, where.axis, where.group_size, eps)
        totals = [total.reshape(()) * factor for total, factor in zip(found, factors, strict=True)]
        return torch.stack(totals).sum().to(compute_dtype(w[0]))

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        where, factors, eps = ctx.arguments
        n, saved = len(factors), ctx.saved_tensors
        wanted = [i for i in range(n) if ctx.needs_input_grad[3 + i]]
        factors = tuple(factors[i] for i in wanted)
        tensors = [saved[i] for i in wanted] + [saved[n + i] for i in wanted]
        arguments = (ctx.backend, where.some(wanted), factors, eps, g, *tensors)
        if torch.is_grad_enabled():
            found = _library.BackwardOnce.apply("foreach_dampening", _run_dampening_backward, *arguments)
        else:
            found = _run_dampening_backward(*arguments)
        result: list[Any] = [None] * (2 * n)
        for i, dw in zip(wanted, found, strict=True):
            result[i] = dw
        return None, None, None, *result


def foreach_dampening(
    weights: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    *,
    bits: int | tuple[int, int] | list[Any],
    reduction: str = "kernel",
    signed: bool | list[bool] = True,
    narrow: bool | list[bool] = False,
    axis: int | list[Any] | None = None,
    group_size: int | list[Any] | None = None,
    eps: float = 1e-8,
) -> torch.Tensor:
    """The dampening loss of many weights in one pass: ``sum(dampening(w, s, ...) for w, s in zip(weights, steps))``.

    Formula and gradients are those of :func:`fastq.dampening`, tensor by tensor. On CUDA up to 96 tensors of one dtype take two
    launches (the second finishes the sums) and one backward; the Triton backend launches its kernels tensor by tensor.

    Args:
        weights: list or tuple of tensors on one device; any mix of dtypes (float32, bfloat16, float16, float64), shapes, strides.
        steps: the step of each, as :func:`fastq.dampening` takes it: float32 (float64 for float64), in units of the weight.
        bits, signed, narrow, axis, group_size: as in :func:`fastq.dampening`; one value for all, or a list with one for each.
        reduction: ``"sum"``, ``"mean"`` or ``"kernel"``: the factor c of each weight, as in :func:`fastq.dampening`.
        eps: the smallest step used.

    Returns:
        The sum of the losses, 0-d, in the arithmetic dtype of the first weight; the losses are added in fp64, in order. No
        weights give 0.

    Raises:
        TypeError, ValueError: as :func:`fastq.dampening`, with the number of the tensor; lists of different lengths; tensors on
            different devices.
        RuntimeError: the backend asked for cannot serve; a second backward pass is asked for.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.

    Example:
        >>> loss = task + 0.01 * fastq.foreach_dampening(weights, steps, bits=4)
    """
    op = "foreach_dampening"
    where = places(op, weights, steps, bits, signed, narrow, axis, group_size, eps)
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not weights:
        return torch.zeros(())
    factors = tuple(loss_factor(w, reduction) for w in weights)
    return ForeachDampening.apply(where, factors, eps, *weights, *map(detached, steps))


# The oscillation step


def _fake_oscillation(
    weight: list[Any], step: list[Any], freeze: list[Any], track: list[Any], qmin: list[int], qmax: list[int], axis: list[int],
    group_size: list[int], eps: float, momentum: float, ema_momentum: float, limit: int, count_first: bool,
) -> None:  # fmt: skip
    check_all(weight, step, axis, group_size, "foreach_oscillation_step_")


_library.define(
    "foreach_oscillation_step",
    f"(Tensor(a!)[] weight, Tensor[] step, Tensor(b!)[] freeze, Tensor(c!)[] track, {_EACH}, float momentum, float ema_momentum, "
    "int limit, bool count_first) -> ()",
    _fake_oscillation,
)


def _reference_oscillation(
    weight: list[Any], step: list[Any], freeze: list[Any], track: list[Any], qmin: list[int], qmax: list[int], axis: list[int],
    group_size: list[int], *same: Any,
) -> None:  # fmt: skip
    for one in zip(weight, step, freeze, track, qmin, qmax, axis, group_size, strict=True):
        step_in_place(*one, *same)


_oscillation: dict[str, Any] = {
    "reference": _reference_oscillation,
    "cpu": torch.ops.fastq.foreach_oscillation_step.default,
    "cuda": torch.ops.fastq.foreach_oscillation_step.default,
    "triton": torch.ops.fastq_triton.foreach_oscillation_step.default,
}


def run_oscillation(
    weights: Sequence[torch.Tensor], steps: Sequence[torch.Tensor], states: Sequence[OscillationState | None] | None, bits: Any,
    momentum: float, threshold: float, signed: Any, narrow: Any, axis: Any, group_size: Any, count_first: bool, eps: float,
    backend: str | None = None,
) -> list[OscillationState]:  # fmt: skip
    """:func:`foreach_oscillation_step_` on ``backend``, or on the one that serves the weights."""
    op = "foreach_oscillation_step_"
    where = places(op, weights, steps, bits, signed, narrow, axis, group_size, eps)
    check_all(weights, steps, where.axis, where.group_size, op)
    factor, limit = momentum_in_fp32(op, momentum), frequency_limit(op, threshold)
    check_flag(op, "count_first", count_first)
    n, expected = len(weights), f"{op}: states must be None or a list with a state (or None) for each of the {len(weights)} weights"
    if states is not None and not isinstance(states, Sequence):
        raise TypeError(f"{expected}, got {type(states).__name__}")
    given: list[OscillationState | None] = [None] * n if states is None else list(states)
    if len(given) != n:
        raise ValueError(f"{expected}, got {len(given)}")

    def check(w: torch.Tensor, low: int, high: int, state: OscillationState | None) -> None:
        check_range(op, low, high)
        check_separate(op, w)
        if state is not None:
            check_state(op, state, w, "weights", low, high)

    _for_each(check, weights, where.qmin, where.qmax, given)
    _check_values(op, weights, steps)
    made, moved = [], []
    with torch.no_grad():
        for i, state in enumerate(given):
            if state is None:
                low, high, a, group = where.of(i)
                state = OscillationState.of(first_codes(weights[i], steps[i], low, high, a, group, eps), low, high)
            else:
                moved.append(i)
            made.append(state)
        if moved:
            backend = backend or dispatch.select(weights[0])
            if backend == "triton":
                from .. import triton_kernels  # noqa: F401  registers the kernels
            lists: list[Any] = [weights, steps, [m.freeze for m in made], [m.track for m in made]]
            lists += [where.qmin, where.qmax, where.axis, where.group_size]
            chosen = ([values[i] for i in moved] for values in lists)
            _oscillation[backend](*chosen, eps, factor, factor if threshold > 0 else 0.0, limit, count_first)
    return made


def foreach_oscillation_step_(
    weights: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    states: Sequence[OscillationState | None] | None = None,
    *,
    bits: int | tuple[int, int] | list[Any],
    momentum: float = 0.01,
    threshold: float = 0.0,
    signed: bool | list[bool] = True,
    narrow: bool | list[bool] = False,
    axis: int | list[Any] | None = None,
    group_size: int | list[Any] | None = None,
    count_first: bool = False,
    eps: float = 1e-8,
) -> list[OscillationState]:
    """Track and freeze the oscillations of many weights in one pass, in place: :func:`fastq.oscillation_step_` of each.

    The state machine and its bits are those of :func:`fastq.oscillation_step_`. On CUDA up to 96 tensors of one dtype take one
    launch; the Triton backend launches its kernel tensor by tensor.

    Args:
        weights: list or tuple of tensors on one device; any mix of dtypes (float32, bfloat16, float16, float64), shapes, strides.
            Changed in place where frozen.
        steps: the step of each, as :func:`fastq.oscillation_step_` takes it. Not changed.
        states: what the last call returned, changed in place; None, or None in the place of a weight, makes the state.
        bits, signed, narrow, axis, group_size: as in :func:`fastq.oscillation_step_`; one value for all, or a list with one each.
        momentum, threshold, count_first, eps: as in :func:`fastq.oscillation_step_`, for all.

    Returns:
        A list with the state of each weight.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`fastq.oscillation_step_`; lists of different lengths; tensors on different
            devices. Nothing has changed then.

    Paper: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, https://arxiv.org/abs/2203.11086.

    Example:
        >>> states = fastq.foreach_oscillation_step_(weights, steps, bits=4)
        >>> states = fastq.foreach_oscillation_step_(weights, steps, states, bits=4, momentum=0.001, threshold=0.02)
    """
    return run_oscillation(
        weights, steps, states, bits, momentum, threshold, signed, narrow, axis, group_size, count_first, eps
    )  # fmt: skip
