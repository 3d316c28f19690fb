"""A recipe is data: which layers get which quantizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..nn.initializers import INITIALIZERS
from ..ops.lsq import gradient_factor
from ..ranges import BOUNDARIES, integer_range

__all__ = ["LayerRecipe", "Recipe", "lsq"]


@dataclass(frozen=True)
class LayerRecipe:
    """How one layer is quantized.

    Attributes:
        weight_bits, activation_bits: 1 to 8 (2 to 8 where signed), a range ``(qmin, qmax)``, or None for floating point.
        per_channel: one weight step per output channel; otherwise one per tensor.
        signed_activations: None decides by the first batch of each layer.
        activation_offset: learn an offset (LSQ+).
        weight_init, activation_init: ``"lsq"``, ``"lsq+"`` or ``"mse"``.
        boundary, grad_scale: as in :func:`fastq.lsq`.
    """

    weight_bits: int | tuple[int, int] | None = 4
    activation_bits: int | tuple[int, int] | None = 4
    per_channel: bool = True
    signed_activations: bool | None = None
    activation_offset: bool = False
    weight_init: str = "lsq"
    activation_init: str = "lsq"
    boundary: str = "open"
    grad_scale: float | str = "lsq"

    def __post_init__(self) -> None:
        for name in ("per_channel", "activation_offset"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"recipe: {name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.signed_activations, bool | None):
            raise TypeError(f"recipe: signed_activations must be True, False or None, got {self.signed_activations!r}")
        if self.weight_bits is not None:
            integer_range("recipe: weight_bits", self.weight_bits)
        if self.activation_bits is not None:
            integer_range("recipe: activation_bits", self.activation_bits, bool(self.signed_activations))
        for name in ("weight_init", "activation_init"):
            if getattr(self, name) not in INITIALIZERS:
                raise ValueError(f"recipe: {name} must be one of {', '.join(INITIALIZERS)}, got {getattr(self, name)!r}")
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"recipe: boundary must be one of {', '.join(BOUNDARIES)}, got {self.boundary!r}")
        gradient_factor(self.grad_scale, "recipe")


SETTINGS = tuple(sorted(f.name for f in fields(LayerRecipe)))


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
        if not isinstance(self.default, LayerRecipe):
            raise TypeError(f"recipe: default must be a LayerRecipe, got {type(self.default).__name__}")
        bits = self.first_last_bits
        if bits is not None:
            if isinstance(bits, bool) or not isinstance(bits, int):
                raise TypeError(f"recipe: first_last_bits must be an int from 1 to 8 or None, got {bits!r}")
            integer_range("recipe: first_last_bits", bits, bool(self.default.signed_activations))
        if not isinstance(self.overrides, Mapping):
            raise TypeError(f"recipe: overrides must map patterns to settings, got {type(self.overrides).__name__}")
        for pattern, values in self.overrides.items():
            if not isinstance(pattern, str):
                raise TypeError(f"recipe: overrides must map patterns to settings, got the pattern {pattern!r}")
            if not isinstance(values, Mapping):
                raise TypeError(f"recipe: overrides[{pattern!r}] must map settings to values, got {type(values).__name__}")
            if unknown := [name for name in values if name not in SETTINGS]:
                raise ValueError(f"recipe: overrides[{pattern!r}] has no setting {unknown[0]!r}; known are {', '.join(SETTINGS)}")
            try:
                replace(self.default, **values)
            except (TypeError, ValueError) as error:
                raise type(error)(f"recipe: overrides[{pattern!r}]: {str(error).removeprefix('recipe: ')}") from None
        if isinstance(self.skip, str):
            raise TypeError(f"recipe: skip must be a sequence of patterns, got one str, {self.skip!r}")
        if not isinstance(self.skip, Iterable):
            raise TypeError(f"recipe: skip must be a sequence of patterns, got {type(self.skip).__name__}")
        # A recipe is data: what the caller does to its dicts and lists later is no business of it.
        object.__setattr__(self, "overrides", {pattern: dict(values) for pattern, values in self.overrides.items()})
        object.__setattr__(self, "skip", tuple(self.skip))
        for pattern in self.skip:
            if not isinstance(pattern, str):
                raise TypeError(f"recipe: skip must be a sequence of patterns, each a str, got {pattern!r}")


def lsq(
    weight_bits: int | tuple[int, int] | None = 4, activation_bits: int | tuple[int, int] | None = 4, *,
    first_last_bits: int | None = 8, overrides: Mapping[str, Mapping[str, Any]] | None = None,
    skip: Iterable[str] = (), **settings: Any,
) -> Recipe:  # fmt: skip
    """LSQ (https://arxiv.org/abs/1902.08153); with ``activation_offset=True`` LSQ+ (https://arxiv.org/abs/2004.09576).

    Args:
        weight_bits, activation_bits: 1 to 8, a range ``(qmin, qmax)``, or None for floating point.
        first_last_bits, overrides, skip: as in :class:`Recipe`.
        settings: the other attributes of :class:`LayerRecipe`.

    Raises:
        TypeError, ValueError: a setting is unknown or wrong; the message names it.
    """
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise TypeError(f"lsq: no setting {unknown[0]!r}; known are {', '.join(SETTINGS)}")
    default = LayerRecipe(weight_bits=weight_bits, activation_bits=activation_bits, **settings)
    return Recipe("lsq", default, first_last_bits, {} if overrides is None else overrides, skip)  # type: ignore[arg-type]
