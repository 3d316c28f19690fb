"""``fastq.param_groups``: who gets weight decay, and which learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..nn import DirectWeight, Quantizer
from .recipe import Parameters, Recipe

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module, recipe: Recipe | Parameters | None = None, *, lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """The parameters of a prepared model as groups for an optimizer: weight decay and learning rates as a recipe asks for them.

    ::

        optimizer = torch.optim.SGD(fastq.param_groups(model, recipe, lr=0.1, weight_decay=1e-4), momentum=0.9)

    ========== ============================================ =============== ====================
    group      what is in it                                learning rate   weight decay
    ========== ============================================ =============== ====================
    decayed    weights (or more or fewer: ``decay``)        lr              weight_decay
    plain      biases, norms, what is spared                lr              0
    codes      deltas of weights that are stored as codes   lr              0: zeros cannot decay
    quantizers steps, clips, intervals, levels, ...         lr * factor     weight_decay * factor
    ========== ============================================ =============== ====================

    A step or clip that decays shrinks the range for no reason in the data (PACT's and SAT's papers leave alpha out), so
    quantizers get none unless the recipe says so. SAT spares depthwise convolutions as well.

    Args:
        model: after :func:`fastq.prepare`; before, there is no quantizer in it.
        recipe: whose ``parameters`` say the rest; or these themselves; None for their defaults.
        lr, weight_decay: of the network's weights.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``, without empty ones. Each parameter is in one, in the order of
        ``model.parameters()``; shared ones count once.

    Raises:
        TypeError: ``model`` or ``recipe`` is of another type. ValueError: lr or weight_decay is negative or not finite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"param_groups: model must be a torch.nn.Module, got {type(model).__name__}")
    how = recipe.parameters if isinstance(recipe, Recipe) else Parameters() if recipe is None else recipe
    if not isinstance(how, Parameters):
        raise TypeError(f"param_groups: recipe must be a Recipe, its Parameters or None, got {type(recipe).__name__}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ValueError(f"param_groups: {name} must be at least 0 and finite, got {value}")
    kinds: dict[int, str] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, DirectWeight):
                kinds[id(parameter)] = "codes" if name == "delta" else "quantizers"
            elif isinstance(module, Quantizer):
                kinds[id(parameter)] = "quantizers"
            else:
                spared = parameter.dim() < 2 or (how.decay == "dense" and _depthwise(module))
                decays = how.decay == "all" or not spared
                if kinds.get(id(parameter)) != "quantizers":
                    kinds[id(parameter)] = "decayed" if decays else "plain"
    rates = {"quantizers": (lr * how.quantizer_lr, weight_decay * how.quantizer_decay), "decayed": (lr, weight_decay)}
    groups = []
    for kind in ("decayed", "plain", "codes", "quantizers"):
        own = [p for p in model.parameters() if kinds[id(p)] == kind]
        rate, decay = rates.get(kind, (lr, 0.0))
        if own:
            groups.append({"name": kind, "params": own, "lr": rate, "weight_decay": decay})
    return groups


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == module.in_channels > 1
