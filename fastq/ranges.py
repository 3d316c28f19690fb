"""Integer ranges: from ``bits`` to ``(qmin, qmax)``, and the edges of the gradient's mask; what a number or a flag may be.

=====================  =====================  ====================
``bits=b``             ``qmin``               ``qmax``
=====================  =====================  ====================
signed                 ``-2**(b-1)``          ``2**(b-1) - 1``
signed, ``narrow``     ``-(2**(b-1) - 1)``    ``2**(b-1) - 1``
unsigned               ``0``                  ``2**b - 1``
=====================  =====================  ====================
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

__all__ = ["BOUNDARIES", "check_eps", "check_flag", "check_flags", "check_number", "integer_range", "level_count", "mask_bounds"]

#: Where the straight-through gradient passes, as the ops number it. ``v = x / step``:
#: open ``qmin < v < qmax``; closed ``qmin <= v <= qmax``; rounded ``qmin <= round(v) <= qmax``.
BOUNDARIES = {"open": 0, "closed": 1, "rounded": 2}

#: Codes of a range given as ``bits=(qmin, qmax)`` stay exactly representable and roundable in fp32.
LARGEST_CODE = 2**16

#: The normal positive numbers of fp32: what is smaller may count as 0 on some backend, what is larger as infinite.
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, torch.finfo(torch.float32).max

_NUMBERS = (float, int, torch.SymFloat)


def check_number(op: str, name: str, value: Any, expected: str = "a float") -> None:
    """``value`` is a number, which neither a bool nor a tensor is; otherwise ``TypeError``."""
    if not isinstance(value, _NUMBERS) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be {expected}, got {type(value).__name__}")


def check_eps(op: str, eps: float) -> None:
    """``eps``, the smallest step used, is a number that fp32 has and can divide by; ``TypeError`` or ``ValueError``."""
    if type(eps) is not float:
        check_number(op, "eps", eps)
    if not SMALLEST_FLOAT <= eps <= LARGEST_FLOAT:
        raise ValueError(f"{op}: eps must be positive and finite in float32, at least 2**-126, got {eps}")


def check_flag(op: str, name: str, value: Any) -> None:
    """``value`` is True or False; otherwise ``TypeError``."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def check_flags(op: str, **flags: Any) -> None:
    """Each is True or False; otherwise ``TypeError``."""
    for name, value in flags.items():
        check_flag(op, name, value)


def integer_range(op: str, bits: int | tuple[int, int], signed: bool = True, narrow: bool = False) -> tuple[int, int]:
    """``(qmin, qmax)`` for ``bits``: 1 to 8, or the pair itself. ``ValueError`` for a range no quantizer can have."""
    if type(signed) is not bool or type(narrow) is not bool:  # a call costs more than all of this function
        check_flags(op, signed=signed, narrow=narrow)
    if isinstance(bits, tuple):
        if len(bits) != 2 or not all(isinstance(b, int) and not isinstance(b, bool) for b in bits):
            raise TypeError(f"{op}: bits must be an int from 1 to 8 or a pair (qmin, qmax) of ints, got {bits!r}")
        qmin, qmax = bits
        if qmin >= qmax:
            raise ValueError(f"{op}: bits=(qmin, qmax) needs qmin < qmax, got ({qmin}, {qmax})")
        if max(-qmin, qmax) > LARGEST_CODE:
            raise ValueError(f"{op}: bits=(qmin, qmax) must lie within ±{LARGEST_CODE}, got ({qmin}, {qmax})")
    else:
        if isinstance(bits, bool) or not isinstance(bits, int):
            raise TypeError(f"{op}: bits must be an int from 1 to 8 or a pair (qmin, qmax) of ints, got {bits!r}")
        if not 1 <= bits <= 8:
            raise ValueError(f"{op}: bits must be from 1 to 8 (or a pair (qmin, qmax)), got {bits}")
        if narrow and not signed:
            raise ValueError(f"{op}: narrow=True is for signed ranges; an unsigned range has no symmetric form")
        qmax = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        qmin = -(qmax if narrow else qmax + 1) if signed else 0
    if qmax <= 0:
        raise ValueError(
            f"{op}: the range ({qmin}, {qmax}) has no positive code, and the formula divides by qmax; "
            "1 bit must be signed=False, or give bits=(qmin, qmax) with qmax >= 1"
        )
    return qmin, qmax


def level_count(op: str, bits: int, signed: bool = False) -> int:
    """``L``, the number of steps from 0 to the largest level: ``2**b - 1``, of each sign ``2**(b-1) - 1`` with ``signed``."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{op}: bits must be an int from {2 if signed else 1} to 8, got {bits!r}")
    if not 1 + signed <= bits <= 8:
        none = "; 1 bit has no level beside 0" if signed and bits == 1 else ""
        raise ValueError(f"{op}: bits must be from {2 if signed else 1} to 8, got {bits}{none}")
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


@functools.lru_cache(maxsize=None)
def mask_bounds(qmin: int, qmax: int, boundary: int, dtype: torch.dtype) -> tuple[float, float]:
    """``(lower, upper)`` such that the gradient passes exactly where ``lower < v < upper``, in ``dtype`` arithmetic.

    One strict comparison then serves the three conventions: an edge that belongs to the range is moved to the
    neighbouring float. For ``rounded`` the edge lies half a step out, and the tie belongs to the even code.
    """
    number = np.float64 if dtype == torch.float64 else np.float32
    lower, upper = float(qmin), float(qmax)
    lower_belongs = upper_belongs = boundary != BOUNDARIES["open"]
    if boundary == BOUNDARIES["rounded"]:
        lower, upper = lower - 0.5, upper + 0.5
        lower_belongs, upper_belongs = qmin % 2 == 0, qmax % 2 == 0
    if lower_belongs:
        lower = float(np.nextafter(number(lower), number(-math.inf)))
    if upper_belongs:
        upper = float(np.nextafter(number(upper), number(math.inf)))
    return lower, upper
