"""The LSQ / LSQ+ quantizer as a module."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..granularity import normalize_axis
from ..ops import lsq
from ..ops.lsq import check, gradient_factor
from ..ranges import BOUNDARIES, check_eps, check_number, integer_range
from ..reference.lsq import codes, effective_step
from .base import FirstBatch, Grid
from .initializers import INITIALIZERS, initial_values

__all__ = ["LSQ"]


def check_factor(op: str, name: str, value: float) -> None:
    """The factor ``name`` of a gradient is a finite float; ``TypeError`` or ``ValueError``."""
    check_number(op, name, value)
    if not math.isfinite(value):
        raise ValueError(f"{op}: {name} must be finite, got {value}")


class LSQ(FirstBatch):
    """Fake-quantize with a learned step (LSQ) and, with ``offset``, a learned offset (LSQ+): :func:`fastq.lsq` with its state.

    The first batch sets the step (and offset), by ``init``, in training and in evaluation mode; in a process group every rank
    gets the mean of what the ranks saw, so all have to take part. An empty batch is not the first.
    That it happened is kept in the buffer ``initialized``, so that a loaded module goes on from where it was.

    Args:
        bits: 1 to 8, or ``(qmin, qmax)``.
        signed: whether codes go below zero; None decides by the first batch (unsigned if it has no negative element).
        narrow: drop the lowest signed code.
        axis: one step per index of this axis.
        group_size: one step per so many consecutive elements of the last axis.
        shape: of the step: ``(C,)`` with ``axis``, ``x.shape[:-1] + (K // group_size,)`` with ``group_size``; default ``(1,)``.
        offset: learn an offset as well.
        init: ``"lsq"``, ``"lsq+"`` or ``"mse"``; see :mod:`fastq.nn.initializers`.
        boundary, grad_scale, offset_grad_scale, eps: as in :func:`fastq.lsq`.

    Input: ``x`` as :func:`fastq.lsq` takes it. Output: of its shape, dtype and layout.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.

    Attributes:
        step: parameter, float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``).
        offset: parameter of the same shape, or None.
        initialized, is_signed: buffers, uint8, 0 or 1.

    Under ``torch.compile(fullgraph=True)`` run one batch before compiling: the first one looks at its values.
    """

    learned = ("step", "offset")
    step: nn.Parameter
    offset: nn.Parameter | None
    is_signed: torch.Tensor

    def __init__(
        self, bits: int | tuple[int, int], *, signed: bool | None = True, narrow: bool = False, axis: int | None = None,
        group_size: int | None = None, shape: tuple[int, ...] = (1,), offset: bool = False, init: str = "lsq",
        boundary: str = "open", grad_scale: float | str = "lsq", offset_grad_scale: float = 1.0, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__(axis, group_size, shape, {"step": 1.0, "offset": 0.0 if offset else None}, signed=signed)
        name = type(self).__name__
        if init not in INITIALIZERS:
            raise ValueError(f"{name}: init must be one of {', '.join(INITIALIZERS)}, got {init!r}")
        if boundary not in BOUNDARIES:
            raise ValueError(f"{name}: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        integer_range(name, bits, bool(signed), narrow and signed is not None)
        gradient_factor(grad_scale, name)
        if not isinstance(grad_scale, str):
            check_factor(name, "grad_scale", grad_scale)
        check_factor(name, "offset_grad_scale", offset_grad_scale)
        check_eps(name, eps)
        self.bits, self.narrow, self.init = bits, narrow, init
        self.boundary, self.grad_scale, self.offset_grad_scale, self.eps = boundary, grad_scale, offset_grad_scale, eps
        self._signed = signed is not False
        self.register_buffer("is_signed", torch.tensor(self._signed, dtype=torch.uint8))

    @property
    def qmin(self) -> int:
        return self._range()[0]

    @property
    def qmax(self) -> int:
        return self._range()[1]

    def _change_bits(self, bits: int | tuple[int, int]) -> None:
        name = type(self).__name__
        new = integer_range(name, bits, self._signed, self.narrow and self._signed)
        if self.decides_sign and not self._initialized:
            integer_range(name, bits, True, self.narrow)  # either may come
        with torch.no_grad():
            if self._initialized:
                self.step.mul_(self.qmax / new[1])
        self.bits = bits

    def _range(self, signed: bool | None = None) -> tuple[int, int]:
        signed = self._signed if signed is None else signed
        return integer_range(type(self).__name__, self.bits, signed, self.narrow and signed)

    def _check_sign(self, signed: bool) -> None:
        self._range(signed)

    def _first_values(self, rows: torch.Tensor) -> list[torch.Tensor]:
        step, offset = initial_values(rows, self.init, *self._range(), axis=0, offset=self.offset is not None)
        return [step] if self.offset is None else [step, offset]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        step, offset = self._parameters_for(x)
        return lsq(
            x, step, bits=self._range(), offset=offset, axis=self.axis, group_size=self.group_size,
            boundary=self.boundary, grad_scale=self.grad_scale, offset_grad_scale=self.offset_grad_scale, eps=self.eps,
        )  # fmt: skip

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of ``x`` as int32, by the rounding of the forward pass: ``y = effective_step() * codes + offset``.

        NaN, for which no integer stands, has an arbitrary one. Raises ``RuntimeError`` before the first batch, ``TypeError`` or
        ``ValueError`` where ``x`` does not fit the quantizer.
        """
        self._require_first_batch("codes")
        step, offset = self._parameters_for(x)
        name = type(self).__name__
        check(name, x, step, offset, *normalize_axis(name, x, self.axis, self.group_size))
        return codes(x, step, offset, self.qmin, self.qmax, self.axis, self.group_size, self.eps)

    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """``y = effective_step() * k + offset``. Raises ``RuntimeError`` before the first batch."""
        self._require_first_batch("grid")
        return Grid(self.qmin, self.qmax, self.effective_step(), None if self.offset is None else self.offset.detach())

    def effective_step(self) -> torch.Tensor:
        """``max(|step|, eps)``: the step that the kernels use."""
        return effective_step(self.step.detach(), self.eps)

    def extra_repr(self) -> str:
        sign = "by first batch" if self.decides_sign and not self._initialized else str(list(self._range()))
        return (
            f"bits={self.bits}, range={sign}, {self._grain()}, steps={self.step.numel()}, offset={self.offset is not None}, "
            f"init={self.init!r}, boundary={self.boundary!r}, initialized={self._initialized}"
        )
