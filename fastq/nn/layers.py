"""Linear and convolution layers with a quantizer before them and one on their weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .quantizer import LSQ

__all__ = ["QUANTIZED", "QuantConv1d", "QuantConv2d", "QuantLinear"]

#: Where ``nn.Module`` keeps what users hook onto a layer.
HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


class _Quantized:
    """What the three layers share. A quantizer that is None leaves its tensor in floating point."""

    weight: torch.Tensor
    weight_quantizer: LSQ | None
    input_quantizer: LSQ | None

    def _set_quantizers(self, weight_quantizer: LSQ | None, input_quantizer: LSQ | None) -> None:
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer
        for quantizer in (weight_quantizer, input_quantizer):
            if quantizer is not None:
                quantizer.to(self.weight.device)
        if weight_quantizer is not None and not weight_quantizer._initialized:
            # DDP makes weights, and their steps with them, equal when it wraps the model: no rank waits for another here
            weight_quantizer.initialize(self.weight, synchronize=False)

    def _quantized(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = input if self.input_quantizer is None else self.input_quantizer(input)
        return x, self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    @classmethod
    def _adopt(cls, module: Any, weight_quantizer: LSQ | None, input_quantizer: LSQ | None, arguments: dict[str, Any]) -> Any:
        if not isinstance(module.weight, nn.Parameter):
            raise ValueError(
                f"{cls.__name__}: weight must be a parameter, but a hook computes it (weight norm, spectral norm, pruning); "
                "make it permanent first"
            )
        make: Any = cls
        new = make(**arguments, bias=module.bias is not None, device="meta")
        new.weight, new.bias = module.weight, module.bias
        for hooks in HOOKS:
            setattr(new, hooks, getattr(module, hooks))  # the same dict: the handle that the user holds still removes
        new._set_quantizers(weight_quantizer, input_quantizer)
        return new.train(module.training)


class QuantLinear(_Quantized, nn.Linear):
    """``torch.nn.Linear`` of the quantized input and the quantized weight: ``y = Q_x(x) Q_w(W)^T + b``.

    Args: those of ``torch.nn.Linear``, and ``weight_quantizer``, ``input_quantizer``: :class:`fastq.nn.LSQ` or None (float).
    """

    def __init__(
        self, *args: Any, weight_quantizer: LSQ | None = None, input_quantizer: LSQ | None = None, **keywords: Any
    ) -> None:
        super().__init__(*args, **keywords)
        self._set_quantizers(weight_quantizer, input_quantizer)

    @classmethod
    def from_float(cls, module: nn.Linear, *, weight_quantizer: LSQ | None, input_quantizer: LSQ | None) -> QuantLinear:
        """The quantized form of ``module``, which keeps its weight and bias parameters."""
        arguments = {"in_features": module.in_features, "out_features": module.out_features}
        return cls._adopt(module, weight_quantizer, input_quantizer, arguments)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, weight = self._quantized(input)
        return F.linear(x, weight, self.bias)


def _convolution(module: Any) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(module, name) for name in names}


class QuantConv1d(_Quantized, nn.Conv1d):
    """``torch.nn.Conv1d`` of the quantized input and the quantized weight, padded after quantization.

    Args: those of ``torch.nn.Conv1d``, and ``weight_quantizer``, ``input_quantizer``: :class:`fastq.nn.LSQ` or None (float).
    """

    def __init__(
        self, *args: Any, weight_quantizer: LSQ | None = None, input_quantizer: LSQ | None = None, **keywords: Any
    ) -> None:
        super().__init__(*args, **keywords)
        self._set_quantizers(weight_quantizer, input_quantizer)

    @classmethod
    def from_float(cls, module: nn.Conv1d, *, weight_quantizer: LSQ | None, input_quantizer: LSQ | None) -> QuantConv1d:
        """The quantized form of ``module``, which keeps its weight and bias parameters."""
        return cls._adopt(module, weight_quantizer, input_quantizer, _convolution(module))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, weight = self._quantized(input)
        return self._conv_forward(x, weight, self.bias)


class QuantConv2d(_Quantized, nn.Conv2d):
    """``torch.nn.Conv2d`` of the quantized input and the quantized weight, padded after quantization.

    Args: those of ``torch.nn.Conv2d``, and ``weight_quantizer``, ``input_quantizer``: :class:`fastq.nn.LSQ` or None (float).
    """

    def __init__(
        self, *args: Any, weight_quantizer: LSQ | None = None, input_quantizer: LSQ | None = None, **keywords: Any
    ) -> None:
        super().__init__(*args, **keywords)
        self._set_quantizers(weight_quantizer, input_quantizer)

    @classmethod
    def from_float(cls, module: nn.Conv2d, *, weight_quantizer: LSQ | None, input_quantizer: LSQ | None) -> QuantConv2d:
        """The quantized form of ``module``, which keeps its weight and bias parameters."""
        return cls._adopt(module, weight_quantizer, input_quantizer, _convolution(module))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, weight = self._quantized(input)
        return self._conv_forward(x, weight, self.bias)


#: The quantized form of each layer type.
QUANTIZED: dict[type[nn.Module], Any] = {nn.Linear: QuantLinear, nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d}
