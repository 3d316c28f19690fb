"""What the quantizers' modules share: widths, integer codes, granularity, parameters that keep their precision, the first batch.

Quantizer               what every layer and recipe relies on; a quantizer without parameters derives from it directly
  LearnedQuantizer      parameters of one shape: per tensor, per channel, per group
    FirstBatch          ... that the first batch sets
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..granularity import check_input, compute_dtype, expand, normalize_axis, parameter_shape
from .initializers import as_rows

__all__ = ["FirstBatch", "Grid", "LearnedQuantizer", "Quantizer"]


def keeping_precision(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What ``nn.Module._apply`` is given, but float tensors become float32 where they would become less."""

    def apply(t: torch.Tensor) -> torch.Tensor:
        new = fn(t)
        return t.to(new.device, torch.float32) if t.is_floating_point() and new.dtype.itemsize < 4 else new

    return apply


def in_group() -> bool:
    """Whether this process is one of several that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@dataclass(frozen=True)
class Grid:
    """The values that a quantizer gives: evenly spaced, one for each integer code ``k`` from ``qmin`` to ``qmax``.

    ::

        y = step * k + offset                odd:  y = step * (2 * k + 1) + offset

    What a quantizer computes is this to a few ulp of its largest value, and for LSQ, PACT, SAT and DSQ bit for bit.

    Attributes:
        qmin, qmax: of the codes.
        step: positive (0 where SAT's weights have no variance), float32 (float64 for a float64 quantizer); one element, or one for
            each channel or group.
        offset: of the shape of ``step``, or None for 0.
        odd: the grid has no zero: it lies half-way between integers, as that of two-sided PACT or SAT with ``2**bits`` levels.
        interval: a pair ``(lower, width)`` of tensors, or None; how a value finds its code, below.
        magnitude: the interval is one of ``|x|``, and codes have the sign of ``x``.
        formula: whether a value finds its code by the formula that follows. Else :meth:`Quantizer.codes` alone knows it: QIL's and
            SAT's weights go through a power or tanh, frozen weights are where they are. That serves weights, whose codes are
            stored, and not inputs.

    ::

        without interval  k = round(clip((x - offset) / step, qmin, qmax))
                     odd  k = round((clip((x - offset) / step, 2*qmin + 1, 2*qmax + 1) - (2*qmin + 1)) / 2) + qmin
        with interval     k = round(clip((x - lower) / width, 0, 1) * (qmax - qmin)) + qmin
               magnitude  k = round(clip((|x| - lower) / width, 0, 1) * qmax) * sign(x)
    """

    qmin: int
    qmax: int
    step: torch.Tensor
    offset: torch.Tensor | None = None
    odd: bool = False
    interval: tuple[torch.Tensor, torch.Tensor] | None = None
    magnitude: bool = False
    formula: bool = True

    def decode(self, codes: torch.Tensor, axis: int | None = None, group_size: int | None = None) -> torch.Tensor:
        """The values of ``codes``, of the dtype of ``step``; ``axis`` and ``group_size`` are the quantizer's."""
        axis, group = normalize_axis("decode", codes, axis, group_size) if self.step.numel() > 1 else (-1, 0)
        integers = (2 * codes + 1 if self.odd else codes).to(self.step.dtype)
        y = expand(self.step, codes, axis, group) * integers
        return y if self.offset is None else y + expand(self.offset, codes, axis, group)


class Quantizer(nn.Module):
    """A module that fake-quantizes: what the layers of :mod:`fastq.nn`, recipes, ``convert`` and ``diagnose`` rely on.

    A subclass has ``forward(x)``, an attribute ``bits``, and, where its values are evenly spaced, :meth:`codes` and :meth:`grid`.
    ``enabled`` is False while the recipe trains in full precision: the layer then does not call the quantizer. It is no part of the
    ``state_dict``: :class:`fastq.recipes.Training` sets it for the step it goes on at, and :func:`fastq.load` as it was saved.
    """

    bits: Any
    enabled: bool = True
    #: Whether what it gives in training lies on its grid: noise does not.
    on_grid: bool = True
    #: Whether the first batch has been (or none is needed), as Python knows it: a GPU's buffer would have to be waited for.
    _initialized: bool = True

    def initialize(self, x: torch.Tensor, *, synchronize: bool = True) -> None:
        """Set the parameters from the values of ``x``; this one has none that would be."""

    def set_bits(self, bits: Any) -> None:
        """Go on with another width, from where training is: the range that is clipped to stays, its levels become fewer or more.

        ``bits``: as the constructor takes it; None for full precision, until the next call, which begins with a first batch.
        Raises ``TypeError`` or ``ValueError`` for a width that the constructor refuses.
        """
        if bits is None:
            self.enabled = False
            return
        self._change_bits(bits)
        if not self.enabled:
            self.enabled = True
            self._forget()

    def _change_bits(self, bits: Any) -> None:
        raise TypeError(f"{type(self).__name__} cannot change its bits")

    def _forget(self) -> None:
        """Let the next batch be the first again."""

    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """The values that it gives in evaluation mode, by their integer codes.

        ``x``: what would be quantized, for a quantizer whose scale follows from it (:class:`SATWeight`); the others look at their
        parameters alone. Raises ``RuntimeError`` before the first batch, ``TypeError`` where the values are not evenly spaced, or
        ``x`` is needed.
        """
        raise TypeError(f"{type(self).__name__} has no integer codes")

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of ``x`` as int32, by the rounding of the forward pass in evaluation mode: :meth:`grid` decodes them.

        NaN, for which no integer stands, has an arbitrary one. Raises ``RuntimeError`` before the first batch, ``TypeError`` or
        ``ValueError`` where ``x`` does not fit the quantizer.
        """
        raise TypeError(f"{type(self).__name__} has no integer codes")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # The ops want fp32 parameters for half-precision inputs, and a step rounded to bf16 is another quantizer.
        return super()._apply(keeping_precision(fn), recurse)


class LearnedQuantizer(Quantizer):
    """A quantizer whose learned parameters, named in ``learned``, have one shape.

    Args:
        axis: one set of parameters per index of this axis.
        group_size: one set per so many consecutive elements of the last axis.
        shape: of each parameter: ``(C,)`` with ``axis``, ``x.shape[:-1] + (K // group_size,)`` with ``group_size``.
        values: the first value of each parameter; None for a parameter that this quantizer does not have.

    The parameters are float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``): the kernels want
    that, and a clip rounded to bfloat16 is another quantizer.
    """

    #: The parameters in the order in which the op takes them.
    learned: tuple[str, ...] = ()

    def __init__(self, axis: int | None, group_size: int | None, shape: tuple[int, ...], values: dict[str, float | None]) -> None:
        super().__init__()
        name = type(self).__name__
        if axis is not None and group_size is not None:
            raise ValueError(f"{name}: axis={axis} and group_size={group_size} exclude each other; give one of them")
        for what, value in (("axis", axis), ("group_size", group_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name}: {what} must be an int or None, got {value!r}")
        if group_size is not None and group_size < 1:
            raise ValueError(f"{name}: group_size must be at least 1, got {group_size}")
        self.axis, self.group_size = axis, group_size
        for parameter, first in values.items():
            full = None if first is None else nn.Parameter(torch.full(shape, first, dtype=torch.float32))
            self.register_parameter(parameter, full)
        count = next(self.parameters()).numel()
        if axis is None and group_size is None and count != 1:
            raise ValueError(f"{name}: shape must be of one element without axis and group_size, got {tuple(shape)}")

    def _parameters_for(self, x: torch.Tensor) -> list[Any]:
        """The learned parameters in the dtype that an op wants for ``x``; None for one that this quantizer does not have."""
        check_input(type(self).__name__, x)
        dtype = compute_dtype(x)
        held = [getattr(self, name) for name in self.learned]
        return [p if p is None or p.dtype == dtype else p.to(dtype) for p in held]

    def _scaled(self, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``y`` times the magnitude of a scale per tensor or per index of the axis."""
        along = [-1 if d == (self.axis or 0) % y.dim() else 1 for d in range(y.dim())] if self.axis is not None else []
        return (y * scale.abs().reshape(along)).to(y.dtype)

    def _check_shape(self, x: torch.Tensor) -> None:
        name = type(self).__name__
        check_input(name, x)
        needed = parameter_shape(x, *normalize_axis(name, x, self.axis, self.group_size))
        held = getattr(self, self.learned[0])
        if (held.numel() != 1) if needed == () else tuple(held.shape) != needed:
            raise ValueError(
                f"{name}: {self.learned[0]} must have shape {needed or (1,)} for x of shape {tuple(x.shape)}, "
                f"got {tuple(held.shape)}"
            )

    def _grain(self) -> str:
        grain = "per tensor" if self.group_size is None else f"group_size={self.group_size}"
        return grain if self.axis is None else f"axis={self.axis}"


class FirstBatch(LearnedQuantizer):
    """A quantizer whose parameters the first batch sets, in training and in evaluation mode.

    In a process group every rank gets the mean of what the ranks saw, so all have to take part. An empty batch is not the
    first. That it happened is kept in the buffer ``initialized`` (uint8: torch.optim.swa_utils subtracts buffers, which bool
    tensors refuse), so that a loaded module goes on from where it was. Under ``torch.compile(fullgraph=True)`` run one batch
    before compiling: the first one looks at its values.

    With ``signed`` None it also decides whether values of both signs are quantized, kept in the buffer ``is_signed``.
    """

    initialized: torch.Tensor
    is_signed: torch.Tensor | None

    def __init__(self, *args: Any, signed: bool | None = True) -> None:
        super().__init__(*args)
        self.decides_sign = signed is None
        self.register_buffer("initialized", torch.tensor(False, dtype=torch.uint8))
        self.register_buffer("is_signed", torch.tensor(False, dtype=torch.uint8) if signed is None else None)
        # what the buffers say, where reading them would wait for a GPU
        self._initialized, self._signed = False, bool(signed)
        self.register_load_state_dict_post_hook(_read_buffer)

    def _first_values(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """A value for each learned parameter that there is, from ``x`` as one float32 row per parameter; none is empty."""
        raise TypeError(f"{type(self).__name__} says nothing of its first values")

    def initialize(self, x: torch.Tensor, *, synchronize: bool = True) -> None:
        """Set the parameters from ``x``; with ``synchronize`` in a process group all ranks must call, and get the same.

        Nothing happens on the meta device, which has no values, nor where ``x`` is empty (on all ranks). Raises ``TypeError`` or
        ``ValueError`` where ``x`` does not fit the quantizer, and then leaves it as it was.
        """
        self._check_shape(x)
        if x.is_meta:
            return
        held = [p for p in (getattr(self, name) for name in self.learned) if p is not None]
        seen, before = x.numel() > 0, self._signed
        group = synchronize and in_group()
        if self.decides_sign:
            negative = (x.detach() < 0).any().to(torch.int32)
            if group:
                torch.distributed.all_reduce(negative, torch.distributed.ReduceOp.MAX)
            self._check_sign(bool(negative))
            self._signed = bool(negative)
        values = torch.zeros(len(held), held[0].numel(), device=x.device)
        if seen:
            with torch.no_grad():
                values = torch.stack(self._first_values(as_rows(x.detach(), self.axis, self.group_size).float()))
        if group:
            votes = values.new_tensor([float(seen)])
            for t in (values, votes):
                torch.distributed.all_reduce(t)
            values /= votes
            seen = bool(votes > 0)
        if not seen:
            self._signed = before
            return
        with torch.no_grad():
            for parameter, value in zip(held, values, strict=True):
                parameter.copy_(value.view_as(parameter))
            self.initialized.fill_(True)
            if self.is_signed is not None:
                self.is_signed.fill_(self._signed)
        self._initialized = True

    def _check_sign(self, signed: bool) -> None:
        """Raises where this quantizer cannot have that sign."""

    def _require_first_batch(self, what: str) -> None:
        if not self._initialized:
            _read_buffer(self)
            if not self._initialized:
                raise RuntimeError(
                    f"{type(self).__name__}: {what}() of a quantizer that has seen no batch, and so has no parameters yet; "
                    "run one through it"
                )

    def _forget(self) -> None:
        self.initialized.fill_(False)
        self._initialized = False

    def _ready(self, x: torch.Tensor) -> None:
        """Before the first forward pass: the first batch, unless a loaded or averaged state says that it has been."""
        if not self._initialized:
            _read_buffer(self)  # DDP, averaging and the like write into buffers and tell nobody
            if not self._initialized:
                self.initialize(x)


def _read_buffer(module: nn.Module, incompatible: Any = None) -> None:
    if isinstance(module, FirstBatch) and not module.initialized.is_meta:
        module._initialized = bool(module.initialized)
        if module.is_signed is not None:
            module._signed = bool(module.is_signed)
