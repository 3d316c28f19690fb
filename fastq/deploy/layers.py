"""Linear and convolution layers that compute in integers, in floating point with packed weights, and by look-up.

A quantizer gives ``step * K + offset`` with integers K (:class:`fastq.nn.Grid`): the codes themselves, or ``2 * code + 1`` where
the grid has no zero. Where neither the inputs' nor the weights' grid has an offset and both have a zero, a layer is *plain*: all of
it is one call of the integer engine, :func:`fastq.int_linear` or :func:`fastq.int_conv2d`, on codes of the input as they are and a
:class:`fastq.PackedWeight`, with everything up to the next layer's codes in its epilogue.

Else, with inputs ``x = s_x*X + b_x`` and weights ``w = s_w*W + b_w``, a layer's output is

    y = (s_x*s_w) * acc  +  (b_x*s_w) * sum W  +  (s_x*b_w) * sum X  +  (b_x*b_w) * n  +  bias            acc = sum X*W

where all sums run over the n positions of a window that lie inside the input: a padded 0 is not on every grid. What is stored is
int8: ``p = code - zero``, so that ranges such as 0..255 fit. Hence ``X = a_x*p + c_x``, ``W = a_w*k + c_w``, and

    acc   = a_x * (a_w * sum p*k  +  c_w * sum p)  +  c_x * sum W
    sum W = a_w * sum k  +  c_w * n
    sum X = a_x * sum p  +  c_x * n

in int32, exactly: ``sum p*k`` are the engine's accumulators, ``sum p`` those with ones in place of the weights, and ``sum k`` and
``n``, which differ at the borders alone, come from the weights and an input of ones. Terms whose factor is 0 are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .. import checks
from ..engine.call import FLOATS
from ..granularity import compute_dtype
from ..nn.base import keeping_precision
from ..nn.batch_norm import affine_of
from ..ops import direct_weight
from ..ops.int_conv2d import int_conv2d
from ..ops.int_linear import INT32_MAX, int_linear
from ..ops.quantize import quantize
from ..packing import BITS, PackedWeight, pack

__all__ = [
    "Affine", "AffineNorm1d", "AffineNorm2d", "CodedLayer", "Codes", "Form", "IntegerConv", "IntegerLayer", "IntegerLinear",
    "LookupConv", "LookupLayer", "LookupLinear", "PackedLayer", "WeightOnlyConv", "WeightOnlyLayer", "WeightOnlyLinear", "form_of",
]  # fmt: skip


@dataclass(frozen=True)
class Codes:
    """The codes of a grid: their range, and whether they stand for themselves or, ``odd``, for ``2 * code + 1``.

    ``ValueError`` where there are more than 256.
    """

    qmin: int
    qmax: int
    odd: bool = False

    def __post_init__(self) -> None:
        if self.qmax - self.qmin > 255:
            raise ValueError(f"codes from {self.qmin} to {self.qmax} do not fit 8 bits")

    @property
    def zero(self) -> int:
        """The code that is stored as 0; 0 itself where the range fits int8 as it is."""
        return 0 if self.qmin >= -128 and self.qmax <= 127 else self.qmin + 128

    @property
    def stored(self) -> tuple[int, int]:
        """The range of ``code - zero``."""
        return self.qmin - self.zero, self.qmax - self.zero

    def numel(self) -> int:
        """How many there are."""
        return self.qmax - self.qmin + 1

    @property
    def factor(self) -> int:
        """``a``: the integer is ``a * (code - zero) + c``."""
        return 2 if self.odd else 1

    @property
    def constant(self) -> int:
        """``c``."""
        return self.factor * self.zero + self.odd

    @property
    def largest(self) -> int:
        """A bound of ``|a * stored| + |c|``, and so of the integer."""
        return self.factor * max(map(abs, self.stored)) + abs(self.constant)


#: What users attach to a layer that runs: forward hooks. Those for gradients and for other state_dict keys have no use here.
HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


def take_hooks(layer: nn.Module, old: nn.Module) -> None:
    """Give ``layer`` the forward hooks of ``old``, whose place it takes."""
    for name in HOOKS:
        setattr(layer, name, getattr(old, name).copy())


class Form(NamedTuple):
    """What a layer's output has of its input: the dtype, and whether the channels lie last (None: as the kernel leaves them)."""

    dtype: torch.dtype
    channels_last: bool | None


def form_of(x: torch.Tensor) -> Form:
    """That of a floating point input."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return Form(x.dtype, last)


def packed(codes: torch.Tensor, low: int, high: int, scale: torch.Tensor | float, group_size: int | None = None) -> PackedWeight:
    """Integers from ``low`` to ``high`` in the fewest bits that the engine has for them.

    They are codes as they are where they fit signed or unsigned ones, else codes with a zero-point. ``ValueError`` where not even
    8 bits hold them.
    """
    for bits in BITS:
        half, shift = 2 ** (bits - 1), low + 2 ** (bits - 1)
        if -half <= low and high < half:
            return pack(codes.to(torch.int8), bits, scale=scale, group_size=group_size)
        if low >= 0 and high < 2 * half:
            return pack(codes.to(torch.uint8), bits, scale=scale, group_size=group_size)
        if high - low < 2 * half and -half <= -shift < half:
            return pack((codes.to(torch.int16) - shift).to(torch.int8), bits, scale=scale, zero_point=-shift, group_size=group_size)
    raise ValueError(f"codes from {low} to {high} do not fit 8 bits")


def by_group(codes: torch.Tensor, group_size: int) -> torch.Tensor:
    """A linear weight ``(N, K)`` as that of a convolution with one group of channels for each group of a row:
    ``(G*N, group_size, 1, 1)``. Its accumulators are those of the groups, apart."""
    n, k = codes.shape
    if k % group_size:
        raise ValueError(f"groups of {group_size} do not divide rows of {k}")
    return codes.view(n, k // group_size, group_size).transpose(0, 1).reshape(-1, group_size, 1, 1)


class CodedLayer(nn.Module):
    """What integer and look-up layers have in common: the input's codes.

    ``inputs``: of the input's grid, or None where a look-up layer's input is not quantized. ``magnitude``: as in
    :class:`fastq.nn.Grid`. Buffers: ``input_step``; ``input_offset`` or None; ``input_lower`` and ``input_width``, the grid's
    interval, or None; of one element each.
    """

    input_step: torch.Tensor | None
    input_offset: torch.Tensor | None
    input_lower: torch.Tensor | None
    input_width: torch.Tensor | None
    #: Of this kind of layer; all but the weights' ``codes`` are saved as they are.
    buffer_names: tuple[str, ...] = ("input_step", "input_offset", "input_lower", "input_width")

    def __init__(self, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, magnitude: bool = False) -> None:
        super().__init__()
        self.inputs, self.magnitude = inputs, magnitude
        for name in self.buffer_names:
            self.register_buffer(name, tensors.get(name))
        if (inputs is None) != (self.input_step is None) or (self.input_lower is None) != (self.input_width is None):
            raise ValueError("input_step goes with the input's codes, input_lower with input_width")

    @property
    def zero(self) -> int:
        """The input code that is stored as 0."""
        return 0 if self.inputs is None else self.inputs.zero

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # what is rounded to half precision finds other codes than the quantizer, whose parameters are not
        return super()._apply(keeping_precision(fn), recurse)

    @property
    def takes_codes(self) -> bool:
        """Whether the input's codes are a step's multiples, which the epilogue of another layer can make."""
        if getattr(self, "padding_mode", "zeros") != "zeros":  # copies elements of its input, and codes come without the copies
            return False
        c, step = self.inputs, self.input_step
        if c is None or step is None or step.dtype != torch.float32 or c.odd or not c.qmin <= 0 <= c.qmax:
            return False
        return self.input_offset is None and self.input_lower is None and -128 <= -c.zero <= 127

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """The codes of ``x`` less ``zero``, int8, by the formula of :class:`fastq.nn.Grid`. An int8 ``x`` is such codes already.

        What NaN becomes is not specified.
        """
        if self.inputs is None or self.input_step is None:
            raise TypeError(f"{type(self).__name__}: its input is not quantized and has no codes")
        if x.dtype == torch.int8:
            return x
        checks.check_values("integer layer", x, self.input_step, self.input_offset)
        if self.takes_codes and x.dtype in FLOATS:
            return quantize(x.detach(), self.input_step, zero_point=-self.zero, range=self.inputs.stored)
        v = x.detach().to(compute_dtype(x))
        low, high = self.inputs.qmin, self.inputs.qmax
        if self.input_lower is not None and self.input_width is not None:
            within = (v.abs() if self.magnitude else v) - self.input_lower.reshape(())
            within = (within / self.input_width.reshape(())).clamp_(0, 1)
            if self.magnitude:
                v = within.mul_(high).round_().mul_(v.sign())
            else:
                v = within.mul_(high - low).round_().add_(low)
        else:
            if self.input_offset is not None:
                v = v - self.input_offset.reshape(())
            v = v / self.input_step.reshape(())
            if self.inputs.odd:
                first = 2 * low + 1
                v = v.clamp_(first, 2 * high + 1).sub_(first).div_(2).round_().add_(low)
            else:
                v = v.clamp_(low, high).round_()
        return v.nan_to_num_(nan=float(self.zero)).sub_(self.zero).to(torch.int8)


class PackedLayer(CodedLayer):
    """A layer with a :class:`fastq.PackedWeight`, ``weight``, which a ``state_dict`` holds in its canonical layout.

    Keys: ``weight`` uint8, the bytes of the codes; ``weight_scale`` and, where there is one, ``weight_zero``.
    """

    weight: PackedWeight

    def __init__(
        self, weight: PackedWeight, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, magnitude: bool = False
    ) -> None:
        super().__init__(tensors, inputs, magnitude)
        self.weight = weight

    @property
    def codes(self) -> torch.Tensor:
        """The weight's codes, int8 or uint8, of the weight's shape."""
        return self.weight.unpack()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self._move(fn(self.weight.data[:0]).device)
        return self

    def _move(self, device: torch.device) -> None:
        self.weight = self.weight.to(device)

    def extra_repr(self) -> str:
        return repr(self.weight)

    def packed_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of ``weight`` by their key, in the canonical layout."""
        w = self.weight.to(self.weight.device, "rows")
        tensors = {"weight": w.data, "weight_scale": w.scale}
        return tensors if w.zero_point is None else tensors | {"weight_zero": w.zero_point}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, t in self.packed_tensors().items():
            destination[prefix + name] = t

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str], unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:  # fmt: skip
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        own, given = self.packed_tensors(), {}
        for name, t in own.items():
            key = prefix + name
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            if key not in state_dict:
                if strict:
                    missing_keys.append(key)
            elif (new := state_dict[key]).shape != t.shape or new.dtype != t.dtype:
                error_msgs.append(f"{key} must be {t.dtype} {tuple(t.shape)}, got {new.dtype} {tuple(new.shape)}")
            else:
                given[name] = new.detach().to(t.device, copy=True)
        if given:
            w, all_ = self.weight, own | given
            layout = (w.shape, w.bits, w.signed, w.group_size, "rows")
            self.weight = PackedWeight(all_["weight"], all_["weight_scale"], all_.get("weight_zero"), *layout).to(w.device)


class Windows:
    """What a convolution is made with. ``padding`` is (left, right[, top, bottom]); stride and dilation have ``dims`` numbers; any
    ``padding_mode`` of torch."""

    dims: int

    def _set_windows(self, dims: int, stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str) -> None:
        self.dims, self.stride, self.padding, self.dilation = dims, tuple(stride), tuple(padding), tuple(dilation)
        self.groups, self.padding_mode = groups, padding_mode

    def copied(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` padded by a mode that copies elements; padding with zeros is the product's."""
        return x if self.padding_mode == "zeros" else F.pad(x, self.padding, mode=self.padding_mode)

    def images(self, t: torch.Tensor) -> torch.Tensor:
        """``t`` as a batch of images."""
        t = t.unsqueeze(0) if t.dim() == self.dims + 1 else t
        return t.unsqueeze(2) if self.dims == 1 else t

    def convolve(
        self, x: torch.Tensor, weight: PackedWeight, residual: torch.Tensor | None = None, **keywords: Any
    ) -> torch.Tensor:
        """:func:`fastq.int_conv2d` of a batch or a single sample, with one dimension or two."""
        pad = self.padding if self.padding_mode == "zeros" else (0,) * len(self.padding)
        stride, dilation = self.stride, self.dilation
        if self.dims == 1:
            pad, stride, dilation = (*pad, 0, 0), (1, *stride), (1, *dilation)
        residual = None if residual is None else self.images(residual)
        y = int_conv2d(
            self.images(x), weight, stride=stride, padding=pad, dilation=dilation, groups=self.groups, residual=residual, **keywords
        )
        y = y.squeeze(2) if self.dims == 1 else y
        return y[0] if x.dim() == self.dims + 1 else y

    def output_shape(self, x: torch.Tensor) -> tuple[int, ...]:
        """Of :meth:`convolve`, less the channels."""
        sizes = []
        for d in range(self.dims):
            first = 2 * (self.dims - 1 - d) if self.padding_mode == "zeros" else None
            pad = 0 if first is None else self.padding[first] + self.padding[first + 1]
            kernel = self.weight.shape[len(self.weight.shape) - self.dims + d]  # type: ignore[attr-defined]
            sizes.append((x.shape[d - self.dims] + pad - self.dilation[d] * (kernel - 1) - 1) // self.stride[d] + 1)
        return tuple(sizes)

    def along(self, t: torch.Tensor) -> torch.Tensor:
        """``t``, one number per output channel or for all, shaped to multiply the output."""
        return t.view(-1, *(1,) * self.dims)

    def shaped(self, y: torch.Tensor, form: Form) -> torch.Tensor:
        """``y`` in the memory format of ``form``."""
        if form.channels_last is None:
            return y
        last = form.channels_last and y.dim() == 4
        return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class IntegerLayer(PackedLayer):
    """What the two have in common: the way from the input to the accumulators and back to real numbers.

    ``weights``: the codes of the weights' grid. Buffers: ``bias`` ``(O,)`` or None; those of the input; and, where the layer is not
    plain, ``scale`` ``(O,)`` (or one element; per group ``(K/group_size, O)``), ``s_x*s_w``, and like it or None ``shift``,
    ``b_x*s_w``, ``weight_shift``, ``s_x*b_w``, and ``cross``, ``b_x*b_w``.
    """

    scale: torch.Tensor | None
    shift: torch.Tensor | None
    weight_shift: torch.Tensor | None
    cross: torch.Tensor | None
    bias: torch.Tensor | None
    inputs: Codes
    buffer_names = ("scale", "shift", "weight_shift", "cross", "bias", *CodedLayer.buffer_names)

    def __init__(
        self, weight: PackedWeight, tensors: dict[str, torch.Tensor | None], inputs: Codes, weights: Codes, products: int,
        magnitude: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(weight, tensors, inputs, magnitude)
        self.weights = weights
        if self.plain and (inputs.odd or self.input_offset is not None or not -128 <= -inputs.zero <= 127):
            raise ValueError(
                "a layer without a scale of its own takes codes of an even grid without an offset, with a zero among them; "
                f"got {inputs} and {'no' if self.input_offset is None else 'an'} offset"
            )
        of_weight = 2**weight.bits - 1 if weight.stored_zero is not None else 2 ** (weight.bits - 1)
        # a bound of the engine's accumulator, and of the four sums that make one of a grid that is not plain, taken together
        most = max((max(127 + inputs.zero, 128 - inputs.zero) if self.plain else 128) * of_weight, inputs.largest * weights.largest)
        if products * most > INT32_MAX:
            raise ValueError(f"{products} products of up to {most} could overflow int32; at most {INT32_MAX // most} fit")

    @property
    def plain(self) -> bool:
        """Whether the layer is one call of the integer engine."""
        return self.scale is None

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """``acc = sum X*W`` in int32 for the codes of :meth:`quantize`, exactly."""
        if self.plain:
            return self.products(codes, -self.zero)
        acc = self.products(codes).mul_(self.weights.factor)
        if self.weights.constant:
            acc.add_(self.windows(codes), alpha=self.weights.constant)
        acc.mul_(self.inputs.factor)
        return acc.add_(self.weight_sums(codes), alpha=self.inputs.constant) if self.inputs.constant else acc

    def weight_sums(self, codes: torch.Tensor) -> torch.Tensor:
        """``sum W``, int32, for an input of the shape of ``codes``; without its batch, or with one of 1."""
        k, n = self.inside(codes)
        return k * self.weights.factor + n * self.weights.constant

    def products(self, codes: torch.Tensor, zero_point: int = 0) -> torch.Tensor:
        """``sum (p - zero_point)*k``, int32, of the shape of the output; per group ``(..., groups, O)``."""
        raise TypeError("products belongs to IntegerLinear and IntegerConv")

    def windows(self, codes: torch.Tensor) -> torch.Tensor:
        """``sum p``, int32, of that shape, or with one channel for all."""
        raise TypeError("windows belongs to IntegerLinear and IntegerConv")

    def inside(self, codes: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """``sum k``, int32, and ``n``, an int or int32, over the positions inside an input of the shape of ``codes``."""
        raise TypeError("inside belongs to IntegerLinear and IntegerConv")

    def along(self, t: torch.Tensor) -> torch.Tensor:
        """``t``, one number per output channel or for all, shaped to multiply the output."""
        return t

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The output of a layer that is not plain, but for its bias, for the accumulators ``acc`` of the input ``codes``."""
        if self.scale is None:
            raise TypeError(f"{type(self).__name__}: a plain layer has its scales in the product")
        y = acc.to(self.scale.dtype) * self.along(self.scale)
        if self.shift is not None:
            y = y + self.weight_sums(codes) * self.along(self.shift)
        if self.weight_shift is not None:
            n = self.inside(codes)[1]
            inputs = self.windows(codes) * self.inputs.factor + n * self.inputs.constant
            y = y + inputs * self.along(self.weight_shift)
            if self.cross is not None:
                y = y + n * self.along(self.cross)
        return y

    def call(self, codes: torch.Tensor, **keywords: Any) -> torch.Tensor:
        """The engine's product with scales, bias and what ``keywords`` say."""
        raise TypeError("call belongs to IntegerLinear and IntegerConv")

    def fits(self, codes: torch.Tensor, multiplier: torch.Tensor | None, residual: Any) -> bool:
        """Whether the engine's epilogue has what is asked of the output for ``codes``."""
        raise TypeError("fits belongs to IntegerLinear and IntegerConv")

    def shaped(self, y: torch.Tensor, form: Form) -> torch.Tensor:
        """``y`` in the memory format of ``form``."""
        return y

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        """Which samples hold a NaN, shaped to mask the output."""
        raise TypeError("rows_with_nan belongs to IntegerLinear and IntegerConv")

    def forward(
        self, input: torch.Tensor, *, form: Form | None = None, multiplier: torch.Tensor | None = None,
        addend: torch.Tensor | None = None, residual: torch.Tensor | None = None, activation: str | None = None,
        out_scale: torch.Tensor | None = None, out_codes: tuple[int, int] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The layer's output, of the input's dtype and memory format. A sample that holds NaN, which no integer stands for, becomes
        NaN whole. What follows is what :func:`fastq.convert` calls a layer of a fused network with.

        input: floating point, or the codes of :meth:`quantize`, int8, among which nothing tells of NaN.
        form: the dtype and memory format of the output, where the input has none to follow.
        multiplier, addend: of a batch norm, ``(O,)``; residual: is added; activation: ``"relu"``; in this order.
        out_scale, out_codes: of the next layer's input, its step and the range of its codes: give these, less their ``zero``, int8;
        where ``form`` is None, with the strides that the kernel leaves. A NaN is an arbitrary code there.
        """
        codes, coded = self.quantize(input), input.dtype == torch.int8
        if form is None:
            form = Form(torch.float32, None) if coded else form_of(input)
            form = form if out_codes is None else form._replace(channels_last=None)
        after: dict[str, Any] = {"multiplier": multiplier, "addend": addend, "activation": activation}
        if out_codes is not None:
            next_ = Codes(*out_codes)
            after |= {"out_scale": out_scale, "out_range": next_.stored, "out_zero_point": -next_.zero}
        else:
            after["out_dtype"] = form.dtype if form.dtype in FLOATS else torch.float32
        nan = None if coded or out_codes is not None else self.rows_with_nan(input)
        if self.plain and self.fits(codes, multiplier, residual):
            residual = None if residual is None else residual.detach()
            y = self.shaped(self.call(codes, residual=residual, **after), form)
            y = y if nan is None else y.masked_fill_(nan, float("nan"))
        else:
            y = self.call(codes) if self.plain else self.dequantize(self.accumulate(codes), codes)
            if not self.plain and self.bias is not None:
                y = y + self.along(self.bias)
            y = self.shaped(y, form)
            y = y if nan is None else y.masked_fill_(nan, float("nan"))
            y = finished(y, residual=residual, **after)
        return y if out_codes is not None else y.to(form.dtype)


def finished(
    y: torch.Tensor, multiplier: torch.Tensor | None, addend: torch.Tensor | None, residual: Any, activation: str | None,
    out_dtype: torch.dtype | None = None, out_scale: torch.Tensor | None = None, out_range: Any = None, out_zero_point: int = 0,
) -> torch.Tensor:  # fmt: skip
    """The engine's epilogue by separate operators, for residuals and axes of channels that it does not have: those broadcast, and a
    multiplier goes along axis 1, as a batch norm does."""
    shape = (1, -1, *(1,) * (y.dim() - 2))
    y = y if multiplier is None else y * multiplier.view(shape)
    y = y if addend is None else y + addend.view(shape)
    y = y if residual is None else y + residual
    y = y if activation is None else F.relu(y)
    return y if out_scale is None else quantize(y.detach().float(), out_scale, range=out_range, zero_point=out_zero_point)


class IntegerLinear(IntegerLayer):
    """``torch.nn.Linear`` on integers; with ``group_size`` one scale per so many elements of a row.

    ``weight`` is ``(O, K)``; per group, where the layer is not plain, ``(groups * O, group_size, 1, 1)`` (:func:`by_group`).
    """

    def __init__(
        self, weight: PackedWeight, tensors: dict[str, torch.Tensor | None], inputs: Codes, weights: Codes,
        group_size: int | None = None, magnitude: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(weight, tensors, inputs, weights, group_size or weight.k, magnitude)
        self.group_size = group_size
        if weight.group_size != (group_size if self.plain else None):
            raise ValueError(f"groups of {group_size} for a weight of {weight!r}")

    def products(self, codes: torch.Tensor, zero_point: int = 0) -> torch.Tensor:
        lead, rows = codes.shape[:-1], codes.reshape(-1, codes.shape[-1])
        if not self.group_size:
            return int_linear(codes, self.weight, x_zero_point=zero_point, out_dtype=torch.int32)
        groups, weight = rows.shape[1] // self.group_size, self.weight
        if weight.group_size:  # whose kernels have no accumulators to give
            codes_of_groups = by_group(weight.unpack(), self.group_size)
            zero = None if weight.zero_point is None else weight.zero_point.t().reshape(-1)
            weight = pack(codes_of_groups, weight.bits, scale=1.0, zero_point=zero)
        acc = int_conv2d(rows[..., None, None], weight, groups=groups, x_zero_point=zero_point, out_dtype=torch.int32)
        return acc.reshape(*lead, groups, weight.n // groups)

    def windows(self, codes: torch.Tensor) -> torch.Tensor:
        groups = codes.shape[-1] // self.group_size if self.group_size else 1
        sums = codes.unflatten(-1, (groups, -1)).sum(-1, dtype=torch.int32)
        return sums.unsqueeze(-1) if self.group_size else sums

    def inside(self, codes: torch.Tensor) -> tuple[torch.Tensor, int]:
        k = self.group_size or codes.shape[-1]
        return self.weight.sums.view(codes.shape[-1] // k, -1) if self.group_size else self.weight.sums, k

    def dequantize(self, acc: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        y = super().dequantize(acc, codes)
        return y.sum(-2) if self.group_size else y

    def call(self, codes: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return int_linear(codes, self.weight, x_scale=self.input_step, x_zero_point=-self.zero, bias=self.bias, **keywords)

    def fits(self, codes: torch.Tensor, multiplier: torch.Tensor | None, residual: Any) -> bool:
        if multiplier is not None and codes.dim() != 2:  # a batch norm's channels are axis 1
            return False
        return residual is None or fits_as_residual(residual, (*codes.shape[:-1], self.weight.n))

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        return x.isnan().any(-1, keepdim=True)


def fits_as_residual(residual: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(residual, torch.Tensor) and residual.dtype in FLOATS and tuple(residual.shape) == tuple(shape)


class IntegerConv(Windows, IntegerLayer):
    """``torch.nn.Conv1d`` or ``Conv2d`` on integers (``dims`` 1 or 2); ``weight`` is ``(O, C/groups, kh, kw)``, kh 1 for Conv1d.

    The other arguments: :class:`Windows`.
    """

    def __init__(
        self, weight: PackedWeight, tensors: dict[str, torch.Tensor | None], inputs: Codes, weights: Codes,
        dims: int, stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str = "zeros", magnitude: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(weight, tensors, inputs, weights, weight.k, magnitude)
        self._set_windows(dims, stride, padding, dilation, groups, padding_mode)
        self._ones: PackedWeight | None = None
        if not self.plain:
            ones = torch.ones(groups, *weight.shape[1:], dtype=torch.int8, device=weight.device)
            self._ones = pack(ones, 2, scale=1.0)

    def _move(self, device: torch.device) -> None:
        super()._move(device)
        self._ones = None if self._ones is None else self._ones.to(device)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        # these copy elements, and a copy has the code of its original
        return super().quantize(x if x.dtype == torch.int8 else self.copied(x))

    def products(self, codes: torch.Tensor, zero_point: int = 0) -> torch.Tensor:
        return self.convolve(codes, self.weight, x_zero_point=zero_point, out_dtype=torch.int32)

    def windows(self, codes: torch.Tensor) -> torch.Tensor:
        if self._ones is None:
            raise TypeError("IntegerConv: a plain layer has no sums of windows")
        sums = self.convolve(codes, self._ones, out_dtype=torch.int32)
        return sums.repeat_interleave(self.weight.n // self.groups, -1 - self.dims)

    def inside(self, codes: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if self.padding_mode != "zeros" or not any(self.padding):  # every window is whole
            return self.along(self.weight.sums), self.weight.k
        ones = codes.new_ones(codes.shape[-1 - self.dims :])
        return self.products(ones), self.windows(ones)

    def call(self, codes: torch.Tensor, **keywords: Any) -> torch.Tensor:
        return self.convolve(codes, self.weight, x_scale=self.input_step, x_zero_point=-self.zero, bias=self.bias, **keywords)

    def fits(self, codes: torch.Tensor, multiplier: torch.Tensor | None, residual: Any) -> bool:
        batch = codes.shape[: -1 - self.dims]
        if multiplier is not None and not batch:  # axis 1 of a single sample is not that of its channels
            return False
        return residual is None or fits_as_residual(residual, (*batch, self.weight.n, *self.output_shape(codes)))

    def rows_with_nan(self, x: torch.Tensor) -> torch.Tensor:
        first = x.dim() - self.dims - 1
        return x.isnan().flatten(first).any(-1).view(*x.shape[:first], *(1,) * (self.dims + 1))


class Affine(nn.Module):
    """A batch norm in evaluation as ``x * multiplier + addend`` along axis 1, which a fused network has in the epilogue of the
    layer before it. Its state is the batch norm's, and stays float32 where the model becomes less.

    multiplier, addend: float32 ``(C,)``, those of :func:`fastq.nn.batch_norm.affine_of`; buffers that a ``state_dict`` leaves out.
    """

    multiplier: torch.Tensor
    addend: torch.Tensor

    @classmethod
    def of(cls, norm: Any) -> None:
        """Make ``norm``, a batch norm with running statistics, one of these; ``TypeError`` or ``ValueError`` if it is none."""
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            raise TypeError(f"a {type(norm).__name__} is no batch norm of one or two dimensions")
        made: Any = norm
        made.__class__ = AffineNorm1d if isinstance(norm, nn.BatchNorm1d) else AffineNorm2d
        made._refresh()

    def _refresh(self) -> None:
        for name, t in zip(("multiplier", "addend"), affine_of(self), strict=True):
            self.register_buffer(name, t, persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(keeping_precision(fn), recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._refresh()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        shape = (-1, *(1,) * (input.dim() - 2))
        y = input.to(compute_dtype(input)) * self.multiplier.view(shape) + self.addend.view(shape)
        return y.to(input.dtype)


class AffineNorm1d(Affine, nn.BatchNorm1d):
    """:class:`Affine` of a ``torch.nn.BatchNorm1d``."""


class AffineNorm2d(Affine, nn.BatchNorm2d):
    """:class:`Affine` of a ``torch.nn.BatchNorm2d``."""


class WeightOnlyLayer(PackedLayer):
    """A layer whose weight alone is quantized, on a grid without an offset and with a zero: the engine unpacks it as it multiplies.

    The input is float32, bfloat16 or float16 and so is the output; products are summed in float32. Buffers: ``bias`` or None.
    """

    bias: torch.Tensor | None
    buffer_names = ("bias", *CodedLayer.buffer_names)


class WeightOnlyLinear(WeightOnlyLayer):
    """``torch.nn.Linear`` with a packed weight ``(O, K)``, per tensor, output channel or group."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return int_linear(input.detach(), self.weight, bias=self.bias)


class WeightOnlyConv(Windows, WeightOnlyLayer):
    """``torch.nn.Conv1d`` or ``Conv2d`` (``dims`` 1 or 2) with a packed weight ``(O, C/groups, kh, kw)``, kh 1 for Conv1d.

    The other arguments: :class:`Windows`.
    """

    def __init__(
        self, weight: PackedWeight, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, dims: int, stride: Any,
        padding: Any, dilation: Any, groups: int, padding_mode: str = "zeros", magnitude: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(weight, tensors, inputs, magnitude)
        self._set_windows(dims, stride, padding, dilation, groups, padding_mode)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input.detach()
        return self.shaped(self.convolve(self.copied(x), self.weight, bias=self.bias), form_of(x))


class LookupLayer(CodedLayer):
    """A layer whose weights are codes of levels that may lie anywhere: ``levels[codes]``.

    It is for layers that have no integer product: learned levels (:class:`fastq.nn.DirectWeight`) are not evenly spaced, so that
    ``sum x*w`` is no multiple of ``sum p*k``; and an input that is not quantized has no integers. What is saved is the memory of
    the weights. The layer computes in floating point with the very numbers of the fake-quantized one, so that its output has the
    same bits: ``input_levels`` are what the input's quantizer gives for each of its codes.

    Buffers: ``codes`` uint8, in a file packed to their bits; ``levels`` float32, ``2**bits`` of them, or as many per output
    channel, ``(O, 2**bits)``, or float64 ``(1, 2**bits)``; ``bias`` or None; ``input_levels`` float32, one for each code of the
    input, or None where it is not quantized; and those of the input. Raises ``ValueError`` where their sizes do not fit.
    """

    codes: torch.Tensor
    levels: torch.Tensor
    bias: torch.Tensor | None
    input_levels: torch.Tensor | None
    buffer_names = ("codes", "levels", "bias", "input_levels", *CodedLayer.buffer_names)

    def __init__(self, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, magnitude: bool = False) -> None:
        super().__init__(tensors, inputs, magnitude)
        count = self.levels.shape[-1]
        rows = len(self.levels) if self.levels.dim() == 2 else 1
        if count not in (2**bits for bits in range(1, 9)) or rows not in (1, len(self.codes)):
            raise ValueError(f"levels of shape {tuple(self.levels.shape)} for codes of shape {tuple(self.codes.shape)}")
        have, needed = (0 if t is None else t.numel() for t in (self.input_levels, self.inputs))
        if have != needed:
            raise ValueError(f"{have} input levels for {needed} codes of the input")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        bias = self.bias
        super()._apply(fn, recurse)
        if bias is not None:
            self.bias = fn(bias)  # of the layer in floating point, whose dtype it follows
        return self

    def operands(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The quantized input, NaN where ``x`` is, and the weight, of the dtype of ``x``."""
        half = x.dtype in (torch.bfloat16, torch.float16)
        if self.levels.dim() == 1:
            weight = direct_weight(self.codes, self.levels, dtype=x.dtype if half else torch.float32).to(x.dtype)
        else:
            places = self.codes.reshape(len(self.levels), -1).long()
            weight = self.levels.gather(1, places).view(self.codes.shape).to(x.dtype)
        if self.inputs is None or self.input_levels is None:
            return x, weight
        codes = self.quantize(x).to(torch.int32) - self.inputs.stored[0]
        return torch.where(x.isnan(), x, self.input_levels.to(x.dtype)[codes]), weight


class LookupLinear(LookupLayer):
    """``torch.nn.Linear`` with weights by look-up; ``codes`` ``(O, K)``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(*self.operands(input), self.bias)


class LookupConv(LookupLayer):
    """``torch.nn.Conv1d`` or ``Conv2d`` (``dims`` 1 or 2) with weights by look-up; ``codes`` ``(O, C/groups, [kh,] kw)``.

    stride, padding, dilation, groups, padding_mode: as torch takes them; ``copied``: (left, right[, top, bottom]) for a
    ``padding_mode`` that copies elements.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor | None], inputs: Codes | None, dims: int, stride: Any, padding: Any, copied: Any,
        dilation: Any, groups: int, padding_mode: str = "zeros", magnitude: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(tensors, inputs, magnitude)
        self.dims, self.stride, self.dilation, self.copied = dims, tuple(stride), tuple(dilation), tuple(copied)
        self.padding: Any = padding if isinstance(padding, str) else tuple(padding)
        self.groups, self.padding_mode = groups, padding_mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, weight = self.operands(input)
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.copied, mode=self.padding_mode), 0
        convolve: Any = F.conv1d if self.dims == 1 else F.conv2d
        return convolve(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
