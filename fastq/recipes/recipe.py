"""A recipe is data: which layers get which quantizers, and what happens to them while training.

recipe = fastq.recipes.qil(2, 2)
print(recipe)                                       as TOML
recipe == Recipe.from_toml(recipe.to_toml())        always
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

import torch

from ..ops.dampening import REDUCTIONS
from ..ranges import integer_range
from .quantizers import ACTIVATIONS, WEIGHTS, activation_quantizer, nearest, weight_quantizer

__all__ = ["Dampening", "Freezing", "LayerRecipe", "Parameters", "Phase", "Recipe", "Tempering"]

#: How TOML, which has no None, says full precision, and that a quantizer or its first batch decides.
FLOAT = "float"
AUTO = "auto"
DECIDED = ("per_channel", "signed_activations")


def _number(what: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"recipe: {what} must be a number, got {value!r}")
    if not ((low < value if open_low else low <= value) and value <= high and math.isfinite(value)):
        bounds = f"{'above' if open_low else 'from'} {low:g}" + (f" to {high:g}" if high < math.inf else " on, and finite")
        raise ValueError(f"recipe: {what} must be {bounds}, got {value!r}")


def _bits_range(what: str, bits: Any, signed: bool) -> None:
    """Refuse bits that no quantizer has, and say what a layer without one is asked for by."""
    try:
        integer_range(what, bits, signed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}; None is full precision") from None


def _width(bits: Any) -> Any:
    """A width as TOML has it (no None, no tuples), or as Python has."""
    return None if bits == FLOAT else tuple(bits) if isinstance(bits, list) else bits


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of settings, as Python has them: widths, what is left to the quantizer, options."""
    said = {key: _width(value) if key.endswith("bits") else value for key, value in values.items()}
    said |= {key: None for key in DECIDED if said.get(key) == AUTO}
    return said | {f"{which}_options": _options(which, said[f"{which}_options"]) for which in KINDS if f"{which}_options" in said}


def _options(which: str, value: Any) -> dict[str, Any]:
    """A copy of options, dtypes by their names."""
    if not isinstance(value, Mapping):
        raise TypeError(f"recipe: {which}_options must map options of the quantizer to values, got {type(value).__name__}")
    options = {name: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for name, v in value.items()}
    for name, v in options.items():
        if not isinstance(v, (bool, int, float, str)):
            hint = "; leave it out" if v is None else ""
            raise TypeError(f"recipe: {which}_options: {name} must be a bool, int, float, str or torch.dtype, got {v!r}{hint}")
    return options


KINDS: dict[str, Mapping[str, Any]] = {"weight": WEIGHTS, "activation": ACTIVATIONS}


@dataclass(frozen=True)
class LayerRecipe:
    """How one layer is quantized.

    Attributes:
        weight_bits, activation_bits: 1 to 8 (2 to 8 where signed), a range ``(qmin, qmax)`` for those that take one, or None for
            floating point.
        weight, activation: which quantizer: a name in ``fastq.recipes.WEIGHTS`` and ``ACTIVATIONS``.
        per_channel: one set of weight parameters per output channel, or per tensor; None or ``"auto"``: what the quantizer does
            by itself.
        signed_activations: whether activations go below zero; None or ``"auto"`` decides by the first batch of each layer.
        weight_options, activation_options: further keyword arguments of the quantizer's module in :mod:`fastq.nn`: numbers, words
            and dtypes, of which the name is kept.
    """

    weight_bits: int | tuple[int, int] | None = 4
    activation_bits: int | tuple[int, int] | None = 4
    weight: str = "lsq"
    activation: str = "lsq"
    per_channel: bool | None = None
    signed_activations: bool | None = None
    weight_options: Mapping[str, Any] = field(default_factory=dict)
    activation_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            object.__setattr__(self, name, _width(getattr(self, name)))
        for name in DECIDED:
            if getattr(self, name) == AUTO:
                object.__setattr__(self, name, None)
        for which, known in KINDS.items():
            name = getattr(self, which)
            if not isinstance(name, str):
                raise TypeError(f"recipe: {which} must be the name of a quantizer, got {name!r}")
            if name not in known:
                raise ValueError(f"recipe: {which} has no quantizer {name!r}{nearest(name, known)}")
            options = _options(which, getattr(self, f"{which}_options"))
            for option in options:
                if option not in known[name].options:
                    hint = nearest(option, known[name].options)
                    raise ValueError(f"recipe: {which}_options: the quantizer {name!r} has no option {option!r}{hint}")
            object.__setattr__(self, f"{which}_options", options)
        for name in DECIDED:
            if not isinstance(getattr(self, name), bool | None):
                raise TypeError(f"recipe: {name} must be True, False or None, got {getattr(self, name)!r}")
        if self.per_channel and WEIGHTS[self.weight].per_channel is None:
            raise ValueError(f"recipe: per_channel must be False or None for the quantizer {self.weight!r}, which is per tensor")
        if self.signed_activations is not None and not ACTIVATIONS[self.activation].signed:
            raise ValueError(f"recipe: signed_activations must be None for the quantizer {self.activation!r}, which fits its range")
        self._build()

    def _build(self) -> None:
        """The quantizers themselves know best what they take: make one of each, and throw it away."""
        if self.weight_bits is not None:
            _bits_range("recipe: weight_bits", self.weight_bits, WEIGHTS[self.weight].module.__name__ not in UNSIGNED)
            self._try("weight", lambda: weight_quantizer(self.weight, self.weight_bits, _seeded(self.weight, self.weight_options)))
        if self.activation_bits is not None:
            signed = self.signed_activations
            _bits_range("recipe: activation_bits", self.activation_bits, bool(signed) and self.activation != "pact")
            self._try(
                "activation",
                lambda: activation_quantizer(
                    self.activation, self.activation_bits, _seeded(self.activation, self.activation_options), signed=signed
                ),
            )

    def _try(self, which: str, make: Any) -> None:
        try:
            make()
        except (TypeError, ValueError) as error:
            place = f"{which}_options" if getattr(self, f"{which}_options") else f"{which} {getattr(self, which)!r}"
            raise type(error)(f"recipe: {place}: {error}") from None

    @property
    def weight_per_channel(self) -> bool:
        """Whether weights get one set of parameters per output channel."""
        return bool(WEIGHTS[self.weight].per_channel if self.per_channel is None else self.per_channel)

    def changed(self, values: Mapping[str, Any]) -> LayerRecipe:
        """This with other settings. Options are added to those there are, unless another quantizer takes over."""
        values = _said(values)
        for which in ("weight", "activation"):
            other = values.get(which, getattr(self, which)) != getattr(self, which)
            if other or f"{which}_options" in values:
                given = _options(which, values.get(f"{which}_options", {}))
                values[f"{which}_options"] = given if other else {**getattr(self, f"{which}_options"), **given}
        if "weight" in values and values["weight"] != self.weight:
            values.setdefault("per_channel", None)
        if "activation" in values and values["activation"] != self.activation:
            values.setdefault("signed_activations", None)
        return replace(self, **values)


def _seeded(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without a seed of their own these would draw one from torch's generator, and a recipe is to leave that alone."""
    return {"seed": 0, **options} if name in ("tempered", "noise") else options


#: Weight quantizers whose codes are levels from 0 up, so that 1 bit is two of them.
UNSIGNED = {"SATWeight", "EWGS", "DSQ", "DirectWeight"}
SETTINGS = tuple(sorted(f.name for f in fields(LayerRecipe)))


@dataclass(frozen=True)
class Phase:
    """A part of the run in which layers have other widths than in the end, or in which not everything is trained.

    Attributes:
        length: optimizer steps (int), or the fraction of the run (float, up to 1.0). None, in the last phase: all that is left.
        weight_bits, activation_bits: a layer has at least so many, so that layers that stay at 8 bits do; None is full precision
            (SAT: its clamped weights); ``"own"``: each layer its own.
        train: ``"all"``; ``"quantizers"``, weights and batch norm stay as they are (QIL, on whatever data the loop then takes); or
            ``"network"``, all but the quantizers.
    """

    length: int | float | None = None
    weight_bits: int | str | None = "own"
    activation_bits: int | str | None = "own"
    train: str = "all"

    def __post_init__(self) -> None:
        if isinstance(self.length, float):
            _number("phases: length", self.length, 0, 1, open_low=True)
        elif self.length is not None:
            if isinstance(self.length, bool) or not isinstance(self.length, int):
                raise TypeError(f"recipe: phases: length must be steps (int), a fraction (float) or None, got {self.length!r}")
            _number("phases: length", self.length, 1, math.inf)
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if bits == FLOAT:
                object.__setattr__(self, name, None)
            elif bits is not None and bits != "own":
                if isinstance(bits, bool) or not isinstance(bits, int):
                    raise TypeError(f"recipe: phases: {name} must be an int from 1 to 8, None or 'own', got {bits!r}")
                integer_range(f"recipe: phases: {name}", bits, False)
        if self.train not in TRAIN:
            raise ValueError(f"recipe: phases: train has no {self.train!r}{nearest(self.train, TRAIN)}")


TRAIN = ("all", "quantizers", "network")


@dataclass(frozen=True)
class Freezing:
    """Iterative freezing: after ``delay`` the threshold goes from ``first`` to ``last`` (:mod:`fastq.schedules`)."""

    first: float = 0.04
    last: float = 0.01
    delay: float = 0.25

    def __post_init__(self) -> None:
        _number("freezing: first", self.first, 0, 1)
        _number("freezing: last", self.last, 0, 1)
        _fraction("freezing: delay", self.delay)


@dataclass(frozen=True)
class Dampening:
    """The dampening loss: its weight by :func:`fastq.schedules.dampening_weight`, ``reduction`` as in :func:`fastq.dampening`."""

    last: float = 0.1
    delay: float = 0.25
    reduction: str = "kernel"

    def __post_init__(self) -> None:
        _number("dampening: last", self.last, 0, math.inf)
        _fraction("dampening: delay", self.delay)
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"recipe: dampening: reduction has no {self.reduction!r}{nearest(self.reduction, REDUCTIONS)}")


@dataclass(frozen=True)
class Tempering:
    """The decay of the noise: ``initial * exp(-rate * t / T)``, :func:`fastq.tempering_decay`."""

    initial: float = 1.0
    rate: float = 5.0

    def __post_init__(self) -> None:
        _number("tempering: initial", self.initial, 0, 1)
        _number("tempering: rate", self.rate, 0, math.inf)


def _fraction(what: str, value: Any) -> None:
    _number(what, value, 0, 1)
    if value == 1:
        raise ValueError(
            f"recipe: {what} must be below 1, a fraction of the run, got {value!r}: the schedule is longer than the run"
        )


@dataclass(frozen=True)
class Parameters:
    """What :func:`fastq.param_groups` makes of a recipe.

    Attributes:
        decay: which parameters of the network get weight decay: ``"weights"``, those of two and more dimensions; ``"dense"``, of
            these all but the ones of depthwise convolutions (SAT); ``"all"``, biases and norms too.
        quantizer_lr: learning rate of the quantizers' parameters, as a factor of the network's.
        quantizer_decay: weight decay of the quantizers' parameters, as a factor of the network's.
    """

    decay: str = "weights"
    quantizer_lr: float = 1.0
    quantizer_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in DECAY:
            raise ValueError(f"recipe: parameters: decay has no {self.decay!r}{nearest(self.decay, DECAY)}")
        _number("parameters: quantizer_lr", self.quantizer_lr, 0, math.inf)
        _number("parameters: quantizer_decay", self.quantizer_decay, 0, math.inf)


DECAY = ("weights", "dense", "all")


@dataclass(frozen=True)
class Recipe:
    """Which layers of a model get which quantizers, and what happens while they are trained. ``str()`` of it is TOML.

    Attributes:
        name: for people.
        default: for every Linear, Conv1d and Conv2d.
        first_last_bits: bits of weights and activations of the first and the last such layer, 1 only where their quantizers can
            have it; None treats them as the rest.
        overrides: layer name, glob pattern of names or type name (``"Conv2d"``) to attributes of :class:`LayerRecipe`. Later
            ones win over earlier ones, and all over ``first_last_bits``, ``first`` and ``last``.
        skip: names, patterns or type names of layers that stay in floating point.
        first, last: attributes of :class:`LayerRecipe` for the first and the last layer; they win over ``first_last_bits``.
        phases: of the run, in order; none: one phase in which every layer has its own width.
        freezing, dampening, tempering: what is scheduled, or None.
        batch_norm: training batches from which batch norm's statistics are estimated anew before an evaluation; 0: they are not.
        parameters: learning rates and weight decay.
    """

    name: str
    default: LayerRecipe = field(default_factory=LayerRecipe)
    first_last_bits: int | None = 8
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    first: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    freezing: Freezing | None = None
    dampening: Dampening | None = None
    tempering: Tempering | None = None
    batch_norm: int = 0
    parameters: Parameters = field(default_factory=Parameters)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"recipe: name must be a str, got {self.name!r}")
        for name, kind in PARTS.items():
            value = getattr(self, name)
            optional = name not in ("default", "parameters")
            if not (isinstance(value, kind) or (optional and value is None)):
                raise TypeError(f"recipe: {name} must be a {kind.__name__}{' or None' * optional}, got {type(value).__name__}")
        bits = FLOAT if self.first_last_bits is None else self.first_last_bits
        if bits == FLOAT:
            object.__setattr__(self, "first_last_bits", None)
        else:
            if isinstance(bits, bool) or not isinstance(bits, int):
                raise TypeError(f"recipe: first_last_bits must be an int from 1 to 8 or None, got {bits!r}")
            integer_range("recipe: first_last_bits", bits, False)
        if not isinstance(self.overrides, Mapping):
            raise TypeError(f"recipe: overrides must map patterns to settings, got {type(self.overrides).__name__}")
        for pattern, values in self.overrides.items():
            if not isinstance(pattern, str):
                raise TypeError(f"recipe: overrides must map patterns to settings, got the pattern {pattern!r}")
            self._check_settings(f"overrides[{pattern!r}]", values)
        at_ends = self.at_ends()
        for name in ("first", "last"):
            self._check_settings(name, getattr(self, name))
            self._check_settings(f"first_last_bits with {name}", getattr(self, name), at_ends)
            object.__setattr__(self, name, _said(getattr(self, name)))
        for what, wanted in (("skip", "patterns"), ("phases", "Phase")):
            value = getattr(self, what)
            if isinstance(value, str):
                raise TypeError(f"recipe: {what} must be a sequence of {wanted}, got one str, {value!r}")
            if not isinstance(value, Iterable):
                raise TypeError(f"recipe: {what} must be a sequence of {wanted}, got {type(value).__name__}")
        # A recipe is data: what the caller does to its dicts and lists later is no business of it.
        object.__setattr__(self, "overrides", {pattern: _said(values) for pattern, values in self.overrides.items()})
        object.__setattr__(self, "skip", tuple(self.skip))
        object.__setattr__(self, "phases", tuple(self.phases))
        for pattern in self.skip:
            if not isinstance(pattern, str):
                raise TypeError(f"recipe: skip must be a sequence of patterns, each a str, got {pattern!r}")
        self._check_phases()
        if isinstance(self.batch_norm, bool) or not isinstance(self.batch_norm, int):
            raise TypeError(f"recipe: batch_norm must be a number of batches, an int, got {self.batch_norm!r}")
        _number("batch_norm", self.batch_norm, 0, math.inf)

    def at_ends(self) -> LayerRecipe:
        """How the first and the last layer are quantized, before ``first``, ``last`` and ``overrides`` are heard."""
        bits, default = self.first_last_bits, self.default
        if bits is None:
            return default
        try:
            return replace(default, weight_bits=default.weight_bits and bits, activation_bits=default.activation_bits and bits)
        except (TypeError, ValueError) as error:
            raise type(error)(f"recipe: first_last_bits: {str(error).removeprefix('recipe: ')}") from None

    def _check_settings(self, place: str, values: Any, base: LayerRecipe | None = None) -> None:
        if not isinstance(values, Mapping):
            raise TypeError(f"recipe: {place} must map settings to values, got {type(values).__name__}")
        if unknown := [name for name in values if name not in SETTINGS]:
            raise ValueError(f"recipe: {place} has no setting {unknown[0]!r}{nearest(unknown[0], SETTINGS)}")
        try:
            (base or self.default).changed(values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"recipe: {place}: {str(error).removeprefix('recipe: ')}") from None

    def _check_phases(self) -> None:
        for phase in self.phases:
            if not isinstance(phase, Phase):
                raise TypeError(f"recipe: phases must be a sequence of Phase, got {type(phase).__name__}")
            if phase.length is None and phase is not self.phases[-1]:
                raise ValueError("recipe: phases: length may be None in the last phase alone, which then takes all that is left")
        if self.phases and self.phases[-1].length is not None:
            raise ValueError("recipe: phases: the last one must have the length None: it goes on to the end of the run")
        fractions = sum(phase.length for phase in self.phases if isinstance(phase.length, float))
        if fractions > 1 - 1e-9 and self.phases:
            raise ValueError(f"recipe: phases: the schedule is longer than the run: its fractions add up to {fractions:g}")
        direct = self.default.weight == "direct" or any(v.get("weight") == "direct" for v in self._settings())
        if direct and any(phase.weight_bits != "own" for phase in self.phases):
            raise ValueError(
                "recipe: phases: weight_bits must be 'own' where weights are codes ('direct'): their width cannot change"
            )

    def _settings(self) -> list[Mapping[str, Any]]:
        return [self.first, self.last, *self.overrides.values()]

    def phase_ends(self, steps: int) -> list[int]:
        """The optimizer step at which each phase ends, in a run of ``steps``; the last is ``steps``.

        Raises ``ValueError`` where a phase has no step; the message says how many steps are enough.
        """
        ends = self._ends(steps)
        if not _rise(ends):
            if ends[-2] >= steps:
                what = f"its phases before the last take {ends[-2]} of {steps} steps; give fractions (floats);"
            else:
                number = next(i for i, (a, b) in enumerate(itertools.pairwise(ends), 1) if a == b)
                what = f"its phase {number} has none of {steps} steps;"
            raise ValueError(
                f"recipe {self.name!r}: the schedule is longer than the run: {what} it needs at least {self._least_steps()} steps"
            )
        return ends[1:]

    def _ends(self, steps: int) -> list[int]:
        """From 0 on, whether or not there is room."""
        ends, reached = [0], 0.0
        for phase in self.phases[:-1]:
            length: Any = phase.length
            reached += length * steps if isinstance(length, float) else length
            ends.append(round(reached))
        return [*ends, steps]

    def _least_steps(self) -> int:
        """From so many on every run gives each phase a step."""
        lengths: list[Any] = [phase.length for phase in self.phases[:-1]]
        fractions = [length for length in lengths if isinstance(length, float)]
        taken = sum(length for length in lengths if isinstance(length, int))
        # more than one step for each is enough, however they are rounded
        least = int(max((taken + 1) / (1 - sum(fractions)), *(1 / f for f in fractions), 1)) + 1
        while least > 1 and _rise(self._ends(least - 1)):
            least -= 1
        return least

    def to_toml(self) -> str:
        """This recipe as TOML; what has its default value is left out. :meth:`from_toml` gives an equal one."""
        import tomli_w  # here, so that a machine without it can still train

        return tomli_w.dumps(_plain(self, always={"name", "default", "weight_bits", "activation_bits", "first_last_bits"}))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The recipe that ``text`` says. Raises ``ValueError`` for text that is no TOML, an unknown key, with the nearest known
        one, or values that do not fit; ``TypeError`` for values of another type."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"recipe: this is no TOML: {error}") from None
        values = dict(_known(data, cls, "the recipe"))
        if "name" not in values:
            raise ValueError("recipe: the key 'name' is missing")
        for name, kind in PARTS.items():
            if name in values:
                values[name] = _made(kind, values[name], name)
        if "phases" in values:
            if not isinstance(values["phases"], list):
                raise TypeError(f"recipe: phases must be an array of tables, got {type(values['phases']).__name__}")
            values["phases"] = [_made(Phase, value, "phases") for value in values["phases"]]
        return cls(**values)

    def __str__(self) -> str:
        return self.to_toml()


def _rise(ends: list[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(ends))


#: The attributes that are dataclasses themselves.
PARTS: dict[str, type[Any]] = {
    "default": LayerRecipe, "freezing": Freezing, "dampening": Dampening, "tempering": Tempering, "parameters": Parameters,
}  # fmt: skip


def _known(data: Any, kind: type[Any], place: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"recipe: {place} must be a table, got {type(data).__name__}")
    names = [f.name for f in fields(kind)]
    for key in data:
        if key not in names:
            raise ValueError(f"recipe: {place} has no key {key!r}{nearest(key, names)}")
    return data


def _made(kind: type[Any], data: Any, place: str) -> Any:
    return kind(**_known(data, kind, place))


def _plain(value: Any, always: Iterable[str] = ()) -> Any:
    """``value`` as TOML has it: dataclasses as tables without what has its default, None by its word."""
    if is_dataclass(value):
        result = {}
        kind: Any = type(value)
        default = kind("") if isinstance(value, Recipe) else kind()
        for f in fields(value):
            own = getattr(value, f.name)
            if f.name in always or own != getattr(default, f.name):
                if own is None and f.name.endswith("bits"):
                    own = FLOAT
                if own is not None:
                    result[f.name] = _plain(own, always)
        return result
    if isinstance(value, Mapping):
        return {
            key: _plain(AUTO if v is None and key in DECIDED else FLOAT if v is None else v, always) for key, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(v, always) for v in value]
    return value
