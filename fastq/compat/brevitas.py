"""Brevitas' integer quantizers on the fused kernels. Change ::

    from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat          # before
    from fastq.compat.brevitas import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat   # after

and pass them to Brevitas' layers as before (``QuantConv2d(..., weight_quant=Int8WeightPerTensorFloat, weight_bit_width=4)``);
``fused(Q)`` does the same for any injector ``Q`` of your own. Below both lies :class:`RescalingIntQuant`, the tensor_quant: scale,
zero-point, bit width and the state dict stay Brevitas', the quantization between them is one kernel forward and one backward.

Output and gradients agree to float rounding. Without a zero-point the outputs have Brevitas' bits. With one, the kernels round
``(x + zero_point * scale) / scale`` and Brevitas ``x / scale + zero_point``, so that codes next to a tie may differ by one.
Half-precision inputs are computed in float32 and rounded once, where Brevitas rounds after every operation.

Refused by a ``ValueError`` when the quantizer is made: learned bit widths, other roundings than to the nearest, delays, scales that
may be negative, and ``TensorClampSte`` (gradients also outside the range) where the scale does not come from the largest magnitude,
so that something lies outside; ``tensor_clamp_impl=TensorClamp`` is served. ``BREVITAS_JIT=1`` is refused at import.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.compiler import is_compiling

from ..granularity import check_input, compute_dtype
from ..ops.lsq import LSQ
from ..ranges import BOUNDARIES, LARGEST_CODE
from .missing import missing
from .reading import Reading

if os.environ.get("BREVITAS_JIT", "").lower() in ("1", "y", "yes", "t", "true", "on"):  # before the import, which then compiles
    raise ImportError(
        "fastq.compat.brevitas: BREVITAS_JIT=1 compiles quantizers with TorchScript, which kernels cannot join; unset it"
    )

try:
    from brevitas import quant as _quant
    from brevitas.core.bit_width import BitWidthConst, BitWidthStatefulConst
    from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp, TensorClampSte
    from brevitas.core.quant import IntQuant
    from brevitas.core.quant import RescalingIntQuant as _BrevitasRescalingIntQuant
    from brevitas.core.quant.delay import _NoDelay
    from brevitas.core.restrict_val import FloatRestrictValue, SignedFloatRestrictValue
    from brevitas.core.scaling import IntScaling, StatsFromParameterScaling
    from brevitas.core.stats import AbsMax, AbsMinMax
    from brevitas.core.zero_point import ZeroZeroPoint
except ImportError as error:
    raise missing("brevitas", "brevitas", error) from error

__all__ = [
    "Int8ActPerTensorFloat",
    "Int8ActPerTensorFloatMinMaxInit",
    "Int8WeightPerChannelFloat",
    "Int8WeightPerTensorFloat",
    "IntQuant",
    "RescalingIntQuant",
    "ShiftedUint8ActPerTensorFloat",
    "ShiftedUint8WeightPerChannelFloat",
    "ShiftedUint8WeightPerTensorFloat",
    "Uint8ActPerTensorFloat",
    "Uint8ActPerTensorFloatMaxInit",
    "fused",
]

#: Brevitas divides by the scale as it is, and bounds it itself (scaling_min_val, 1e-10 over the largest code).
EPS = 1e-30


def _refuse(what: str, instead: str) -> None:
    raise ValueError(f"RescalingIntQuant: {what}, which the kernels do not serve; {instead}, or keep Brevitas' own quantizer")


def _covers(scaling: Any, int_scaling: Any) -> bool:
    """Is the scale the largest magnitude (or range) over the largest code, so that no code is clipped?"""
    return (
        isinstance(scaling, StatsFromParameterScaling)
        and isinstance(int_scaling, IntScaling)
        and isinstance(scaling.parameter_list_stats.stats.stats_impl, (AbsMax, AbsMinMax))
        and any(isinstance(m, FloatRestrictValue) for m in scaling.modules())
    )


def _block(length: int) -> int:
    """The largest divisor of ``length`` up to 128: so many elements at a time are searched for their largest."""
    return next(b for b in range(min(length, 128), 0, -1) if length % b == 0)


class _LargestMagnitude(torch.autograd.Function):
    """``max |x|`` of each row of a matrix; the gradient goes to the first element that has it, with its sign.

    ``torch.max(torch.abs(x), 1)`` writes ``|x|``, and on CPUs searches one element after another. Here the extrema of blocks, which
    need no index, tell the block, and the search is within that.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        count, length = rows.shape
        blocks = rows.view(count, -1, _block(length))
        best = torch.maximum(blocks.amax(2), -blocks.amin(2)).max(1, keepdim=True).indices
        found = blocks.gather(1, best.unsqueeze(2).expand(-1, 1, blocks.shape[2])).squeeze(1)
        within = found.abs().max(1, keepdim=True).indices
        value = found.gather(1, within).squeeze(1)
        ctx.save_for_backward(best * blocks.shape[2] + within, value.sign())
        ctx.length = length
        return value.abs()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        index, sign = ctx.saved_tensors
        return g.new_zeros(g.shape[0], ctx.length).scatter_(1, index, (g * sign).unsqueeze(1))


class _AbsMax(AbsMax):
    """Brevitas' ``AbsMax``: the largest magnitude of a tensor, or along its last axis. Without parameters, and so without state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dim = self.stats_reduce_dim
        if x.numel() == 0 or (dim is not None and dim % x.dim() != x.dim() - 1):
            return super().forward(x)
        if dim is None:
            return _LargestMagnitude.apply(x.reshape(1, -1)).squeeze(0)
        largest = _LargestMagnitude.apply(x.reshape(-1, x.shape[-1]))
        return largest.view(*x.shape[:-1], 1) if self.keepdim else largest.view(x.shape[:-1])


class RescalingIntQuant(_BrevitasRescalingIntQuant):
    """Brevitas' ``RescalingIntQuant``: ``(y, scale, zero_point, bit_width) = tensor_quant(x)``, with a fused quantization.

    With the range that bit width, ``signed`` and ``narrow_range`` give::

        v  = x / scale + zero_point,  y = scale * (clip(round(v), qmin, qmax) - zero_point)
        dx = g inside, else 0
        dscale = sum g * (round(v) - v inside; clip(v) - zero_point outside),   dzero = sum -scale * g outside

    inside meaning ``qmin <= round(v) <= qmax``. What learns below scale and zero-point gets its gradient through Brevitas' modules;
    of a weight's statistics the largest magnitude is found without a pass that writes, and if several weights have it, the first
    gets the gradient.

    Args:
        int_quant: Brevitas' ``IntQuant`` with ``RoundSte`` and ``TensorClamp`` or ``TensorClampSte`` (see the module).
        scaling_impl, int_scaling_impl, zero_point_impl, bit_width_impl: as Brevitas has them; the bit width a constant.

    Raises:
        ValueError: parts that cannot be served, a scale that is not one per tensor, per index of an axis, or per leading axes.
        TypeError: ``x`` is not a float tensor.
    """

    def __init__(self, int_quant: Any, scaling_impl: Any, int_scaling_impl: Any, zero_point_impl: Any, bit_width_impl: Any) -> None:
        super().__init__(int_quant, scaling_impl, int_scaling_impl, zero_point_impl, bit_width_impl)
        if type(int_quant) is not IntQuant:
            _refuse(f"int_quant is a {type(int_quant).__name__} and not an IntQuant", "use IntQuant")
        if not isinstance(bit_width_impl, (BitWidthConst, BitWidthStatefulConst)):
            _refuse(f"bit_width_impl is a {type(bit_width_impl).__name__}: a learned bit width", "use BitWidthConst")
        if any(isinstance(m, SignedFloatRestrictValue) for m in scaling_impl.modules()):
            _refuse("scaling_impl has a SignedFloatRestrictValue: scales may be negative", "use restrict_scaling_type=FP")
        clamp = type(int_quant.tensor_clamp_impl)
        if clamp is TensorClampSte and not _covers(scaling_impl, int_scaling_impl):
            _refuse(
                "tensor_clamp_impl=TensorClampSte passes gradients outside the range, and the scale does not come from the largest "
                "magnitude, so that something lies outside", "use tensor_clamp_impl=TensorClamp",
            )  # fmt: skip
        if clamp not in (TensorClamp, TensorClampSte):
            _refuse(f"tensor_clamp_impl is a {clamp.__name__}", "use TensorClamp")
        self._check_rounding(int_quant)
        if isinstance(scaling_impl, StatsFromParameterScaling):
            stats = scaling_impl.parameter_list_stats.stats
            if type(stats.stats_impl) is AbsMax:
                stats.stats_impl = _AbsMax(stats.stats_impl.stats_reduce_dim, stats.stats_impl.keepdim)
        self._bits = Reading()
        self._shifted = not isinstance(zero_point_impl, ZeroZeroPoint)
        self._range()
        self.register_load_state_dict_post_hook(_read_range)

    @staticmethod
    def _check_rounding(int_quant: Any) -> None:
        if type(int_quant._modules["float_to_int_impl"]) is not RoundSte:
            _refuse(f"float_to_int_impl is a {type(int_quant.float_to_int_impl).__name__}", "use RoundSte")
        if type(int_quant.delay_wrapper.delay_impl) is not _NoDelay:
            _refuse("quant_delay_steps delays quantization", "leave it at 0")

    def _range(self) -> tuple[int, int]:
        if is_compiling():  # a constant of the graph; loading another bit width reads it anew
            return self._bits.value
        holder = self._modules["msb_clamp_bit_width_impl"]
        holder = holder._modules.get("bit_width", holder)
        return self._bits.of(next(iter(holder._buffers.values())), self._range_of)

    def _range_of(self, bit_width: torch.Tensor) -> tuple[int, int]:
        int_quant = self.int_quant
        bounds = int(int_quant.min_int(bit_width)), int(int_quant.max_int(bit_width))
        if max(-bounds[0], bounds[1]) > LARGEST_CODE or bounds[0] >= bounds[1] or bounds[1] < 1:
            _refuse(f"{bit_width.item()} bits make a range {bounds}", f"use codes within ±{LARGEST_CODE}, the largest positive")
        return bounds

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        bit_width = self.msb_clamp_bit_width_impl()
        scale = self.scaling_impl(x, self.int_scaling_impl(bit_width))
        zero_point = self.zero_point_impl(x, scale, bit_width)
        if self.observer_only:
            return x, scale, zero_point, bit_width
        return self._quantize(x, scale, zero_point), scale, zero_point, bit_width

    def _quantize(self, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        check_input("RescalingIntQuant", x)
        int_quant = self._modules["int_quant"]
        self._check_rounding(int_quant)  # learned rounding is put there later
        view = int_quant._modules["input_view_impl"]
        if not isinstance(view, Identity):
            x = view(x)
        step, offset = scale, -zero_point * scale if self._shifted else None
        flat, axis = x, -1
        if scale.numel() > 1:
            flat, axis = _channels(x, scale)
            step = scale.reshape(-1)
        if offset is not None:
            offset = offset.expand(scale.shape).reshape(-1) if scale.numel() > 1 else offset.reshape(step.shape)
        dtype = compute_dtype(x)
        if step.dtype != dtype:
            step = step.to(dtype)
        if offset is not None and offset.dtype != dtype:
            offset = offset.to(dtype)
        y = LSQ.apply(flat, step, offset, *self._range(), axis, 0, BOUNDARIES["rounded"], 1.0, 1.0, EPS)
        return y if flat is x else y.view(x.shape)


def _read_range(module: Any, incompatible: Any) -> None:
    module._range()


def _channels(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, int]:
    """``x``, flattened if need be, and the axis along which each index has a scale."""
    if scale.dim() == x.dim():
        axes = [d for d, n in enumerate(scale.shape) if n > 1]
        if all(scale.shape[d] == x.shape[d] for d in axes):
            if len(axes) == 1:
                return x, axes[0]
            if all(scale.shape[d] == x.shape[d] for d in range(axes[-1] + 1)):  # groups: an axis of blocks behind the channels
                return x.reshape(scale.numel(), -1), 0
    raise ValueError(
        "RescalingIntQuant: scale must have one element, one per index of an axis of x, or one per index of its leading axes; got "
        f"{tuple(scale.shape)} for x of shape {tuple(x.shape)}"
    )


def fused(quantizer: Any) -> Any:
    """A subclass of an injector (``weight_quant``, ``act_quant`` and the like) whose tensor_quant is :class:`RescalingIntQuant`.

    What the kernels do not serve raises when a layer is made with it.
    """
    return type(quantizer)(quantizer.__name__, (quantizer,), {"tensor_quant": RescalingIntQuant, "__doc__": quantizer.__doc__})


Int8ActPerTensorFloat = fused(_quant.Int8ActPerTensorFloat)
Int8ActPerTensorFloatMinMaxInit = fused(_quant.Int8ActPerTensorFloatMinMaxInit)
Int8WeightPerChannelFloat = fused(_quant.Int8WeightPerChannelFloat)
Int8WeightPerTensorFloat = fused(_quant.Int8WeightPerTensorFloat)
ShiftedUint8ActPerTensorFloat = fused(_quant.ShiftedUint8ActPerTensorFloat)
ShiftedUint8WeightPerChannelFloat = fused(_quant.ShiftedUint8WeightPerChannelFloat)
ShiftedUint8WeightPerTensorFloat = fused(_quant.ShiftedUint8WeightPerTensorFloat)
Uint8ActPerTensorFloat = fused(_quant.Uint8ActPerTensorFloat)
Uint8ActPerTensorFloatMaxInit = fused(_quant.Uint8ActPerTensorFloatMaxInit)
