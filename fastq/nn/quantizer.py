"""The LSQ / LSQ+ quantizer as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..granularity import check_input, compute_dtype, normalize_axis, parameter_shape
from ..ops import lsq
from ..ops.lsq import check, gradient_factor
from ..ranges import BOUNDARIES, integer_range
from ..reference.lsq import codes, effective_step
from .base import Grid, Quantizer
from .initializers import INITIALIZERS, initial_values

__all__ = ["LSQ"]


class LSQ(Quantizer):
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

    step: nn.Parameter
    initialized: torch.Tensor
    is_signed: torch.Tensor

    def __init__(
        self, bits: int | tuple[int, int], *, signed: bool | None = True, narrow: bool = False, axis: int | None = None,
        group_size: int | None = None, shape: tuple[int, ...] = (1,), offset: bool = False, init: str = "lsq",
        boundary: str = "open", grad_scale: float | str = "lsq", offset_grad_scale: float = 1.0, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        if init not in INITIALIZERS:
            raise ValueError(f"{name}: init must be one of {', '.join(INITIALIZERS)}, got {init!r}")
        if boundary not in BOUNDARIES:
            raise ValueError(f"{name}: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        if axis is not None and group_size is not None:
            raise ValueError(f"{name}: axis={axis} and group_size={group_size} exclude each other; give one of them")
        for what, value in (("axis", axis), ("group_size", group_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name}: {what} must be an int or None, got {value!r}")
        if group_size is not None and group_size < 1:
            raise ValueError(f"{name}: group_size must be at least 1, got {group_size}")
        integer_range(name, bits, bool(signed), narrow and signed is not None)
        gradient_factor(grad_scale, name)
        if not eps > 0:
            raise ValueError(f"{name}: eps must be positive, got {eps}")
        self.bits, self.narrow, self.axis, self.group_size, self.init = bits, narrow, axis, group_size, init
        self.boundary, self.grad_scale, self.offset_grad_scale, self.eps = boundary, grad_scale, offset_grad_scale, eps
        self.step = nn.Parameter(torch.ones(shape, dtype=torch.float32))
        self.offset = nn.Parameter(torch.zeros(shape, dtype=torch.float32)) if offset else None
        if axis is None and group_size is None and self.step.numel() != 1:
            raise ValueError(f"{name}: shape must be of one element without axis and group_size, got {tuple(self.step.shape)}")
        self.decides_sign = signed is None
        # not bool: torch.optim.swa_utils subtracts buffers, which bool tensors refuse
        self.register_buffer("initialized", torch.tensor(False, dtype=torch.uint8))
        self.register_buffer("is_signed", torch.tensor(signed is not False, dtype=torch.uint8))
        # What the buffers say, where reading them would wait for a GPU.
        self._initialized, self._signed = False, signed is not False
        self.register_load_state_dict_post_hook(_read_buffers)

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

    def _forget(self) -> None:
        self.initialized.fill_(False)
        self._initialized = False

    def _range(self, signed: bool | None = None) -> tuple[int, int]:
        signed = self._signed if signed is None else signed
        return integer_range(type(self).__name__, self.bits, signed, self.narrow and signed)

    def initialize(self, x: torch.Tensor, *, synchronize: bool = True) -> None:
        """Set step and offset from ``x``; with ``synchronize`` in a process group all ranks must call, and get the same.

        Nothing happens on the meta device, which has no values, nor where ``x`` is empty (on all ranks). Raises ``TypeError`` or
        ``ValueError`` where ``x`` does not fit the quantizer, and then leaves it as it was.
        """
        name = type(self).__name__
        check_input(name, x)
        needed = parameter_shape(x, *normalize_axis(name, x, self.axis, self.group_size))
        if (self.step.numel() != 1) if needed == () else tuple(self.step.shape) != needed:
            raise ValueError(
                f"{name}: step must have shape {needed or (1,)} for x of shape {tuple(x.shape)}, got {tuple(self.step.shape)}"
            )
        if x.is_meta:
            return
        group = synchronize and torch.distributed.is_available() and torch.distributed.is_initialized()
        signed = self._signed
        if self.decides_sign:
            negative = (x.detach() < 0).any().to(torch.int32)
            if group:
                torch.distributed.all_reduce(negative, torch.distributed.ReduceOp.MAX)
            signed = bool(negative)
        qmin, qmax = self._range(signed)
        where: dict[str, Any] = {"axis": self.axis, "group_size": self.group_size, "offset": self.offset is not None}
        values = torch.stack(initial_values(x, self.init, qmin, qmax, **where))
        seen = x.numel() > 0
        if group:
            votes = values.new_tensor([seen])
            values *= votes
            for t in (values, votes):
                torch.distributed.all_reduce(t)
            values /= votes
            seen = bool(votes > 0)
        if not seen:
            return
        with torch.no_grad():
            self.step.copy_(values[0].view_as(self.step))
            if self.offset is not None:
                self.offset.copy_(values[1].view_as(self.offset))
            self.is_signed.fill_(signed)
            self.initialized.fill_(True)
        self._initialized, self._signed = True, signed

    def _ready(self, x: torch.Tensor) -> None:
        """Before a forward pass: the first batch, unless a loaded or averaged state says that it has been."""
        if not self._initialized:
            _read_buffers(self)  # DDP, averaging and the like write into buffers and tell nobody
            if not self._initialized:
                self.initialize(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        step, offset = self._parameters_for(x)
        return lsq(
            x, step, bits=self._range(), offset=offset, axis=self.axis, group_size=self.group_size,
            boundary=self.boundary, grad_scale=self.grad_scale, offset_grad_scale=self.offset_grad_scale, eps=self.eps,
        )  # fmt: skip

    def _parameters_for(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        check_input(type(self).__name__, x)
        dtype = compute_dtype(x)
        if self.step.dtype == dtype:
            return self.step, self.offset
        return self.step.to(dtype), None if self.offset is None else self.offset.to(dtype)

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

    def _require_first_batch(self, what: str) -> None:
        if not self._initialized:
            _read_buffers(self)
            if not self._initialized:
                raise RuntimeError(
                    f"{type(self).__name__}: {what}() of a quantizer that has seen no batch, and so has no step yet; "
                    "run one through it"
                )

    def effective_step(self) -> torch.Tensor:
        """``max(|step|, eps)``: the step that the kernels use."""
        return effective_step(self.step.detach(), self.eps)

    def extra_repr(self) -> str:
        sign = "by first batch" if self.decides_sign and not self._initialized else str(list(self._range()))
        grain = "per tensor" if self.group_size is None else f"group_size={self.group_size}"
        grain = grain if self.axis is None else f"axis={self.axis}"
        return (
            f"bits={self.bits}, range={sign}, {grain}, steps={self.step.numel()}, offset={self.offset is not None}, "
            f"init={self.init!r}, boundary={self.boundary!r}, initialized={self._initialized}"
        )


def _read_buffers(module: nn.Module, incompatible: Any = None) -> None:
    if isinstance(module, LSQ) and not module.initialized.is_meta:
        module._initialized, module._signed = bool(module.initialized), bool(module.is_signed)
