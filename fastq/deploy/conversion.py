"""``fastq.convert``: from the network that was trained with fake quantizers to one that computes in integers."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from ..nn import DirectWeight, Grid, Quantizer
from ..packing import PackedWeight
from . import fusion
from .layers import (
    CodedLayer,
    Codes,
    IntegerConv,
    IntegerLayer,
    IntegerLinear,
    LookupConv,
    LookupLayer,
    LookupLinear,
    WeightOnlyConv,
    WeightOnlyLayer,
    WeightOnlyLinear,
    by_group,
    packed,
    take_hooks,
)

__all__ = ["convert"]


def quantizer_of(which: str, module: nn.Module) -> Any:
    """The quantizer that a layer of ``fastq.nn`` has for its ``which``, "weight" or "input", and uses; or None."""
    quantizer: Any = getattr(module, f"{which}_quantizer", None)
    return quantizer if isinstance(quantizer, Quantizer) and quantizer.enabled else None


def deployed_form(layer: nn.Module) -> CodedLayer | None:
    """What takes the place of ``layer``; None where it stays. ``TypeError`` or ``ValueError`` says why it has no such form."""
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        return None
    if isinstance(getattr(layer, "direct", None), DirectWeight):
        return lookup_layer(layer, *learned_levels(layer))
    if quantizer_of("weight", layer) is None:
        return None
    if quantizer_of("input", layer) is not None:
        return integer_layer(layer)
    only = weight_only_layer(layer)
    if only is not None:
        return only
    found = levels_of_grid(layer)
    return None if found is None else lookup_layer(layer, *found)


def convert(model: nn.Module, *, fuse: bool = True) -> nn.Module:
    """A copy of ``model`` whose quantized linear and convolution layers compute in integers; ``model`` stays as it is.

    Each layer of ``fastq.nn`` that has a quantizer for its weight and one for its input becomes an
    :class:`~fastq.deploy.IntegerLinear` or :class:`~fastq.deploy.IntegerConv`: a :class:`fastq.PackedWeight` in as many bits as the
    weight has (5 to 7 in 8, 1 in 2), int8 codes of the input, exact int32 accumulation by the integer engine
    (:func:`fastq.int_linear`), scale and bias after. Its accumulators equal those of the fake-quantized layer's codes exactly. Its
    output agrees with that layer's to the rounding of that layer's product: fp32; bf16 or fp16 in such a model; TF32 where a GPU's
    convolutions are allowed it (``torch.backends.cudnn.allow_tf32``, which is on by default: turn it off to compare).

    A layer whose weight alone is quantized, on a grid without an offset and with a zero, becomes a
    :class:`~fastq.deploy.WeightOnlyLinear` or :class:`~fastq.deploy.WeightOnlyConv`: packed as well, multiplied with the input in
    floating point and summed in float32 (a GPU's convolutions: :func:`fastq.int_conv2d`), so that it agrees to the rounding of that
    sum. Groups are of multiples of 16. Two kinds have neither form and become a :class:`~fastq.deploy.LookupLinear` or
    :class:`~fastq.deploy.LookupConv`, whose output has the same bits as the fake-quantized layer's: those whose weight is a
    :class:`fastq.nn.DirectWeight`, for its levels are not evenly spaced, and those whose weight alone is quantized on another grid
    or in float64. One has none at all and stays fake-quantized: a weight alone, per group of another size or along an axis that is
    not that of the outputs.

    With ``fuse`` the batch norm, residual addition and ReLU that follow an integer layer are computed in its epilogue, and where
    only integer layers with one and the same input grid come after that, it gives them int8 codes. For that ``torch.fx`` traces
    the network; one that it cannot trace keeps its layers apart, and the attribute ``fusion`` of what is returned says why, or
    else what was fused (:class:`~fastq.deploy.Fusion`). Modules and ``state_dict`` keep their names, the class becomes a subclass
    of itself with another forward method. That is run where its trace holds: arguments with a default have it, the others are
    tensors (or a dict, list or tuple of tensors), the modules are those that there were, in eval mode. Else the network's own
    forward method runs, on the same layers: with an optional argument, after a module was replaced, in a slice of a
    ``torch.nn.Sequential``. A network that stores something as it runs keeps its layers apart. As with every traced program, what
    ``forward`` prints is lost, numbers and flags that it reads are those of the conversion, and hooks that are attached later see
    what flows there: codes, and nothing in a module that a layer computes. In float32 the numbers are those of the network that is
    not fused, but that a batch norm is ``x * multiplier + addend`` (:func:`fastq.nn.batch_norm.affine_of`), an ulp or two from
    torch's. In bfloat16 and float16 a layer that is not fused rounds what it gives, and one that is fused makes its codes of the
    float32 number. Autocast, which changes the dtype that a layer gives while it trains, changes nothing in integer layers: call
    the network outside of it.

    A sample that holds NaN becomes NaN whole in a layer that takes and gives floating point. Codes cannot tell of NaN: between
    layers that are fused it is an arbitrary number. ``fastq.set_checks(True)`` raises instead.

    Everything else is kept: layers without a quantizer for their weight, or with one that is not enabled, compute as before,
    forward hooks stay on their layers, which then are not fused. The copy is in eval mode, whatever mode ``model`` is in, and
    gives no gradients through integer layers.

    Supported: every quantizer of ``fastq.nn``, by its :class:`~fastq.nn.Grid`. Weights quantized per tensor, per channel (axis 0)
    and, for linear layers, per group; inputs per tensor; either with an offset; any stride, padding, dilation and groups. Inputs
    need a grid with a formula, so that a power (QIL's weights) or frozen codes serve weights alone.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``, ``fuse`` no bool.
        ValueError: nothing is quantized, no quantizer is enabled, or ``model`` is converted already; a quantizer is not
            initialised; a weight holds NaN; a granularity, range or size has no integer form. The message names the layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(fuse, bool):
        raise TypeError(f"convert: fuse must be a bool, got {fuse!r:.60}")
    made: dict[nn.Module, CodedLayer] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            try:
                if (layer := deployed_form(module)) is not None:
                    made[module] = layer
                    take_hooks(layer, module)
            except (TypeError, ValueError) as error:
                raise ValueError(f"convert: layer {name or '(the model itself)'}: {error}") from None
    if not made:
        if any(isinstance(module, CodedLayer) for module in model.modules()):
            raise ValueError("convert: model is a converted network already; give the one that was trained")
        for name, module in model.named_modules():
            if isinstance(getattr(module, "weight_quantizer", None), Quantizer):
                why = "its weight quantizer is not enabled, as in a phase of full precision; convert later"
                if quantizer_of("weight", module) is not None:
                    why = "its weight alone is quantized, per group of no multiple of 16 or along an axis that is not 0"
                raise ValueError(f"convert: layer {name or '(the model itself)'}: {why}")
        raise ValueError("convert: model has no layer with a weight and an input quantizer; call fastq.prepare first")
    # deepcopy looks its memo up before it copies: a layer met under two names becomes one integer layer, as it was one
    memo: dict[int, Any] = {id(module): layer for module, layer in made.items()}
    network: nn.Module = copy.deepcopy(model, memo).eval()
    return fusion.fuse(network) if fuse else fusion.report(network, fusion.Fusion(reason="fuse=False"))


def grid_of(which: str, quantizer: Any, x: torch.Tensor | None = None) -> Grid:
    """Of a quantizer that has seen its first batch; finite."""
    state = getattr(quantizer, "initialized", None)
    if state is not None and not bool(state):
        raise ValueError(f"its {which} quantizer is not initialised; run a batch through the model in training mode first")
    grid: Grid = quantizer.grid(x)
    for name, t in {"a step": grid.step, "an offset": grid.offset}.items():
        if t is not None and not bool(t.isfinite().all()):
            raise ValueError(f"its {which} quantizer has {name} of inf or NaN")
    if grid.interval is not None and not all(bool(t.isfinite().all()) for t in grid.interval):
        raise ValueError(f"its {which} quantizer has an interval of inf or NaN")
    return grid


def input_coding(quantizer: Any) -> tuple[Grid, Codes, dict[str, torch.Tensor | None]]:
    """The grid of an input quantizer, its codes, and what :class:`CodedLayer` finds them by."""
    grid = grid_of("input", quantizer)
    interval = (None, None) if grid.interval is None else grid.interval
    if any(t is not None and t.numel() != 1 for t in (grid.step, *interval)):
        raise ValueError("its input quantizer has more than one step; a sum of integers needs one step per tensor")
    if not grid.formula:
        kind = type(quantizer).__name__
        raise ValueError(
            f"its input quantizer, {kind}, is one of weights: its codes follow from no formula that an integer layer has"
        )
    parts = {"input_step": grid.step, "input_offset": grid.offset, "input_lower": interval[0], "input_width": interval[1]}
    tensors = {name: None if t is None else t.reshape(1).clone() for name, t in parts.items()}
    return grid, codes_of("input", grid), tensors


def codes_of(which: str, grid: Grid) -> Codes:
    try:
        return Codes(grid.qmin, grid.qmax, grid.odd)
    except ValueError:
        raise ValueError(f"its {which} codes, {grid.qmin} to {grid.qmax}, do not fit 8 bits") from None


def weight_grid(layer: Any) -> Grid:
    if bool(layer.weight.isnan().any()):
        raise ValueError("its weight holds NaN, which no integer stands for")
    return grid_of("weight", layer.weight_quantizer, layer.weight.detach())


class WeightCoding(NamedTuple):
    """Integers ``values``, int32, of a weight and what they stand for: ``codes`` their range, ``step`` and ``offset`` per output
    channel, per group ``(O, groups)``, or of one element; ``group`` the size of one, or None."""

    values: torch.Tensor
    codes: Codes
    step: torch.Tensor
    offset: torch.Tensor | None
    group: int | None

    @property
    def plain(self) -> bool:
        """Whether the engine's scale is all that makes numbers of the integers."""
        if self.offset is not None or self.codes.odd or self.step.dtype != torch.float32:
            return False
        return self.group is None or (self.group % 16 == 0 and self.values.shape[1] % self.group == 0)

    def packed(self, plain: bool) -> PackedWeight:
        """As the engine takes it: of a plain layer, with its scales; else the integers that are stored, ``value - zero``."""
        values = self.values.unsqueeze(2) if self.values.dim() == 3 else self.values
        if plain:
            return packed(values, self.codes.qmin, self.codes.qmax, self.step, self.group)
        values = values if self.group is None else by_group(values, self.group)
        return packed(values - self.codes.zero, *self.codes.stored, 1.0)


def weight_coding(layer: Any) -> WeightCoding:
    """That of a layer's weight; ``ValueError`` where it is quantized along an axis that integers do not have, per group in what is
    no linear layer, or with codes that do not fit 8 bits."""
    quantizer, weight = layer.weight_quantizer, layer.weight.detach()
    grid = weight_grid(layer)
    axis, group = getattr(quantizer, "axis", None), None
    if grid.step.numel() != 1:  # one step serves all, however the codes were found
        group = getattr(quantizer, "group_size", None) or None
        if group is not None and not isinstance(layer, nn.Linear):
            raise ValueError("its weights are quantized per group, which only linear layers have in integers")
        if group is None and (axis is None or axis % weight.dim() != 0):
            raise ValueError(f"its weights are quantized along axis {axis}; integers need axis 0, the output channels")

    def shaped(t: torch.Tensor) -> torch.Tensor:
        return t if group is not None else t.reshape(-1)

    values, codes = codes_of("weight", grid), quantizer.codes(weight)
    step, offset = shaped(grid.step), None if grid.offset is None else shaped(grid.offset)
    if offset is not None:  # integers around 0: the offset times a sum of inputs would cancel most of the accumulator
        middle = (grid.qmin + grid.qmax + 1) // 2
        offset = (offset.double() + step.double() * middle).to(step.dtype)
        values, codes = Codes(grid.qmin - middle, grid.qmax - middle, grid.odd), codes - middle
    return WeightCoding(codes, values, step, offset, group)


def integer_layer(layer: Any) -> IntegerLayer:
    """The integer form of one quantized layer; ``ValueError`` says why there is none."""
    coding = weight_coding(layer)
    grid, inputs, tensors = input_coding(layer.input_quantizer)
    s_x, b_x = grid.step.reshape(()), None if grid.offset is None else grid.offset.reshape(())
    # the engine takes a zero-point of the input that is one of its codes, and steps in float32
    plain = coding.plain and b_x is None and not grid.odd and -128 <= -inputs.zero <= 127 and s_x.dtype == torch.float32
    bias = None if layer.bias is None else layer.bias.detach().to(coding.step.dtype).clone()
    tensors |= {"bias": bias}
    if not plain:
        s_w, b_w = coding.step, coding.offset
        if coding.group:
            s_w, b_w = s_w.t(), None if b_w is None else b_w.t()
        tensors |= {
            "scale": (s_x * s_w).contiguous(),
            "shift": None if b_x is None else (b_x * s_w).contiguous(),
            "weight_shift": None if b_w is None else (s_x * b_w).contiguous(),
            "cross": None if b_x is None or b_w is None else (b_x * b_w).contiguous(),
        }
    weight = coding.packed(plain)
    if isinstance(layer, nn.Linear):
        return IntegerLinear(weight, tensors, inputs, coding.codes, coding.group, grid.magnitude)
    where = convolution(layer) | {"padding": padding_of(layer), "magnitude": grid.magnitude}
    return IntegerConv(weight, tensors, inputs, coding.codes, **where)


def weight_only_layer(layer: Any) -> WeightOnlyLayer | None:
    """The form of a layer whose weight alone is quantized, where the engine has its grid; else None."""
    quantizer, grid = layer.weight_quantizer, weight_grid(layer)
    group = getattr(quantizer, "group_size", None) or None
    axis = getattr(quantizer, "axis", None)
    if grid.step.numel() != 1 and (not isinstance(layer, nn.Linear) if group else axis is None or axis % layer.weight.dim() != 0):
        return None
    if layer.weight.dtype == torch.float64 or not (coding := weight_coding(layer)).plain:
        return None
    bias = None if layer.bias is None else layer.bias.detach().float().clone()
    weight = coding.packed(True)
    if isinstance(layer, nn.Linear):
        return WeightOnlyLinear(weight, {"bias": bias}, None)
    return WeightOnlyConv(weight, {"bias": bias}, None, **convolution(layer), padding=padding_of(layer))


def convolution(layer: Any) -> dict[str, Any]:
    names = ("stride", "dilation", "groups", "padding_mode")
    return {"dims": 1 if isinstance(layer, nn.Conv1d) else 2} | {name: getattr(layer, name) for name in names}


def padding_of(layer: Any) -> list[int]:
    """(left, right[, top, bottom])."""
    padding = [0] * (2 * len(layer.kernel_size))
    if layer.padding == "same":  # as torch: the odd element goes to the right
        for d, (k, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
            total, first = dilation * (k - 1), 2 * (len(layer.kernel_size) - 1 - d)
            padding[first : first + 2] = [total // 2, total - total // 2]
    elif layer.padding != "valid":
        padding = [p for p in reversed(layer.padding) for _ in range(2)]
    return padding


def learned_levels(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and levels of a weight that is stored as them."""
    direct = layer.direct
    if direct.codes.numel() == 0:
        raise ValueError("its weight has no codes yet; call initialize(weight) or load a state dict")
    levels = direct.levels().detach()
    if not bool(levels.isfinite().all()):
        raise ValueError("its weight has a level of inf or NaN")
    return direct.codes.clone(), levels.clone()


def levels_of_grid(layer: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Codes from 0 and levels of a quantized weight, per tensor or per output channel; None for another granularity."""
    quantizer, weight, grid = layer.weight_quantizer, layer.weight.detach(), weight_grid(layer)
    rows = 1 if grid.step.numel() == 1 else len(weight)
    axis = getattr(quantizer, "axis", None)
    if rows > 1 and (axis is None or axis % weight.dim() != 0):
        return None
    count = 2 ** (codes_of("weight", grid).numel() - 1).bit_length()
    every = torch.arange(grid.qmin, grid.qmin + count, dtype=torch.int32, device=weight.device).clamp(max=grid.qmax)
    levels = grid.decode(every.expand(rows, -1).contiguous(), 0)
    levels = levels.to(weight.dtype).to(levels.dtype)  # rounded as those of the weights below, so that they ascend
    codes, evaluated = quantizer.codes(weight) - grid.qmin, copy.deepcopy(quantizer).eval()
    # the weights themselves, which QIL and EWGS round otherwise than the grid does
    levels.scatter_(1, codes.view(rows, -1).long(), evaluated.forward(weight).to(levels.dtype).view(rows, -1))
    levels = levels.cummax(1).values  # the codes that fill up to a power of two repeat the last
    return codes.to(torch.uint8), levels[0] if rows == 1 and levels.dtype == torch.float32 else levels


def lookup_layer(layer: Any, codes: torch.Tensor, levels: torch.Tensor) -> LookupLayer:
    """The look-up form of one layer; ``ValueError`` says why there is none."""
    source = quantizer_of("input", layer)
    tensors: dict[str, torch.Tensor | None] = {}
    inputs, magnitude = None, False
    if source is not None:
        grid, inputs, tensors = input_coding(source)
        tensors["input_levels"], magnitude = input_levels(source, grid), grid.magnitude
    tensors |= {"codes": codes, "levels": levels, "bias": None if layer.bias is None else layer.bias.detach().clone()}
    if isinstance(layer, nn.Linear):
        return LookupLinear(tensors, inputs, magnitude)
    return LookupConv(tensors, inputs, **convolution(layer), padding=layer.padding, copied=padding_of(layer), magnitude=magnitude)


def input_levels(quantizer: Any, grid: Grid) -> torch.Tensor:
    """What an input quantizer gives for each code, to the last bit: its own forward pass on a value of each."""
    codes = torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32, device=grid.step.device)
    values = grid.decode(codes)
    x = values
    if grid.interval is not None:
        lower, width = (t.double().reshape(()) for t in grid.interval)
        if grid.magnitude:
            x = (lower + width * codes.abs() / grid.qmax) * codes.sign()
        else:
            x = lower + width * (codes - grid.qmin) / (grid.qmax - grid.qmin)
    x = x.to(values.dtype)
    evaluated = copy.deepcopy(quantizer).eval()
    # a code that no number of this precision leads to keeps the grid's value
    return values.index_copy(0, (evaluated.codes(x) - grid.qmin).long(), evaluated.forward(x))
