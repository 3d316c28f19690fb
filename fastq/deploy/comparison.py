"""What differs between a fake-quantized network and the integer one made of it: codes, accumulators, logits, predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..tables import table
from .layers import CodedLayer, IntegerLayer

__all__ = ["Comparison", "LayerComparison", "compare"]


@dataclass(frozen=True)
class LayerComparison:
    """One layer: how many input codes there were, how many differ, and the largest difference of its int32 accumulators.

    The last is None for a look-up layer, which has none; one whose input is not quantized has no codes either.
    """

    name: str
    codes: int
    flips: int
    largest_accumulator_difference: int | None


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`; ``str()`` is a table."""

    layers: tuple[LayerComparison, ...]
    largest_logit_difference: float
    predictions: int
    differing_predictions: int

    @property
    def codes(self) -> int:
        """Input codes of all layers."""
        return sum(layer.codes for layer in self.layers)

    @property
    def flips(self) -> int:
        """Input codes that differ, of all layers."""
        return sum(layer.flips for layer in self.layers)

    def __str__(self) -> str:
        rows = []
        for x in self.layers:
            difference = x.largest_accumulator_difference
            rows.append((x.name, f"{x.codes:,}", f"{x.flips:,}", "-" if difference is None else f"{difference:,}"))
        rows.append(("total", f"{self.codes:,}", f"{self.flips:,}", ""))
        return (
            f"{table(('layer', 'codes', 'flips', 'accumulator difference'), rows)}\n"
            f"largest logit difference {self.largest_logit_difference:.3g}, "
            f"{self.differing_predictions} of {self.predictions} predictions differ"
        )


def _input(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
    """What a layer was called with, by position or by keyword."""
    given: torch.Tensor = arguments[0] if arguments else keywords["input"]
    return given


@torch.no_grad()
def compare(model: nn.Module, converted: nn.Module, x: torch.Tensor) -> Comparison:
    """Run ``x`` through ``model`` (in eval mode; its mode is restored) and ``converted``, and count what differs.

    Per layer: input codes that differ, and the largest difference of the int32 accumulators that these codes lead to. Both
    networks must return one tensor of logits ``(N, classes, ...)``, else ``TypeError``. Codes differ where the rounding of fp32
    on the way carries a value over a tie: equal predictions alone would hide that.

    Raises:
        TypeError: a network is no ``torch.nn.Module``, ``x`` no tensor, an output no tensor.
        ValueError: ``converted`` has no integer layer, or one where ``model`` has none of that name.
    """
    for name, given in (("model", model), ("converted", converted)):
        if not isinstance(given, nn.Module):
            raise TypeError(f"compare: {name} must be a torch.nn.Module, got {type(given).__name__}")
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"compare: x must be a tensor, the networks' input, got {type(x).__name__}")
    integers = {name: module for name, module in converted.named_modules() if isinstance(module, CodedLayer)}
    if not integers:
        raise ValueError("compare: converted has no integer layer; give the network that fastq.convert returns")
    if missing := [name for name in integers if name not in dict(model.named_modules())]:
        raise ValueError(f"compare: model has no layer {missing[0]!r}; give the network that was converted")
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in integers}
    totals: dict[str, list[Any]] = {name: [0, 0, 0 if isinstance(m, IntegerLayer) else None] for name, m in integers.items()}
    coded = [name for name, module in integers.items() if module.inputs is not None]

    def remember(name: str) -> Any:
        # the integer layer's quantize gives the codes of the fake quantizer, bit for bit (tests/deploy), in int8
        return lambda module, *given: inputs[name].append(integers[name].quantize(_input(*given)))

    def measure(name: str) -> Any:
        def hook(module: Any, *given: Any) -> None:
            before, now = inputs[name].pop(0), module.quantize(_input(*given))
            total = totals[name]
            total[0] += now.numel()
            total[1] += int((before != now).sum())
            if total[2] is not None:
                difference = module.accumulate(before).long() - module.accumulate(now).long()
                total[2] = max(total[2], int(difference.abs().max()) if difference.numel() else 0)

        return hook

    modes = {module: module.training for module in model.modules()}
    hooks = [model.get_submodule(name).register_forward_pre_hook(remember(name), with_kwargs=True) for name in coded]
    hooks += [integers[name].register_forward_pre_hook(measure(name), with_kwargs=True) for name in coded]
    try:
        model.eval()
        first, second = model(x), converted(x)
    finally:
        for handle in hooks:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        raise TypeError(f"compare: the networks must return one tensor of logits, got {type(first).__name__}")
    axis = 1 if first.dim() > 1 else 0
    differ = first.argmax(axis) != second.argmax(axis)
    largest = float((first - second).abs().max()) if first.numel() else 0.0
    layers = tuple(LayerComparison(name, *numbers) for name, numbers in totals.items())
    return Comparison(layers, largest, differ.numel(), int(differ.sum()))
