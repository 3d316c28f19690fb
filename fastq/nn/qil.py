"""The QIL quantizer as a module."""

from __future__ import annotations

import torch
from torch import nn

from ..granularity import compute_dtype, divided
from ..ops import qil
from ..ranges import check_eps, level_count
from ..reference.qil import effective_interval
from .base import FirstBatch, Grid

__all__ = ["QIL"]


class QIL(FirstBatch):
    """Prune, clip and quantize inside a learned interval: :func:`fastq.qil` with its state.

    The first batch sets ``center = width = max|x| / 2``, so that nothing is pruned and nothing clipped, and ``gamma = 1``. This
    is a reconstruction of QIL's initial values, equations not published in the sources we had. The output is not scaled
    back: a batch norm has to follow, or ``learn_scale`` gives it a factor, at first the one that keeps ``mean|x|`` (ours, not the
    paper's: for layers without a norm).

    Width and gamma stay positive by parametrisation, as in :class:`fastq.nn.PACT`: the kernel uses ``max(|p|, eps)`` with the
    sign of ``p`` on its gradient. That a weight's interval begins at 0 or above is a projection which the kernel does on what
    it reads (a center below the width acts as the width), not on the parameter: its gradient still arrives, so that training
    can take the center back up.

    To train the quantizers alone, on other data than the network's as the paper does, freeze the rest::

        for p in model.parameters():
            p.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, fastq.nn.QIL):
                module.requires_grad_(True)

    A weight that needs no gradient gets none, and the interval is trained all the same.

    Args:
        bits: 1 to 8; 2 to 8 for weights.
        weight: whether a weight is quantized (both signs, a learned exponent) or an activation (from 0 up, linear).
        learn_gamma: whether weights have the exponent ``gamma``; False keeps it at 1. Activations have none.
        signed: of activations: both signs, quantized as a weight without gamma; None: the first batch decides. A weight has both.
        learn_scale: multiply the output by a learned ``|scale|``; per tensor or ``axis``, not per group.
        axis: one interval per index of this axis.
        group_size: one interval per so many consecutive elements of the last axis.
        shape: of each parameter: ``(C,)`` with ``axis``, ``x.shape[:-1] + (K // group_size,)`` with ``group_size``; else ``(1,)``.
        eps: the smallest width and gamma used.

    Input: ``x`` as :func:`fastq.qil` takes it. Output: of its shape, dtype and layout, between -1 and 1 (0 and 1), times the scale.

    Raises:
        TypeError, ValueError: an argument, or later an ``x``, does not fit; the message says what was expected.

    Attributes:
        center, width, gamma: parameters, float32 whatever ``.to()`` or ``.half()`` the model gets (float64 after ``.double()``);
            ``gamma`` is None where it is not learned.
        scale: parameter of their shape, or None.
        initialized: buffer, uint8, 0 or 1; is_signed: buffer, where the first batch decides.

    Paper: Jung et al., CVPR 2019, https://arxiv.org/abs/1808.05779.
    """

    center: nn.Parameter
    width: nn.Parameter
    gamma: nn.Parameter | None
    scale: nn.Parameter | None
    learned = ("center", "width", "gamma", "scale")

    def __init__(
        self, bits: int, *, weight: bool, learn_gamma: bool = True, signed: bool | None = False, learn_scale: bool = False,
        axis: int | None = None, group_size: int | None = None, shape: tuple[int, ...] = (1,), eps: float = 1e-8,
    ) -> None:  # fmt: skip
        for name, value in (("weight", weight), ("learn_gamma", learn_gamma), ("learn_scale", learn_scale)):
            if not isinstance(value, bool):
                raise TypeError(f"QIL: {name} must be True or False, got {value!r}")
        if not isinstance(signed, bool | None):
            raise TypeError(f"QIL: signed must be True, False or None, got {signed!r}")
        level_count("QIL", bits, signed=weight or bool(signed))
        if learn_scale and group_size is not None:
            raise ValueError("QIL: group_size needs learn_scale=False; a scale is one per tensor or per index of an axis")
        check_eps("QIL", eps)
        gamma = 1.0 if weight and learn_gamma else None
        first = {"center": 0.5, "width": 0.5, "gamma": gamma, "scale": 1.0 if learn_scale else None}
        super().__init__(axis, group_size, shape, first, signed=True if weight else signed)
        self.bits, self.weight, self.eps = bits, weight, eps

    def _first_values(self, rows: torch.Tensor) -> list[torch.Tensor]:
        half = rows.abs().amax(1) / 2
        half = torch.where((half > 0) & half.isfinite(), half, 0.5)  # nothing to go by: the interval from 0 to 1
        values = [half, half] if self.gamma is None else [half, half, torch.ones_like(half)]
        if self.scale is None:
            return values
        y = qil(rows, half, half, bits=self.bits, weight=self._signed, axis=0, eps=self.eps)
        scale = rows.abs().mean(1) / y.abs().mean(1)
        return [*values, torch.where((scale > 0) & scale.isfinite(), scale, 1.0)]

    def _check_sign(self, signed: bool) -> None:
        level_count("QIL", self.bits, signed=signed)

    def _change_bits(self, bits: int) -> None:
        level_count("QIL", bits, signed=self._signed)
        self.bits = bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ready(x)
        if self.scale is None:
            return self._normalized(x)
        scale = self._parameters_for(x)[-1]
        return self._scaled(self._normalized(x.to(scale.dtype)), scale).to(x.dtype)

    def _normalized(self, x: torch.Tensor) -> torch.Tensor:
        center, width, gamma, _ = self._parameters_for(x)
        return qil(
            x, center, width, gamma, bits=self.bits, weight=self._signed, axis=self.axis, group_size=self.group_size, eps=self.eps
        )

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The integer codes of ``x`` as int32, of both signs for weights; NaN has an arbitrary one.

        They are ``y * L`` of the forward pass without its scale, whose power is not torch's to the last bit. Raises as
        :meth:`grid`, and where ``x`` does not fit the quantizer.
        """
        self._require_first_batch("codes")
        y = self._normalized(x.to(compute_dtype(x)) if isinstance(x, torch.Tensor) and x.is_floating_point() else x)
        return (y * level_count("QIL", self.bits, signed=self._signed)).round().to(torch.int32)

    def grid(self, x: torch.Tensor | None = None) -> Grid:
        """``y = |scale|/L * k``: ``k`` from 0, for both signs from -L, to L. Raises ``RuntimeError`` before the first batch."""
        self._require_first_batch("grid")
        levels = level_count("QIL", self.bits, signed=self._signed)
        step = divided(self.width.new_ones(1) if self.scale is None else self.scale.detach().abs(), levels)
        interval = effective_interval(self.center.detach(), self.width.detach(), self._signed, self.eps)
        low = -levels if self._signed else 0
        return Grid(low, levels, step, interval=interval, magnitude=self._signed, formula=self.gamma is None)

    def interval(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(pruned below, clipped above)``: the interval that the kernels use, in units of ``|x|`` (activations: of ``x``)."""
        start, length = effective_interval(self.center.detach(), self.width.detach(), self._signed, self.eps)
        return start, start + length

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, weight={self.weight}, {self._grain()}, intervals={self.width.numel()}, "
            f"gamma={self.gamma is not None}, scale={self.scale is not None}, initialized={self._initialized}"
        )
