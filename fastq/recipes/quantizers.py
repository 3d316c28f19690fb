"""The quantizers that a recipe may name, and how each is made for a layer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..nn import DSQ, EWGS, LSQ, PACT, QIL, ChannelError, DirectWeight, NoiseQuant, OscillationLSQ, SATWeight, Tempered

__all__ = ["ACTIVATIONS", "WEIGHTS", "Kind", "activation_quantizer", "nearest", "weight_quantizer"]

#: What a recipe says elsewhere, or the layer says: no options.
MANAGED = {"self", "bits", "weight", "signed", "two_sided", "axis", "group_size", "shape", "n_out", "dtype"}


@dataclass(frozen=True)
class Kind:
    """A quantizer by its name in a recipe.

    Attributes:
        module: of :mod:`fastq.nn`.
        per_channel: whether a weight gets one set of parameters per output channel unless the recipe says; None: it cannot.
        signed: whether activations are told apart by sign (``signed_activations``).
    """

    module: type[nn.Module]
    per_channel: bool | None = None
    signed: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The keyword arguments of the module that a recipe may set."""
        found: set[str] = set()
        for base in self.module.__mro__:
            if base is nn.Module or "__init__" not in vars(base):
                continue
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
        return tuple(sorted(found - MANAGED))


WEIGHTS = {
    "lsq": Kind(LSQ, True),
    "oscillation": Kind(OscillationLSQ, False),
    "sat": Kind(SATWeight),
    "qil": Kind(QIL, False),
    "ewgs": Kind(EWGS, False),
    "dsq": Kind(DSQ, False),
    "tempered": Kind(Tempered, True),
    "noise": Kind(NoiseQuant, True),
    "direct": Kind(DirectWeight),
}
ACTIVATIONS = {
    "lsq": Kind(LSQ, signed=True),
    "pact": Kind(PACT, signed=True),
    "qil": Kind(QIL, signed=True),
    "ewgs": Kind(EWGS),
    "dsq": Kind(DSQ),
    "tempered": Kind(Tempered, signed=True),
    "noise": Kind(NoiseQuant, signed=True),
    "channel_error": Kind(ChannelError, signed=True),
}


def nearest(name: Any, known: Iterable[str]) -> str:
    """What to say of an unknown name: which was meant, perhaps, and which there are."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint or ';'} known are {', '.join(known)}"


def weight_quantizer(
    name: str, bits: Any, options: Mapping[str, Any], *, channels: int | None = None, normalized: bool = False
) -> Any:
    """The quantizer ``name`` of a weight; ``channels``: one set of parameters for each of so many outputs.

    ``normalized``: a batch norm takes the layer's output, so that no scale is needed: SAT's weights are then not rescaled, and
    QIL's have none; otherwise SAT's are rescaled by its constant and QIL learns one, unless ``options`` say.
    """
    arguments = dict(options)
    if channels is not None:
        arguments |= {"axis": 0, "shape": (channels,)}
    if name in ("qil", "ewgs"):
        arguments["weight"] = True
    if name == "qil":
        arguments.setdefault("learn_scale", not normalized)
    if name == "sat":
        arguments.setdefault("rescale", "none" if normalized else "constant")
    if isinstance(kept := arguments.get("residual_dtype"), str):  # TOML has no dtypes
        arguments["residual_dtype"] = getattr(torch, kept, kept)
    return WEIGHTS[name].module(bits, **arguments)


def activation_quantizer(
    name: str, bits: Any, options: Mapping[str, Any], *, signed: bool | None, linear: bool = False, normalized: bool = False
) -> Any:
    """The quantizer ``name`` of a layer's input; ``signed`` None: the first batch decides. ``normalized``: as for weights."""
    arguments = dict(options)
    kind = ACTIVATIONS[name]
    if kind.signed:
        arguments["two_sided" if name == "pact" else "signed"] = signed
    if name in ("qil", "ewgs"):
        arguments["weight"] = False
    if name == "qil":
        arguments.setdefault("learn_scale", not normalized)
    if name == "pact":
        arguments.setdefault("init", "linear" if linear else "conv")
    if name == "channel_error":
        arguments["axis"] = -1 if linear else 1
    return kind.module(bits, **arguments)
