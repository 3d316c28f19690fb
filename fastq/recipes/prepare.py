"""``fastq.prepare``: put quantizers into a model, by a recipe."""

from __future__ import annotations

import fnmatch
import itertools
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ..nn import DIRECT, QUANTIZED, DirectWeight, Quantizer
from ..nn.batch_norm import AFFINE
from ..nn.integer import FORWARDS
from ..nn.weights import group_weights as group
from ..tables import table
from .quantizers import activation_quantizer, weight_quantizer
from .recipe import LayerRecipe, Recipe

__all__ = ["Layer", "Preparation", "prepare"]


@dataclass(frozen=True)
class Layer:
    """What became of one layer."""

    name: str
    type: str
    recipe: LayerRecipe | None
    note: str


def _width(bits: int | tuple[int, int] | None) -> str:
    return "float" if bits is None else f"{bits} bit" if isinstance(bits, int) else f"{bits[0]}..{bits[1]}"


@dataclass(frozen=True)
class Preparation:
    """What :func:`prepare` did. ``str()`` of it is a table; ``model`` is the prepared model (another object than the one given
    only where that was itself a layer)."""

    model: nn.Module
    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        rows = []
        for layer in self.layers:
            r = layer.recipe
            weights, activations = ("float", "float") if r is None else (_width(r.weight_bits), _width(r.activation_bits))
            grain = "" if r is None or r.weight_bits is None else "per channel" if r.weight_per_channel else "per tensor"
            if r is not None:
                weights += f" {r.weight}" * (r.weight_bits is not None)
                activations += f" {r.activation}" * (r.activation_bits is not None)
            rows.append((layer.name or "(model)", layer.type, weights, grain, activations, layer.note))
        return table(("layer", "type", "weight", "granularity", "activation", "note"), rows)


def _matches(pattern: str, names: list[str], module: nn.Module) -> bool:
    # a name is a name also where it has brackets
    return pattern == type(module).__name__ or pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _leave_fast_path(model: nn.Module) -> None:
    """In eval mode torch's transformer layers hand the weights of their linear layers to one fused operator, past the
    quantizers. They do not where the activation is unknown to that operator, which is what is said here."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(_is_quantizer(m) for m in module.modules()):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and any(_is_quantizer(m) for m in module.modules()):
            module.use_nested_tensor = False


def _is_quantizer(module: nn.Module) -> bool:
    return isinstance(module, (Quantizer, DirectWeight))


def _normalized(model: nn.Module) -> set[nn.Module]:
    """The layers whose output a batch norm takes, by the order in which modules were made: what the layer's next one is."""
    leaves = [m for m in model.modules() if not any(m.children()) and not isinstance(m, (nn.Identity, nn.Dropout))]
    found: set[nn.Module] = set()
    for layer, after in itertools.pairwise(leaves):
        width = getattr(layer, "out_channels", getattr(layer, "out_features", None))
        if isinstance(after, nn.modules.batchnorm._BatchNorm) and after.num_features == width:
            found.add(layer)
    return found


def _quantized(module: Any, r: LayerRecipe, normalized: bool, forward: str) -> nn.Module:
    """The quantized form of one layer. One whose weight or input stays in floating point has nothing to multiply in integers."""
    weight: Any = None
    source = None
    if r.weight_bits is not None:
        channels = module.weight.shape[0] if r.weight_per_channel else None
        weight = weight_quantizer(r.weight, r.weight_bits, r.weight_options, channels=channels, normalized=normalized)
    if r.activation_bits is not None:
        how: dict[str, Any] = {"signed": r.signed_activations, "linear": isinstance(module, nn.Linear), "normalized": normalized}
        source = activation_quantizer(r.activation, r.activation_bits, r.activation_options, **how)
    if isinstance(weight, DirectWeight):
        if forward == "integer":
            raise ValueError("forward='integer' needs evenly spaced levels, and those of a DirectWeight are learned; use 'fake'")
        return DIRECT[type(module)].from_float(module, weight, source)
    forward = "fake" if weight is None or source is None else forward
    return QUANTIZED[type(module)].from_float(module, weight_quantizer=weight, input_quantizer=source, forward=forward)


def prepare(model: nn.Module, recipe: Recipe, *, group_weights: bool = True, forward: str = "fake") -> Preparation:
    """Replace the Linear, Conv1d and Conv2d layers of ``model`` in place by their quantized forms.

    The layers keep their parameters, so that an optimizer made before goes on working; add the new ones (the steps) to it. The
    model stays an ordinary ``nn.Module``: ``deepcopy``, ``pickle``, ``state_dict``, ``.to()``, DDP. Weight steps are set at
    once, on each process for itself; activation steps by the first batch, the same on every rank of a process group (run it before
    ``torch.compile(fullgraph=True)``). First and last are those of the layers that get quantized, in the order of
    ``model.named_modules()``. What users attached to a layer (hooks, buffers, attributes) stays on it; where an error is raised,
    nothing has changed. Transformer encoder layers lose torch's fused inference path, which would pass the quantizers by.

    Args:
        model: any module. Layers shared between several places are replaced once and stay shared. Only the three types
            themselves are replaced: a subclass may compute something else, and is reported.
        recipe: such as ``fastq.recipes.lsq(weight_bits=4, activation_bits=4)``.
        group_weights: quantize all weights in one call for each forward pass of the model (:mod:`fastq.nn.weights` tells when), by
            two hooks on it. The gradients of the quantized weights are then held until all are there: once the weights' size.
        forward: ``"fake"``: layers multiply the numbers that quantizers give; ``"integer"``: their codes, in the integer engine, so
            that what is trained is bit for bit what ``fastq.convert`` makes of it (:mod:`fastq.nn.integer`; in half precision, of
            ``convert(fuse=False)``). Batch norms become :class:`fastq.nn.BatchNorm1d` and ``2d``, for the same reason. A layer
            whose input or weight the recipe leaves in floating point has no codes to multiply: the table says "fake" of it.

    Returns:
        What was done to each layer; print it. ``.model`` is the model.

    Raises:
        TypeError: not a module, or not a recipe.
        ValueError: nothing to quantize, already prepared, uninitialised lazy layers, a weight that a hook computes, a forward
            replaced on a layer itself, or a pattern of ``overrides`` or ``skip`` that matches no layer (it is named); an unknown
            ``forward``, or a quantizer that has no integer one (noise, learned levels).

    Example:
        >>> print(fastq.prepare(model, fastq.recipes.lsq(weight_bits=4, activation_bits=4)))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(recipe, Recipe):
        raise TypeError(f"prepare: recipe must be a fastq.recipes.Recipe such as fastq.recipes.lsq(), got {type(recipe).__name__}")
    if forward not in FORWARDS:
        raise ValueError(f"prepare: forward must be 'fake' or 'integer', got {forward!r}")
    module: nn.Module
    layer_types: tuple[type[nn.Module], ...] = tuple(QUANTIZED)
    for name, module in model.named_modules():
        if _is_quantizer(module):
            raise ValueError(f"prepare: the model is prepared already ({name or 'it'} is a quantizer)")
        if isinstance(module, layer_types) and any(is_lazy(p) for p in module.parameters()):
            raise ValueError(f"prepare: layer {name!r} is lazy and not initialised; run a batch through the model first")
    names: dict[nn.Module, list[str]] = {}  # a shared layer has several, and answers to each
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, layer_types):
            names.setdefault(module, []).append(name)
    candidates = [(known[0], module) for module, known in names.items()]
    for argument, patterns in (("overrides", recipe.overrides), ("skip", recipe.skip)):
        for pattern in patterns:
            if not any(_matches(pattern, known, module) for module, known in names.items()):
                raise ValueError(f"prepare: {argument} pattern {pattern!r} matches no Linear, Conv1d or Conv2d layer of the model")
    chosen = [
        name for name, module in candidates
        if type(module) in QUANTIZED and not any(_matches(pattern, names[module], module) for pattern in recipe.skip)
    ]  # fmt: skip
    if not chosen:
        raise ValueError("prepare: the model has no Linear, Conv1d or Conv2d layer to quantize")

    layers, new, normalized = [], {}, _normalized(model)
    for name, module in candidates:
        if name not in chosen:
            note = "skipped" if type(module) in QUANTIZED else "a subclass, left as it is"
            layers.append(Layer(name, type(module).__name__, None, note))
            continue
        layer_recipe, note = recipe.default, ""
        try:
            if recipe.first_last_bits is not None and name in (chosen[0], chosen[-1]):
                layer_recipe = recipe.at_ends()
            for place, values, at in (("first", recipe.first, chosen[0]), ("last", recipe.last, chosen[-1])):
                if name == at:
                    layer_recipe = layer_recipe.changed(values)
                    if not note and (values or recipe.first_last_bits is not None):
                        note = f"{place} layer"
            for pattern, values in recipe.overrides.items():
                if _matches(pattern, names[module], module):
                    layer_recipe, note = layer_recipe.changed(values), f"override {pattern!r}"
            new[module] = _quantized(module, layer_recipe, module in normalized, forward)
        except ValueError as error:
            raise ValueError(f"prepare: layer {name!r}: {error}") from None
        if forward == "integer":
            note = f"{note}{', ' if note else ''}{new[module].forward_kind}"
        layers.append(Layer(name, type(module).__name__, layer_recipe, note))
    if forward == "integer":
        for name, module in model.named_modules():
            if type(module) in AFFINE:
                try:
                    new[module] = AFFINE[type(module)].from_float(module)
                except ValueError as error:
                    raise ValueError(f"prepare: layer {name!r}: {error}") from None
    # a layer may hold layers; and not named_children(), which gives a module that has two names only once
    for parent in [*model.modules(), *new.values()]:
        for child_name, child in list(parent._modules.items()):
            if child in new:
                parent._modules[child_name] = new[child]
    model = new.get(model, model)
    _leave_fast_path(model)
    if group_weights:
        group(model)
    return Preparation(model, tuple(layers))
