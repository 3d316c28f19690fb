"""The forward pass of a quantized layer as a product of integers, the one that its converted form computes; and its gradient.

``QuantLinear(..., forward="integer")`` and its like quantize input and weight to codes, multiply these in the integer engine
(:func:`fastq.int_linear`, :func:`fastq.int_conv2d`) and scale the int32 sums in the epilogue. What is trained has the very bits of
what ``fastq.convert`` makes of it, in float32; a network in bfloat16 or float16, whose layers round what they give one another, has
those of ``fastq.convert(..., fuse=False)``. The gradient is the straight-through one: with ``g`` that of the output::

    dx_hat = g * w_hat        dw_hat = x_hat^T * g        db = sum g

for the numbers ``x_hat`` and ``w_hat`` that the codes stand for, in the dtype of ``g``, and from there through the quantizers' own
backward passes. What the product keeps for it is the codes, a byte each. Under autocast the output is the float32 one rounded once
to autocast's dtype.

Against ``forward="fake"``, whose product rounds each of its K terms and sums: within ``(K + 24) * 2**-23`` of the sum of the
magnitudes of the terms, offsets counted by themselves. NaN, for which no integer stands: a weight with one makes the outputs that
share its step NaN; one in the input counts as 0, or as the input's offset, in the output (a converted layer then gives NaN), and
gives NaN to the gradient of the input's step.

A quantizer gives ``step * K + offset``, ``K`` its code or, where its grid is odd, ``2 * code + 1`` (:class:`fastq.nn.Grid`). With
``x = s_x*X + b_x`` and ``w = s_w*W + b_w``, and all sums over the positions that lie inside the input::

    y = (s_x*s_w) * sum X*W  +  (b_x*s_w) * sum W  +  (s_x*b_w) * sum X  +  (b_x*b_w) * n  +  bias

The sums are int32 and exact; each term is rounded to float32, and they are added from the left. Terms whose factor is 0 are left
out: without offsets this is the engine's epilogue. The codes of a weight with an offset are counted from the middle of its range,
and the offset is that of the middle: a sum of inputs would otherwise cancel most of the accumulator.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .. import dispatch
from ..engine.call import FLOATS, Epilogue, Operand, Window
from ..granularity import expand
from ..ops import _library
from ..ops.int_linear import INT32_MAX, product
from ..ops.lsq import _run_backward, gradient_factor
from ..ops.quantize import quantize
from ..packing import layout_of, pack_blocks
from ..ranges import BOUNDARIES
from ..reference.lsq import effective_step
from .base import Grid, Quantizer
from .quantizer import LSQ

__all__ = ["FORWARDS", "IntegerProduct", "check_forward", "conv_in_integers", "in_integers", "linear_in_integers"]

FORWARDS = ("fake", "integer")


class Coding(NamedTuple):
    """How stored codes stand for numbers, steps and offsets aside."""

    qmin: int
    qmax: int
    zero: int  # a code is what is stored plus this
    odd: bool
    axis: int = -1
    group_size: int = 0

    def decode(self, stored: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        """The numbers: those of :meth:`fastq.nn.Grid.decode`, float32."""
        k = stored.to(torch.float32)
        if self.odd:
            k = 2 * k + (2 * self.zero + 1)
        elif self.zero:
            k = k + self.zero
        y = expand(step, stored, self.axis, self.group_size) * k
        return y if offset is None else y + expand(offset, stored, self.axis, self.group_size)

    @property
    def largest(self) -> int:
        """A bound of the integers' magnitudes."""
        return max(abs(self.qmin), abs(self.qmax)) * (2 if self.odd else 1) + self.odd


class Plan(NamedTuple):
    """All that a product depends on besides tensors."""

    x: Coding
    w: Coding
    window: Window | None  # None: a linear layer
    out_dtype: torch.dtype
    channels_last: bool  # of the output


class Coded(NamedTuple):
    """One operand: where its gradient goes, its stored codes, and what they stand for."""

    carrier: torch.Tensor
    stored: torch.Tensor
    step: torch.Tensor
    offset: torch.Tensor | None
    coding: Coding


def check_forward(name: str, forward: Any, weight: Quantizer | None, source: Quantizer | None) -> None:
    """``forward`` is one of :data:`FORWARDS`, and these quantizers can serve it; ``TypeError`` or ``ValueError``."""
    if forward not in FORWARDS:
        raise ValueError(f"{name}: forward must be 'fake' or 'integer', got {forward!r}")
    if forward == "fake":
        return
    for which, quantizer in (("weight_quantizer", weight), ("input_quantizer", source)):
        if quantizer is None:
            raise ValueError(f"{name}: forward='integer' multiplies codes, and {which} is None; use forward='fake'")
        if not quantizer.on_grid:
            raise ValueError(
                f"{name}: forward='integer' needs values of a grid, and {which}, {type(quantizer).__name__}, adds noise in "
                "training; use forward='fake'"
            )
        if type(quantizer).codes is Quantizer.codes:
            raise ValueError(f"{name}: forward='integer' needs codes, and {which}, {type(quantizer).__name__}, has none")


def in_integers(layer: Any, input: torch.Tensor) -> bool:
    """Whether ``layer`` multiplies integers now: not while one of its quantizers is switched off, or trains in full precision, or
    has no grid for want of values in its first batch, nor while its curvature is looked at (:func:`fastq.nn.set_hessian_deltas`),
    for which all has to be differentiated twice."""
    quantizers = (layer.weight_quantizer, layer.input_quantizer)
    if any(getattr(q, "_watch", None) is not None for q in quantizers):
        return False
    if any(q is None or not q.enabled or getattr(q, "bits", 0) is None for q in quantizers):
        return False
    check_forward(type(layer).__name__, layer.forward_kind, *quantizers)
    for q, t in zip(quantizers, (layer.weight, input), strict=True):
        if not q._initialized:
            q._ready(t)
            if not q._initialized:
                return False
    return True


# --- codes ---------------------------------------------------------------------------------------------------------------


def zero_of(qmin: int, qmax: int) -> tuple[int, torch.dtype]:
    """Which code is stored as 0, and in what: as it is where int8 or uint8 holds it."""
    if qmin >= -128 and qmax <= 127:
        return 0, torch.int8
    return (0, torch.uint8) if 0 <= qmin and qmax <= 255 else (qmin + 128, torch.int8)


def coding_of(what: str, grid: Grid, axis: int = -1, group_size: int = 0) -> tuple[Coding, torch.dtype]:
    """Of a grid of at most 256 codes; ``ValueError``."""
    if grid.qmax - grid.qmin > 255:
        raise ValueError(f"{what}: forward='integer' has 8 bits for a code, and codes from {grid.qmin} to {grid.qmax} do not fit")
    zero, dtype = zero_of(grid.qmin, grid.qmax)
    return Coding(grid.qmin, grid.qmax, zero, grid.odd, axis, group_size), dtype


class LSQCodes(torch.autograd.Function):
    """The codes of ``fastq.lsq``, with one step, and the node of its gradient, without the numbers that they stand for.

    ``scale``: the step as kernels use it, ``effective_step(step, eps)``.
    Gives a carrier, zeros of the shape of ``x`` that take no memory, for the gradient to arrive at; and the stored codes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, step: Any, offset: Any, scale: Any, coding: Coding, dtype: torch.dtype, boundary: int,
        grad_scale: float | str, offset_grad_scale: float, eps: float,
    ) -> Any:  # fmt: skip
        qmin, qmax, zero = coding[:3]
        ctx.backend = dispatch.select(x)
        ctx.save_for_backward(x, step, offset)
        if ctx.backend == "reference":
            ctx.arguments = (qmin, qmax, -1, 0, eps, boundary, grad_scale, offset_grad_scale)
        else:
            ctx.arguments = (qmin, qmax, -1, 0, eps, boundary, *gradient_factor(grad_scale), offset_grad_scale)
        stored = quantize(x, scale, offset=offset, zero_point=-zero, range=(qmin - zero, qmax - zero), dtype=dtype)
        ctx.mark_non_differentiable(stored)
        return x.new_zeros(()).expand(x.shape), stored

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, _: Any) -> tuple[Any, ...]:  # type: ignore[override]
        x, step, offset = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = _library.BackwardOnce.apply("lsq", _run_backward, ctx.backend, g, x, step, offset, ctx.arguments)
        else:
            given = _run_backward(ctx.backend, g, x, step, offset, ctx.arguments)
        return *given, None, None, None, None, None, None, None


def _coded_by_lsq(q: LSQ, x: torch.Tensor, what: str) -> Coded | None:
    """The codes of a plain LSQ with one step, in one pass; None where the general way has to be taken."""
    hooks = (q._forward_hooks, q._forward_pre_hooks, q._backward_hooks, q._backward_pre_hooks)  # which want to see the call
    if type(q) is not LSQ or q.step.numel() != 1 or any(hooks) or "forward" in vars(q):
        return None
    q._ready(x)
    low, high = q._range()
    if not low <= 0 <= high:
        return None
    step, offset = q._parameters_for(x)
    scale = effective_step(step.detach(), q.eps).reshape(1)
    coding, dtype = coding_of(what, Grid(low, high, scale))
    conventions = (BOUNDARIES[q.boundary], q.grad_scale, q.offset_grad_scale, q.eps)
    carrier, stored = LSQCodes.apply(x, step, offset, scale, coding, dtype, *conventions)
    return Coded(carrier, stored, scale, None if offset is None else offset.detach().reshape(1), coding)


def _coded(q: Any, x: torch.Tensor, what: str, where: tuple[int, int] = (-1, 0), values: torch.Tensor | None = None) -> Coded:
    """The codes of any quantizer by its own account, and what it gives, for the gradient's way back.

    ``where``: axis and group size. ``values``: what a plain LSQ gives, where that is known already.
    """
    if values is None and (ready := getattr(q, "_ready", None)) is not None:
        ready(x)
    if values is not None and values.dtype == torch.float32:
        grid = q.grid()  # float32 holds the step times an 8-bit code to an ulp, so the nearest code is the one it was
        codes = (values.detach() / expand(grid.step, x, *where)).round().nan_to_num(nan=0.0)
    else:
        grid, codes = q.grid(x.detach()), q.codes(x.detach())  # before the call, which may move a step
        values = q(x) if values is None else values
    coding, dtype = coding_of(what, grid, *(where if grid.step.numel() > 1 else (-1, 0)))  # one step serves all groups
    stored = (codes - coding.zero if coding.zero else codes).to(dtype)
    return Coded(values, stored, grid.step.detach(), None if grid.offset is None else grid.offset.detach(), coding)


def coded_input(layer: Any, x: torch.Tensor) -> Coded:
    """The input of ``layer`` in codes; ``ValueError`` where it has more than one step."""
    what, q = f"{type(layer).__name__}: input_quantizer", layer.input_quantizer
    if x.dtype not in FLOATS:
        raise TypeError(f"{type(layer).__name__}: forward='integer' takes float32, bfloat16 or float16, got {x.dtype}")
    found = _coded_by_lsq(q, x, what) or _coded(q, x, what)
    if any(t is not None and t.numel() != 1 for t in (found.step, found.offset)):
        raise ValueError(f"{what}: forward='integer' needs one step per tensor, got {found.step.numel()}")
    return found


def coded_weight(layer: Any, together: torch.Tensor | None) -> Coded:
    """The weight of ``layer`` in codes; ``together``: its numbers, where they were made with those of other layers.

    Where NaN is, which is no code, the step is NaN: the one of all rows, or a row's own. ``ValueError`` where its granularity is
    none of the engine's.
    """
    what, q, weight = f"{type(layer).__name__}: weight_quantizer", layer.weight_quantizer, layer.weight
    if weight.dtype not in FLOATS:
        raise TypeError(f"{type(layer).__name__}: forward='integer' takes float32, bfloat16 or float16, got {weight.dtype}")
    axis, group = getattr(q, "axis", None), getattr(q, "group_size", None)
    if group is not None and (weight.dim() != 2 or group % 16):
        raise ValueError(f"{what}: forward='integer' has groups of multiples of 16 in linear layers alone, got group_size={group}")
    if axis is not None and axis % weight.dim() != 0:
        raise ValueError(f"{what}: forward='integer' needs axis 0, the output channels, got axis={axis}")
    if together is None and type(q) is LSQ and q.offset is None:
        together = q(weight)
    found = _coded(q, weight, what, (-1 if axis is None else 0, group or 0), together)
    numbers = found.carrier.detach()
    nan = 0.0 * (numbers.sum(dtype=torch.float32) if found.step.numel() == 1 else numbers.flatten(1).sum(1, dtype=torch.float32))
    step = found.step.reshape(1) if found.step.numel() == 1 else found.step
    return found._replace(step=step + (nan[:, None] if step.dim() == 2 else nan))


# --- the product ---------------------------------------------------------------------------------------------------------


def _matrix(stored: torch.Tensor) -> torch.Tensor:
    """A weight's codes as ``(N, K)``, those of a convolution with the channels last."""
    return stored if stored.dim() == 2 else stored.movedim(1, -1).flatten(1)


def _operand(stored: torch.Tensor, scale: torch.Tensor, zero: int, group_size: int) -> Operand:
    """A weight for the engine in the layouts of ``fastq/packing.py``, at 8 bits: its codes as they are. Nothing looks at values.

    ``zero``: what is subtracted from each.
    """
    fields = _matrix(stored)
    if fields.dtype == torch.uint8:
        fields, zero = (fields ^ 128).view(torch.int8), zero - 128
    fields = fields.contiguous()
    n, k = fields.shape
    rows = F.pad(fields, (0, -k % group_size)).unflatten(1, (-1, group_size)) if group_size else fields
    sums = rows.sum(-1, dtype=torch.int32)
    if zero:
        length = torch.full_like(sums, group_size or k)
        if group_size:
            length[:, -1] = k - (sums.shape[1] - 1) * group_size
        sums = sums - zero * length
    if layout_of(fields.device) == "tiles":
        data = F.pad(fields, (0, -k % 64)).view(torch.uint8)
    else:
        data = pack_blocks(fields, 8)
    of = torch.full(scale.shape, zero, dtype=torch.int32, device=scale.device) if zero else None
    return Operand(data, scale, of, sums, n, k, 8, group_size)


def _call(stored: torch.Tensor, operand: Operand, window: Window | None, epilogue: Epilogue) -> torch.Tensor:
    if window is not None:
        stored = stored.contiguous(memory_format=torch.channels_last)
    return product(stored, operand, window, epilogue)


_SUMS = Epilogue(None, 0, None, None, None, None, 0, torch.int32, None, (0, 0, 0))


def integer_product(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, s_x: torch.Tensor, b_x: torch.Tensor | None, s_w: torch.Tensor,
    b_w: torch.Tensor | None, plan: Plan,
) -> torch.Tensor:  # fmt: skip
    """The output of a layer for stored codes ``x`` ``(M, K)`` or ``(B, C, H, W)`` and ``w``: the formula of this module."""
    of_x, of_w, window = plan.x, plan.w, plan.window
    bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
    middle = (of_w.qmin + of_w.qmax + 1) // 2 if b_w is not None else 0
    operand = _operand(w, s_w, middle - of_w.zero, of_w.group_size)
    if b_x is None and b_w is None and not of_x.odd and not of_w.odd:
        return _call(x, operand, window, Epilogue(s_x, -of_x.zero, bias, None, None, None, 0, plan.out_dtype, None, (0, 0, 0)))
    acc = _call(x, operand, window, _SUMS._replace(x_zero_point=-of_x.zero))
    along = (lambda t: t.view(-1, 1, 1)) if window is not None else lambda t: t
    inputs: Any = None
    inside: Any = None
    count: Any = operand.k
    if of_w.odd or b_w is not None:
        inputs = _window_sums(x, -of_x.zero, operand.n, window)
    if (of_x.odd or b_x is not None) or ((of_w.odd or b_w is not None) and window is not None):
        inside, count = _inside(x, operand, window)
    if of_w.odd:
        acc = 2 * acc + inputs
        inside = None if inside is None else 2 * inside + count
    if of_x.odd:
        acc = 2 * acc + inside
        inputs = None if inputs is None else 2 * inputs + count
    y = acc.to(torch.float32) * along(s_x * s_w)
    if b_x is not None:
        y = y + inside * along(b_x * s_w)
    if b_w is not None:
        b_w = (b_w.double() + s_w.double() * middle).to(torch.float32).reshape(-1)
        y = y + inputs * along(s_x * b_w)
        if b_x is not None:
            y = y + count * along(b_x * b_w)
    if bias is not None:
        y = y + along(bias)
    # torch 2.11 compiles a `to` that changes nothing, last in an autograd Function, to a pass of zero gradients
    return y if y.dtype == plan.out_dtype else y.to(plan.out_dtype)


def _window_sums(x: torch.Tensor, zero_point: int, n: int, window: Window | None) -> torch.Tensor:
    """``sum (x - zero_point)`` over the inputs of each output, int32, with one channel for all or one for each."""
    if window is None:
        return x.sum(1, keepdim=True, dtype=torch.int32) - zero_point * x.shape[1]
    one = torch.ones(1, dtype=torch.float32, device=x.device)
    ones = torch.ones(window.groups, window.channels, *window.kernel, dtype=torch.int8, device=x.device)
    sums = _call(x, _operand(ones, one, 0, 0), window, _SUMS._replace(x_zero_point=zero_point))
    return sums.repeat_interleave(n // window.groups, 1)


def _inside(x: torch.Tensor, operand: Operand, window: Window | None) -> tuple[torch.Tensor, Any]:
    """``sum w``, int32, and ``n``, over the positions inside an input of the shape of ``x``; they differ at the borders alone."""
    if window is None:
        return operand.sums, operand.k
    if not any(window.padding):
        return operand.sums.view(-1, 1, 1), operand.k
    image = torch.ones(1, *x.shape[1:], dtype=torch.int8, device=x.device)
    counts = _window_sums(image[:, : window.channels], 0, 1, window._replace(groups=1))
    return _call(image, operand, window, _SUMS), counts


def _backward(
    g: torch.Tensor, x: Any, w: Any, s_x: Any, b_x: Any, s_w: Any, b_w: Any, plan: Plan, dtypes: Any, bias: bool, needs: Any
) -> Any:
    """``dx_hat, dw_hat, db`` in the dtypes given, computed in that of ``g``."""
    window, dx, dw, db = plan.window, None, None, None
    x_hat = plan.x.decode(x, s_x, b_x).to(g.dtype) if needs[1] or window is not None else None
    w_hat = plan.w.decode(w, s_w, b_w).to(g.dtype) if needs[0] or window is not None else None
    if window is None:
        dx = None if w_hat is None else g @ w_hat
        dw = None if x_hat is None else g.t() @ x_hat
        db = g.sum(0) if bias and needs[2] else None
    elif any(needs):
        (left, right, top, bottom), shape = window.padding, x.shape
        padding, cut = [top, left], left != right or top != bottom
        if cut:
            x_hat, padding = F.pad(x_hat, window.padding), [0, 0]  # type: ignore[arg-type]
        sizes, mask = [w.shape[0]] if bias else None, [needs[0], needs[1], bias and needs[2]]
        dx, dw, db = torch.ops.aten.convolution_backward(
            g, x_hat, w_hat, sizes, window.stride, padding, window.dilation, False, [0, 0], window.groups, mask
        )  # fmt: skip
        if cut and dx is not None:
            dx = dx[:, :, top : top + shape[2], left : left + shape[3]]
    of_x, of_w, of_bias = dtypes
    return None if dx is None else dx.to(of_x), None if dw is None else dw.to(of_w), None if db is None else db.to(of_bias)


class IntegerProduct(torch.autograd.Function):
    """``IntegerProduct.apply(x_hat, w_hat, bias, x, w, s_x, b_x, s_w, b_w, plan)``: :func:`integer_product` of the stored codes.

    ``x_hat`` and ``w_hat`` are where gradients go; their values are not looked at. Saves the codes, a byte each, and the steps.
    """

    @staticmethod
    def forward(
        ctx: Any, x_hat: Any, w_hat: Any, bias: Any, x: Any, w: Any, s_x: Any, b_x: Any, s_w: Any, b_w: Any, plan: Plan
    ) -> torch.Tensor:
        ctx.save_for_backward(x, w, s_x, b_x, s_w, b_w)
        ctx.plan, ctx.bias = plan, bias is not None
        ctx.dtypes = x_hat.dtype, w_hat.dtype, None if bias is None else bias.dtype
        y = integer_product(x, w, bias, s_x, b_x, s_w, b_w, plan)
        return y if plan.window is None or plan.channels_last else y.contiguous()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        given = (g, *ctx.saved_tensors, ctx.plan, ctx.dtypes, ctx.bias, tuple(ctx.needs_input_grad[:3]))
        found = _library.BackwardOnce.apply("integer product", _backward, *given) if torch.is_grad_enabled() else _backward(*given)
        return *found, None, None, None, None, None, None, None


# --- layers --------------------------------------------------------------------------------------------------------------


def _padding(layer: Any) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, of zeros."""
    if layer.padding_mode != "zeros" or layer.padding == "valid":
        return 0, 0, 0, 0
    if layer.padding == "same":  # as torch: the odd element goes to the right
        totals = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(p, p) for p in layer.padding]
    pairs = [(0, 0)] * (2 - len(pairs)) + pairs
    return *pairs[1], *pairs[0]


def _check_length(name: str, x: Coding, w: Coding, products: int) -> None:
    largest = max(x.largest, 1) * max(w.largest, 1)
    if products * largest > INT32_MAX:
        raise ValueError(
            f"{name}: forward='integer': {products} products of up to {largest} could overflow the int32 accumulator; at most "
            f"{INT32_MAX // largest} cannot"
        )


def _out_dtype(x: torch.Tensor) -> torch.dtype:
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # which it does not know
        return x.dtype
    return torch.get_autocast_dtype(kind)


def linear_in_integers(layer: Any, input: torch.Tensor, together: torch.Tensor | None) -> torch.Tensor:
    """The forward pass of ``QuantLinear(forward="integer")``."""
    name = type(layer).__name__
    if input.dim() < 1 or input.shape[-1] != layer.weight.shape[1]:
        raise ValueError(f"{name}: input must be (..., {layer.weight.shape[1]}), got {tuple(input.shape)}")
    x, w = coded_input(layer, input), coded_weight(layer, together)
    if w.coding.group_size and any(side.offset is not None or side.coding.odd for side in (x, w)):
        raise ValueError(
            f"{name}: forward='integer' has no groups where an input or weight has an offset, or no zero; use forward='fake'"
        )
    _check_length(name, x.coding, w.coding, w.coding.group_size or layer.weight.shape[1])
    plan = Plan(x.coding, w.coding, None, _out_dtype(input), False)
    flat = [t.reshape(-1, t.shape[-1]) for t in (x.carrier, x.stored)]
    y = IntegerProduct.apply(
        flat[0], w.carrier, layer.bias, flat[1].contiguous(), w.stored, x.step.reshape(1), x.offset, w.step, w.offset, plan
    )
    return y.view(*input.shape[:-1], y.shape[-1])


def conv_in_integers(layer: Any, input: torch.Tensor, together: torch.Tensor | None) -> torch.Tensor:
    """The forward pass of ``QuantConv1d`` and ``QuantConv2d(forward="integer")``."""
    name, dims = type(layer).__name__, len(layer.kernel_size)
    if input.dim() not in (dims + 1, dims + 2) or input.shape[-1 - dims] != layer.in_channels:
        expected = "(B, C, H, W)" if dims == 2 else "(B, C, L)"
        raise ValueError(
            f"{name}: input must be {expected} with C = {layer.in_channels}, with or without B, got {tuple(input.shape)}"
        )

    x, w = coded_input(layer, input), coded_weight(layer, together)
    _check_length(name, x.coding, w.coding, layer.weight[0].numel())
    carrier, stored, w_carrier, w_stored = x.carrier, x.stored, w.carrier, w.stored
    single = input.dim() == dims + 1
    if single:
        carrier, stored = carrier.unsqueeze(0), stored.unsqueeze(0)
    if layer.padding_mode != "zeros":  # copies of elements, whose codes are those of the originals
        around = layer._reversed_padding_repeated_twice
        carrier = F.pad(carrier, around, mode=layer.padding_mode)
        stored = F.pad(stored.to(torch.float32), around, mode=layer.padding_mode).to(stored.dtype)
    if dims == 1:
        carrier, stored, w_carrier, w_stored = (t.unsqueeze(2) for t in (carrier, stored, w_carrier, w_stored))
    per_channel = (1,) * (2 - dims)
    window = Window(
        layer.weight.shape[1], (*per_channel, *layer.kernel_size), (*per_channel, *layer.stride), _padding(layer),
        (*per_channel, *layer.dilation), layer.groups,
    )  # fmt: skip
    if min(window.size(stored.shape[2], stored.shape[3])) < 1:
        raise ValueError(
            f"{name}: the kernel {layer.kernel_size} at dilation {layer.dilation} exceeds the padded {tuple(input.shape)}"
        )

    last = dims == 2 and any(
        t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (input, layer.weight)
    )
    plan = Plan(x.coding, w.coding, window, _out_dtype(input), last)
    y = IntegerProduct.apply(
        carrier, w_carrier, layer.bias, stored, w_stored, x.step.reshape(1), x.offset, w.step, w.offset, plan
    )  # fmt: skip
    y = y.squeeze(2) if dims == 1 else y
    return y.squeeze(0) if single else y
