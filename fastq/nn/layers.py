"""Linear and convolution layers with a quantizer before them and one on their weights."""

from __future__ import annotations

import copy
import weakref
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from .base import Quantizer
from .integer import check_forward, conv_in_integers, in_integers, linear_in_integers
from .weights import quantized_together

__all__ = ["QUANTIZED", "QuantConv1d", "QuantConv2d", "QuantLinear"]


def taken_over(cls: Any, module: Any) -> Any:
    """A ``cls`` that is not initialized, with the very parameters, buffers, modules, hooks and attributes of ``module``.

    Raises ``TypeError`` for a module that is no ``cls._float``; ``ValueError`` for a weight or bias that a hook computes, or a
    forward that was replaced on the instance.
    """
    if not isinstance(module, cls._float):
        raise TypeError(f"{cls.__name__}: module must be a torch.nn.{cls._float.__name__}, got {type(module).__name__}")
    for name in ("weight", "bias"):
        if not isinstance(getattr(module, name), nn.Parameter | None):
            raise ValueError(
                f"{cls.__name__}: {name} must be a parameter, but a hook computes it (weight norm, spectral norm, pruning); "
                "make it permanent first"
            )
    if "forward" in vars(module):
        raise ValueError(f"{cls.__name__}: forward was replaced on this layer itself, and quantizers would not be called by it")
    new: Any = cls.__new__(cls)
    state = vars(new)
    state.update(vars(module))  # hooks are the same dicts: the handle that a user holds still removes
    for own in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        state[own] = state[own].copy()
    state.pop("_compiled_call_impl", None)  # of the layer in floating point
    state["_load_state_dict_pre_hooks"] = state["_load_state_dict_pre_hooks"].copy()
    for key, hook in state["_load_state_dict_pre_hooks"].items():
        if getattr(hook, "with_module", False):  # these alone remember their module, so the new layer has its own
            state["_load_state_dict_pre_hooks"][key] = hook = copy.copy(hook)
            hook.module = weakref.ref(new)
    return new


class _Quantized:
    """What the three layers share. A quantizer that is None, or not enabled, leaves its tensor in floating point.

    ``forward="fake"`` multiplies the numbers that the quantizers give, ``"integer"`` their codes (:mod:`fastq.nn.integer`), with
    the very result that the layer gives once it is converted. Where a quantizer is not enabled, or trains in full precision, both
    do the first.
    """

    _float: type[nn.Module]  # the layer that this is the quantized form of
    weight: torch.Tensor
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    forward_kind: str = "fake"

    def __init__(
        self, *args: Any, weight_quantizer: Quantizer | None = None, input_quantizer: Quantizer | None = None,
        forward: str = "fake", **keywords: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **keywords)  # of the torch layer, the next base
        self._set_quantizers(weight_quantizer, input_quantizer, forward)

    def _set_quantizers(self, weight_quantizer: Quantizer | None, input_quantizer: Quantizer | None, forward: str) -> None:
        for name, quantizer in (("weight_quantizer", weight_quantizer), ("input_quantizer", input_quantizer)):
            if not isinstance(quantizer, Quantizer | None):
                kind, layer = type(quantizer).__name__, type(self).__name__
                raise TypeError(f"{layer}: {name} must be a fastq.nn.Quantizer or None, got {kind}")
        check_forward(type(self).__name__, forward, weight_quantizer, input_quantizer)
        self.weight_quantizer, self.input_quantizer, self.forward_kind = weight_quantizer, input_quantizer, forward
        for quantizer in (weight_quantizer, input_quantizer):
            if quantizer is not None:
                quantizer.to(self.weight.device)
        if weight_quantizer is not None and not weight_quantizer._initialized:
            # DDP makes weights, and their steps with them, equal when it wraps the model: no rank waits for another here
            weight_quantizer.initialize(self.weight, synchronize=False)

    def _quantized(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        source, quantizer = self.input_quantizer, self.weight_quantizer
        x = input if source is None or not source.enabled else source(input)
        if quantizer is None or not quantizer.enabled:
            return x, self.weight
        weight = quantized_together(self)
        return x, quantizer(self.weight) if weight is None else weight

    @classmethod
    def from_float(
        cls, module: Any, *, weight_quantizer: Quantizer | None, input_quantizer: Quantizer | None, forward: str = "fake"
    ) -> Self:
        """The quantized form of ``module``, with its very parameters, buffers, hooks, attributes and mode; it stays as it was.

        Raises ``TypeError`` for another type, ``ValueError`` for a weight or bias that a hook computes, a forward that was
        replaced on the instance, a weight quantizer whose step does not fit, or quantizers that ``forward="integer"`` has no way
        with.
        """
        new: Any = taken_over(cls, module)
        new._set_quantizers(weight_quantizer, input_quantizer, forward)
        return new.train(module.training)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", forward={self.forward_kind!r}" if self.forward_kind != "fake" else "")  # type: ignore[misc]


class _QuantizedConv(_Quantized):
    bias: torch.Tensor | None
    _conv_forward: Any

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.forward_kind == "integer" and in_integers(self, input):
            return conv_in_integers(self, input, quantized_together(self))
        x, weight = self._quantized(input)
        return self._conv_forward(x, weight, self.bias)


class QuantLinear(_Quantized, nn.Linear):
    """``torch.nn.Linear`` of the quantized input and the quantized weight: ``y = Q_x(x) Q_w(W)^T + b``.

    Args: those of ``torch.nn.Linear``, and ``weight_quantizer``, ``input_quantizer``: :class:`fastq.nn.Quantizer` or None (float);
    ``forward``: ``"fake"`` or ``"integer"`` (:mod:`fastq.nn.integer`).
    """

    _float = nn.Linear

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.forward_kind == "integer" and in_integers(self, input):
            return linear_in_integers(self, input, quantized_together(self))
        x, weight = self._quantized(input)
        return F.linear(x, weight, self.bias)


class QuantConv1d(_QuantizedConv, nn.Conv1d):
    """``torch.nn.Conv1d`` of the quantized input and the quantized weight, padded after quantization.

    Args: those of ``torch.nn.Conv1d``, and ``weight_quantizer``, ``input_quantizer``: :class:`fastq.nn.Quantizer` or None (float);
    ``forward``: ``"fake"`` or ``"integer"`` (:mod:`fastq.nn.integer`).
    """

    _float = nn.Conv1d


class QuantConv2d(_QuantizedConv, nn.Conv2d):
    """``torch.nn.Conv2d`` of the quantized input and the quantized weight, padded after quantization.

    Args: those of ``torch.nn.Conv2d``, and ``weight_quantizer``, ``input_quantizer``: :class:`fastq.nn.Quantizer` or None (float);
    ``forward``: ``"fake"`` or ``"integer"`` (:mod:`fastq.nn.integer`).
    """

    _float = nn.Conv2d


#: The quantized form of each layer type.
QUANTIZED: dict[type[nn.Module], Any] = {layer._float: layer for layer in (QuantLinear, QuantConv1d, QuantConv2d)}
