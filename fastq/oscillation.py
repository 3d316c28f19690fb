"""The state of oscillation tracking: eight bytes a weight, in two int32 planes of the weight's shape and layout.

========  =======  ============================================================================================
plane     bits     field
========  =======  ============================================================================================
freeze    31       frozen
freeze    30, 29   direction of the last switch: 0 none yet, 1 up, 2 down
freeze    28 to 0  the code's moving average less ``qmin``, in 8.21 fixed point; of a frozen weight its integer, exactly
track     31 to 8  the frequency of oscillation ``f``, a fraction of 2**24
track     7 to 0   the previous code less ``qmin``
========  =======  ============================================================================================

Why fixed point: half precision does not do. With a momentum of 0.001 a bfloat16 ``f`` never decays (the update is below half a
unit in its last place) and a float16 one is 14 % off after 2000 steps; 24 bits are off by ``2**-25 / momentum`` at most, 3e-5.
Fields are rounded by integers (:func:`toward`), so that they have the same bits on every backend.

Why two planes: the forward pass of a layer with frozen weights (:func:`fastq.frozen_lsq`) needs one bit and one integer, so it
reads one plane, 4 bytes a weight. Once a weight is frozen its average has no further use, and its field holds the integer.

Why codes count from ``qmin``: signed and unsigned ranges of up to 256 codes then fit the same 8 bits, and no field has a sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["OscillationState"]

FREQUENCY_BITS, AVERAGE_BITS, CODE_BITS = 24, 21, 8
ONE = 1 << FREQUENCY_BITS
CODE_MASK = (1 << CODE_BITS) - 1
AVERAGE_MASK = (1 << (CODE_BITS + AVERAGE_BITS)) - 1
DIRECTION_SHIFT = CODE_BITS + AVERAGE_BITS
#: Below it, one reversal leaves no trace in the 24 bits of ``f``.
SMALLEST_MOMENTUM = 2.0**-FREQUENCY_BITS


def check_range(op: str, qmin: int, qmax: int) -> None:
    """At most 256 codes; otherwise ``ValueError``."""
    if qmax - qmin > CODE_MASK:
        raise ValueError(f"{op}: bits must give at most 256 codes, which the state keeps in 8 bits, got the range [{qmin}, {qmax}]")


def momentum_in_fp32(op: str, momentum: float) -> float:
    """``momentum`` rounded to fp32, whose 24 bits keep the product with a 29-bit field exact in fp64."""
    if isinstance(momentum, bool) or not isinstance(momentum, (int, float)):
        raise TypeError(f"{op}: momentum must be a float, got {type(momentum).__name__}")
    if not 0 < momentum < 1:
        raise ValueError(f"{op}: momentum must lie between 0 and 1, got {momentum}")
    if momentum < SMALLEST_MOMENTUM:
        raise ValueError(f"{op}: momentum must be at least 2**-24, below which 24 bits of frequency never move, got {momentum}")
    mantissa, exponent = math.frexp(momentum)
    return math.ldexp(round(mantissa * 2**24), exponent - 24)


def frequency_limit(op: str, threshold: float) -> int:
    """The largest 24-bit frequency that does not exceed ``threshold``; ``2**24``, which none exceeds, where nothing freezes."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"{op}: threshold must be a float, got {type(threshold).__name__}")
    if not threshold >= 0:
        raise ValueError(f"{op}: threshold must be 0 (nothing freezes) or positive, got {threshold}")
    return ONE if threshold == 0 or threshold >= 1 else math.floor(threshold * ONE)


def ratio(momentum: float) -> tuple[int, int]:
    """``(m, k)`` with ``momentum = m / 2**k`` and ``m <= 2**24``, of a momentum in fp32; ``(0, 1)`` for 0."""
    mantissa, exponent = math.frexp(momentum)
    return round(mantissa * 2**24), 24 - exponent if momentum else 1


def toward(value: torch.Tensor, target: torch.Tensor | int, momentum: float) -> torch.Tensor:
    """``value + floor((target - value) * momentum + 1/2)`` of int64 tensors, exactly, for a momentum of fp32."""
    m, k = ratio(momentum)
    return value + (((target - value) * m + (1 << (k - 1))) >> k)


@dataclass(frozen=True, eq=False)
class OscillationState:
    """What :func:`fastq.oscillation_step_` knows of a weight: made by its first call, updated in place by the others.

    Args:
        freeze: int32, of the shape of the weight: frozen bit, direction, moving average (see :mod:`fastq.oscillation`).
        track: int32, of the same shape and device: frequency and previous code.
        qmin, qmax: the range of the codes, at most 256 of them.

    The two planes are what to store: they are buffers of :class:`fastq.nn.OscillationLSQ`. The properties read them.

    Raises:
        TypeError: a plane is no dense int32 tensor.
        ValueError: the planes differ in shape or device, or the range has more than 256 codes.
    """

    freeze: torch.Tensor
    track: torch.Tensor
    qmin: int
    qmax: int

    def __post_init__(self) -> None:
        for name, plane in (("freeze", self.freeze), ("track", self.track)):
            if not isinstance(plane, torch.Tensor) or plane.dtype != torch.int32 or plane.layout is not torch.strided:
                got = f"{plane.dtype}, {plane.layout}" if isinstance(plane, torch.Tensor) else type(plane).__name__
                raise TypeError(f"OscillationState: {name} must be a dense int32 tensor, got {got}")
        if self.freeze.shape != self.track.shape or self.freeze.device != self.track.device:
            raise ValueError(
                f"OscillationState: freeze and track must have one shape and device, got {tuple(self.freeze.shape)} on "
                f"{self.freeze.device} and {tuple(self.track.shape)} on {self.track.device}"
            )
        check_range("OscillationState", self.qmin, self.qmax)

    @staticmethod
    def of(codes: torch.Tensor, qmin: int, qmax: int) -> OscillationState:
        """A state that has seen ``codes`` (int32, of the weight's shape and layout) once: no switch, nothing frozen."""
        first = codes - qmin
        return OscillationState(first << AVERAGE_BITS, first, qmin, qmax)

    @property
    def shape(self) -> torch.Size:
        return self.freeze.shape

    @property
    def device(self) -> torch.device:
        return self.freeze.device

    @property
    def frozen(self) -> torch.Tensor:
        """bool: where the weight is frozen."""
        return self.freeze < 0

    @property
    def frequency(self) -> torch.Tensor:
        """float32, exact: the moving average of "this step reversed the last switch", from 0 to below 1."""
        return ((self.track >> CODE_BITS) & (ONE - 1)).to(torch.float32) / ONE

    @property
    def codes(self) -> torch.Tensor:
        """int32: the codes of the last step."""
        return (self.track & CODE_MASK) + self.qmin

    @property
    def direction(self) -> torch.Tensor:
        """int32: of the last switch: 1 up, -1 down, 0 where there was none yet."""
        field = (self.freeze >> DIRECTION_SHIFT) & 3
        return torch.where(field == 2, -1, field)

    @property
    def average(self) -> torch.Tensor:
        """float64, exact: the moving average of the codes, updated while a threshold is given; of a frozen weight its integer."""
        return (self.freeze & AVERAGE_MASK).to(torch.float64) / (1 << AVERAGE_BITS) + self.qmin

    @property
    def frozen_codes(self) -> torch.Tensor:
        """int32: the integer that a frozen weight is held at; elsewhere the one it would be held at if it froze now."""
        return rounded_average(self.freeze & AVERAGE_MASK, self.qmin) + self.qmin

    def to(self, device: torch.device | str) -> OscillationState:
        """The state on ``device``; planes that are there already are shared."""
        return OscillationState(self.freeze.to(device), self.track.to(device), self.qmin, self.qmax)

    def clone(self) -> OscillationState:
        """A state of its own with the same values."""
        return OscillationState(self.freeze.clone(), self.track.clone(), self.qmin, self.qmax)


def rounded_average(average: torch.Tensor, qmin: int) -> torch.Tensor:
    """The 8.21 average as an integer less ``qmin``, half to even: whether an integer is even, ``qmin`` has a say in."""
    odd = ((average >> AVERAGE_BITS) + qmin) & 1
    return (average + ((1 << (AVERAGE_BITS - 1)) - 1) + odd) >> AVERAGE_BITS


def check_state(op: str, state: object, x: torch.Tensor, name: str, qmin: int, qmax: int) -> None:
    """``state`` is an :class:`OscillationState` for ``x``, the argument ``name``, and the range: else TypeError or ValueError."""
    if not isinstance(state, OscillationState):
        raise TypeError(f"{op}: state must be a fastq.OscillationState, got {type(state).__name__}")
    if state.shape != x.shape:
        raise ValueError(f"{op}: state must have the shape of {name}, {tuple(x.shape)}, got {tuple(state.shape)}")
    if state.device != x.device:
        raise ValueError(
            f"{op}: state must be on the device of {name}, {x.device}, got {state.device}; move it by state.to(device)"
        )
    if (state.qmin, state.qmax) != (qmin, qmax):
        raise ValueError(
            f"{op}: state holds codes of the range [{state.qmin}, {state.qmax}], and bits gives [{qmin}, {qmax}]; "
            "start a new one with state=None"
        )
