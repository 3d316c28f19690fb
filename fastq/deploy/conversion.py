"""``fastq.convert``: from the network that was trained with fake quantizers to one that computes in integers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .layers import IntegerConv, IntegerLayer, IntegerLinear, take_hooks

__all__ = ["convert"]


def is_quantized(module: nn.Module) -> bool:
    """A linear or convolution layer of ``fastq.nn`` with quantizers for both its weight and its input."""
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        return False
    return getattr(module, "weight_quantizer", None) is not None and getattr(module, "input_quantizer", None) is not None


def convert(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose quantized linear and convolution layers compute in integers; ``model`` stays as it is.

    Each layer of ``fastq.nn`` that has a quantizer for its weight and one for its input becomes an
    :class:`~fastq.deploy.IntegerLinear` or :class:`~fastq.deploy.IntegerConv`: int8 codes, exact int32 accumulation, scale and
    bias after. Its accumulators equal those of the fake-quantized layer's codes exactly. Its output agrees with that layer's to
    the rounding of that layer's product: fp32; bf16 or fp16 in such a model; TF32 where a GPU's convolutions are allowed it
    (``torch.backends.cudnn.allow_tf32``, which is on by default: turn it off to compare).

    Everything else is kept: batch norm stays an affine after the integer product, layers with a missing quantizer compute as
    before, forward hooks stay on their layers. The copy is in eval mode, whatever mode ``model`` is in, and gives no gradients
    through integer layers.

    Supported: weights quantized per tensor, per channel (axis 0) and, for linear layers, per group; inputs per tensor, with or
    without a learned offset; any stride, padding, dilation and groups.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``.
        ValueError: nothing is quantized; a quantizer is not initialised; a weight holds NaN; a granularity, range or size has
            no integer form. The message names the layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    made: dict[nn.Module, IntegerLayer] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if is_quantized(module):
                try:
                    made[module] = integer_layer(module)
                    take_hooks(made[module], module)
                except ValueError as error:
                    raise ValueError(f"convert: layer {name or '(the model itself)'}: {error}") from None
    if not made:
        raise ValueError("convert: model has no layer with a weight and an input quantizer; call fastq.prepare first")
    # deepcopy looks its memo up before it copies: a layer met under two names becomes one integer layer, as it was one
    memo: dict[int, Any] = {id(module): layer for module, layer in made.items()}
    return copy.deepcopy(model, memo).eval()


def check_quantizer(which: str, quantizer: Any) -> None:
    """Both kinds of quantizer: initialised, finite."""
    state = getattr(quantizer, "initialized", None)
    if state is not None and not bool(state):
        raise ValueError(f"its {which} quantizer is not initialised; run a batch through the model in training mode first")
    if not bool(quantizer.step.isfinite().all()):
        raise ValueError(f"its {which} quantizer has a step of inf or NaN")


def integer_layer(layer: Any) -> IntegerLayer:
    """The integer form of one quantized layer; ``ValueError`` says why there is none."""
    weight, source = layer.weight_quantizer, layer.input_quantizer
    check_quantizer("weight", weight)
    check_quantizer("input", source)
    linear = isinstance(layer, nn.Linear)
    if bool(layer.weight.isnan().any()):
        raise ValueError("its weight holds NaN, which no integer stands for")
    if weight.offset is not None:
        raise ValueError("its weight quantizer has a learned offset, which has no integer form here; use offset=False for weights")
    if source.step.numel() != 1:
        raise ValueError("its input quantizer has more than one step; a sum of integers needs one step per tensor")
    if weight.qmin < -128 or weight.qmax > 127:
        raise ValueError(f"its weight codes, {weight.qmin} to {weight.qmax}, do not fit int8")
    group = weight.group_size or None
    if group is not None and not linear:
        raise ValueError("its weights are quantized per group, which only linear layers have in integers")
    axis = getattr(weight, "axis", None)
    if weight.step.numel() != 1 and group is None and (axis is None or axis % layer.weight.dim() != 0):
        raise ValueError(f"its weights are quantized along axis {axis}; integers need axis 0, the output channels")

    s_w, s_x = weight.effective_step().detach(), source.effective_step().detach().reshape(())
    s_w = s_w.t().contiguous() if group is not None else s_w.reshape(-1)
    tensors: dict[str, torch.Tensor | None] = {
        "codes": weight.codes(layer.weight.detach()).to(torch.int8).contiguous(),
        "scale": s_x * s_w,
        "bias": None if layer.bias is None else layer.bias.detach().to(s_w.dtype).clone(),
        "input_step": s_x.reshape(1).clone(),
    }
    if source.offset is not None:
        b = source.offset.detach().reshape(())
        tensors |= {"shift": b * s_w, "input_offset": b.reshape(1).clone()}
    ranges = (source.qmin, source.qmax, (weight.qmin, weight.qmax))
    if linear:
        return IntegerLinear(tensors, *ranges, group_size=group)
    dims = 1 if isinstance(layer, nn.Conv1d) else 2
    padding = [0] * (2 * dims)
    if layer.padding == "same":  # as torch: the odd element goes to the right
        for d, (k, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
            total, first = dilation * (k - 1), 2 * (dims - 1 - d)
            padding[first : first + 2] = [total // 2, total - total // 2]
    elif layer.padding != "valid":
        padding = [p for p in reversed(layer.padding) for _ in range(2)]
    return IntegerConv(
        tensors, *ranges, dims=dims, stride=layer.stride, padding=padding, dilation=layer.dilation, groups=layer.groups,
        padding_mode=layer.padding_mode,
    )  # fmt: skip
