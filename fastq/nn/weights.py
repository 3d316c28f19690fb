"""All weights of a prepared model in one call: :func:`fastq.foreach_lsq` when the first layer asks, and the result for the others.

:func:`fastq.prepare` puts two hooks on the model. They mark the beginning and the end of its forward pass; in between, the first
quantized layer that needs its weight has those of all layers quantized together, and the others find theirs ready. What was made
serves this one forward pass, and within it a layer whose weight or step was written to since (an optimizer's step, any in-place
operation) is quantized anew. Nothing is kept from one forward pass to the next.

A layer quantizes its weight itself where nothing may be shared or skipped: outside such a forward pass, under ``torch.compile``
(which sees all calls anyway), where saved tensors go through hooks (checkpointing), with hooks on its quantizer, on another device
than the first, or where its weight has another shape than the layer's (sharding).

One backward call makes the gradients of all weights when the last of their quantized forms has its own, so these are held until
then: once the weights' size. ``fastq.prepare(..., group_weights=False)`` leaves every layer to itself.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from ..granularity import compute_dtype
from ..ops.foreach import foreach_lsq
from .quantizer import LSQ

__all__ = ["group_weights", "quantized_together"]


class _Pass:
    """One forward pass of a model: its layers, and by grad mode what was made of their weights."""

    def __init__(self, layers: list[weakref.ref[Any]], outer: _Pass | None) -> None:
        self.layers, self.outer = layers, outer
        self.made: dict[bool, dict[Any, tuple[torch.Tensor, tuple[Any, ...]]]] = {}


class _Current(threading.local):
    running: _Pass | None = None


_current = _Current()
#: The layers of a model, looked up once.
_layers: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[Any]]] = weakref.WeakKeyDictionary()


def _begin(model: nn.Module, args: Any) -> None:
    if torch.compiler.is_compiling():
        return
    layers = _layers.get(model)
    if layers is None:
        layers = _layers[model] = [weakref.ref(m) for m in model.modules() if isinstance(getattr(m, "weight_quantizer", None), LSQ)]
    _current.running = _Pass(layers, _current.running)


def _end(model: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling() and _current.running is not None:
        _current.running = _current.running.outer


def group_weights(model: nn.Module) -> None:
    """Have the layers of ``model`` share a call for their weights in each of its forward passes."""
    if _begin not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_begin)
        model.register_forward_hook(_end, always_call=True)


def _state(layer: Any) -> tuple[int, ...]:
    """What changes when the weight or the step is replaced or written to."""
    weight, step = layer.weight, layer.weight_quantizer.step
    return id(weight), weight._version, weight.data_ptr(), id(step), step._version


def _shape(layer: Any) -> tuple[int, ...]:
    """Of the weight, by the layer's own account: a sharded one has another between its uses."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size


def _joins(layer: Any, device: torch.device) -> bool:
    """Whether the weight of ``layer`` may be quantized with the others', its quantizer unasked."""
    weight, quantizer = layer.weight, layer.weight_quantizer
    return (
        type(quantizer) is LSQ
        and quantizer.enabled
        and quantizer._initialized
        and quantizer.offset is None
        and type(weight) is nn.Parameter
        and weight.device == device
        and weight.shape == _shape(layer)
        and quantizer.step.dtype == compute_dtype(weight)
        and not (quantizer._forward_hooks or quantizer._forward_pre_hooks)
        and not (quantizer._backward_hooks or quantizer._backward_pre_hooks)
        and "forward" not in vars(quantizer)
    )


def _make(layers: list[Any]) -> dict[Any, tuple[torch.Tensor, tuple[int, ...]]]:
    """The quantized weights of ``layers``, and what they were made of: one call for those whose gradients follow one convention."""
    kinds: dict[Any, list[Any]] = {}
    for layer in layers:
        q = layer.weight_quantizer
        kinds.setdefault((q.boundary, q.grad_scale, q.eps), []).append(layer)
    made = {}
    for (boundary, grad_scale, eps), members in kinds.items():
        quantizers = [layer.weight_quantizer for layer in members]
        results = foreach_lsq(
            [layer.weight for layer in members], [q.step for q in quantizers], bits=[q._range() for q in quantizers],
            axis=[q.axis for q in quantizers], group_size=[q.group_size for q in quantizers],
            boundary=boundary, grad_scale=grad_scale, eps=eps,
        )  # fmt: skip
        made.update({layer: (result, _state(layer)) for layer, result in zip(members, results, strict=True)})
    return made


def _saves_elsewhere() -> bool:
    """Whether what is saved for the backward pass goes through hooks, as under activation checkpointing, which runs a part of the
    model again outside its forward pass and expects the same to be saved."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return torch.is_grad_enabled() and (top is None or top(False) is not None)


def quantized_together(layer: Any) -> torch.Tensor | None:
    """The quantized weight of ``layer``, made with those of its model; None where the layer has to make it."""
    running = _current.running
    if running is None or torch.compiler.is_compiling() or _has_any_global_hook() or _saves_elsewhere():
        return None
    made = running.made.get(torch.is_grad_enabled())
    if made is None:
        known = (ref() for ref in running.layers)
        made = running.made[torch.is_grad_enabled()] = _make([m for m in known if m is not None and _joins(m, layer.weight.device)])
    found = made.get(layer)
    return found[0] if found is not None and found[1] == _state(layer) else None
