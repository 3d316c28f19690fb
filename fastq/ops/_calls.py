"""Calls of the integer products like earlier ones: what was checked of their numbers is not checked again.

The checks of a call take longer than a small product does. Of a call that went through, what its arguments came to is kept, under a
key of all that is no tensor, each number with its type, and of the shapes, dtypes and devices; tensors are looked at in every call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import checks
from ..engine.call import FLOATS, Problem, Window
from ..packing import PackedWeight

__all__ = ["Known", "keep", "key_of", "known"]


class Known(NamedTuple):
    """What the arguments of a call come to."""

    problem: Problem
    window: Window | None
    shape: tuple[int, ...]  # of the output
    x_zero_point: int
    activation: int  # an index of ACTIVATIONS
    out_dtype: torch.dtype
    out_codes: tuple[int, int, int]


_kept: dict[tuple[Any, ...], Known] = {}
#: Shapes may be other ones in every call; then all is forgotten now and then.
LIMIT = 4096


def key_of(x: Any, weight: Any, residual: Any, numbers: tuple[Any, ...], given: tuple[bool, ...]) -> tuple[Any, ...] | None:
    """The key of a call, or None where every call has to be looked at: for a compiler, in the checking mode, where something has a
    gradient. ``given``: which of the other tensors there are."""
    if torch.compiler.is_compiling() or checks.enabled() or type(x) is not torch.Tensor or type(weight) is not PackedWeight:
        return None
    if x.requires_grad or x.layout is not torch.strided:
        return None
    if residual is not None:
        if type(residual) is not torch.Tensor or residual.requires_grad or residual.dtype not in FLOATS:
            return None
        residual = residual.shape, residual.dtype, residual.device
    return x.shape, x.dtype, x.device, weight.form, residual, given, numbers, *map(type, numbers)


def known(key: tuple[Any, ...] | None) -> Known | None:
    """What was kept of such a call."""
    try:
        return None if key is None else _kept.get(key)
    except TypeError:  # a list, which has no hash: the call is checked
        return None


def keep(key: tuple[Any, ...] | None, found: Known) -> None:
    """For the next such call."""
    if key is None:
        return
    if len(_kept) >= LIMIT:
        _kept.clear()
    try:
        _kept[key] = found
    except TypeError:
        return
