"""A recipe is data: which layers get which quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..nn.initializers import INITIALIZERS
from ..ranges import BOUNDARIES, integer_range

__all__ = ["LayerRecipe", "Recipe", "lsq"]


@dataclass(frozen=True)
class LayerRecipe:
    """How one layer is quantized.

    Attributes:
        weight_bits, activation_bits: 1 to 8 (or 2 to 8 where signed), or None for floating point.
        per_channel: one weight step per output channel; otherwise one per tensor.
        signed_activations: None decides by the first batch of each layer.
        activation_offset: learn an offset (LSQ+).
        weight_init, activation_init: ``"lsq"``, ``"lsq+"`` or ``"mse"``.
        boundary, grad_scale: as in :func:`fastq.lsq`.
    """

    weight_bits: int | None = 4
    activation_bits: int | None = 4
    per_channel: bool = True
    signed_activations: bool | None = None
    activation_offset: bool = False
    weight_init: str = "lsq"
    activation_init: str = "lsq"
    boundary: str = "open"
    grad_scale: float | str = "lsq"

    def __post_init__(self) -> None:
        if self.weight_bits is not None:
            integer_range("recipe: weight_bits", self.weight_bits)
        if self.activation_bits is not None:
            integer_range("recipe: activation_bits", self.activation_bits, bool(self.signed_activations))
        for name in ("weight_init", "activation_init"):
            if getattr(self, name) not in INITIALIZERS:
                raise ValueError(f"recipe: {name} must be one of {', '.join(INITIALIZERS)}, got {getattr(self, name)!r}")
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"recipe: boundary must be one of {', '.join(BOUNDARIES)}, got {self.boundary!r}")


@dataclass(frozen=True)
class Recipe:
    """Which layers of a model get which quantizers.

    Attributes:
        default: for every Linear, Conv1d and Conv2d.
        first_last_bits: bits of weights and activations of the first and the last such layer; None treats them as the rest.
        overrides: layer name, glob pattern of names or type name (``"Conv2d"``) to attributes of :class:`LayerRecipe`. Later
            ones win over earlier ones, and all over ``first_last_bits``.
        skip: names, patterns or type names of layers that stay in floating point.
    """

    name: str
    default: LayerRecipe = LayerRecipe()
    first_last_bits: int | None = 8
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.first_last_bits is not None:
            integer_range("recipe: first_last_bits", self.first_last_bits, False)
        known = {f.name for f in fields(LayerRecipe)}
        for pattern, values in self.overrides.items():
            if unknown := set(values) - known:
                raise ValueError(
                    f"recipe: overrides[{pattern!r}] has no setting {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}"
                )
            replace(self.default, **values)
        if isinstance(self.skip, str):
            raise TypeError("recipe: skip must be a sequence of patterns, got one str")


def lsq(
    weight_bits: int | None = 4, activation_bits: int | None = 4, *, first_last_bits: int | None = 8,
    overrides: Mapping[str, Mapping[str, Any]] | None = None, skip: tuple[str, ...] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """LSQ (https://arxiv.org/abs/1902.08153); with ``activation_offset=True`` LSQ+ (https://arxiv.org/abs/2004.09576).

    Args:
        weight_bits, activation_bits: 1 to 8, or None for floating point.
        first_last_bits, overrides, skip: as in :class:`Recipe`.
        settings: the other attributes of :class:`LayerRecipe`.
    """
    default = LayerRecipe(weight_bits=weight_bits, activation_bits=activation_bits, **settings)
    return Recipe("lsq", default, first_last_bits, dict(overrides or {}), tuple(skip) if not isinstance(skip, str) else skip)
